"""Every layout of the original becomes a model folder whose numbers are the original's."""

import json
import lzma
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from support.golden_cases import TOKENS, UNIT, assert_near, case, golden_model, text_batch, weights
from support.hub_layouts import (
    bare_pickle,
    cfg,
    old_trainer_file,
    released,
    small_vocabulary,
    state,
    vision_branch,
    wrapper,
)

from onepeace.cli import main
from onepeace.errors import UserError
from onepeace.hub import tensors
from onepeace.hub import weights as weight_files
from onepeace.hub.convert import convert as convert_module
from onepeace.hub.convert.convert import convert
from onepeace.hub.convert.stored import StoredTensor
from onepeace.hub.folder import read_config


@pytest.fixture(scope="module")
def bpe(tmp_path_factory) -> Path:
    return small_vocabulary(tmp_path_factory.mktemp("bpe") / "files")


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """The released pretraining layout."""
    path = tmp_path / "one-peace.pt"
    torch.save(wrapper(released(), cfg()), path)
    return path


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield


def assert_embeds_as_golden(model, modalities, atol=UNIT):
    inputs, outputs = case("embed").inputs, case("embed").outputs
    batch = {
        "text": text_batch(inputs["text"]),
        "image": {"pixels": inputs["image"].float()},
        "audio": {"waveform": inputs["audio_equal"], "lengths": torch.full((2,), 1600)},
    }
    vectors = model({key: batch[key] for key in modalities})
    assert set(vectors) == set(modalities)
    for key in modalities:
        assert_near(vectors[key], outputs[f"{key}_embed"], atol)


def assert_sees_as_golden(model):
    golden = case("vision_classify")
    features = model.features({"image": {"pixels": golden.inputs["image_64"].float()}})["image"]
    assert_near(features, golden.outputs["features_64"], TOKENS)


def same_tensors(folder: Path, model: torch.nn.Module) -> None:
    found, wanted = weight_files.read_state(folder), model.state_dict()
    assert set(found) == set(wanted)
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


def test_released_layout_embeds_as_the_original(checkpoint, tmp_path, bpe):
    folder = convert(checkpoint, tmp_path / "out", bpe=bpe)

    config = read_config(folder)
    assert config.model.adapters["audio"]["convs"] == [[24, 10, 5], [24, 3, 2], [24, 3, 2], [24, 2, 2]]
    assert config.processors["audio"] == {"sample_rate": 16000, "max_seconds": 15.0, "min_seconds": 1.0}
    assert config.processors["image"]["size"] == 64
    assert config.processors["text"]["max_tokens"] == 70
    assert sorted(file.name for file in folder.iterdir()) == [
        "MODEL_CARD.md", "config.yaml", "model.safetensors", "tokenizer.json"]  # fmt: skip
    assert_embeds_as_golden(weight_files.load(folder), ["text", "image", "audio"])


@pytest.mark.parametrize("old", [True, False])
def test_sizes_come_from_the_tensors_when_there_is_no_cfg(tmp_path, checkpoint, bpe, old):
    with_cfg = read_config(convert(checkpoint, tmp_path / "with", bpe=bpe))
    path = tmp_path / "bare.pt"
    if old:
        old_trainer_file(path, released())
    else:
        torch.save({"model": released()}, path)

    assert read_config(convert(path, tmp_path / "without", bpe=bpe)) == with_cfg


@pytest.mark.parametrize(("modalities", "name"), [("text image", "vl"), ("text audio", "al")])
def test_retrieval_model_has_a_table_per_block_and_a_temperature(tmp_path, bpe, modalities, name):
    keys = modalities.split()
    path = tmp_path / "finetune.pt"
    settings = cfg({"head_type": name, "max_duration": 20})
    torch.save(wrapper(state(*keys, heads=True, tables=3), settings), path)

    folder = convert(path, tmp_path / "out", bpe=bpe)

    same_tensors(folder, golden_model(modalities, projections=True, bias_per_block=True))
    model = weight_files.load(folder)
    assert_embeds_as_golden(model, keys)
    assert model.logit_scale == weights()["logit_scale"]
    if name == "al":
        assert read_config(folder).processors["audio"]["max_seconds"] == 20.0


@pytest.mark.parametrize("modalities", ["text image", "text audio"])
def test_trainer_file_keeps_its_decoder(tmp_path, bpe, modalities):
    keys = modalities.split()
    path = tmp_path / "checkpoint_last.pt"
    torch.save(wrapper(state(*keys, heads=True, decoder=True), cfg()), path)

    folder = convert(path, tmp_path / "out", bpe=bpe)

    same_tensors(folder, golden_model(modalities, projections=True, decoder=True))
    assert weight_files.load(folder).decoder is not None


HEADS = {
    "vqa": ("text image", {"num_classes": 11}, {"use_pooler": True}),
    "nlvr2": ("text image", {"use_two_images": True}, {}),
    "grounding": ("text image", {}, {"use_image_features": True}),
    "grounding_text_features": ("text image", {}, {"use_image_features": False}),
    "avqa": ("text audio", {"_name": "avqa"}, {}),
    "classify_audio": ("audio", {"_name": "vggsound"}, {}),
    "classify_image": ("image", {}, {}),
}


@pytest.mark.parametrize("name", HEADS)
def test_classifier_gives_the_originals_logits(tmp_path, bpe, name):
    modalities, task, model_settings = HEADS[name]
    golden = case(name)
    path = tmp_path / "finetune.pt"
    head = case("grounding_text_features" if name == "grounding_text_features" else name).weights
    torch.save(wrapper(state(*modalities.split(), tables=3) | head, cfg(task, **model_settings)), path)

    folder = convert(path, tmp_path / "out", bpe=bpe)
    model = weight_files.load(folder)

    batch = case("grounding" if name.startswith("grounding") else name).batch()
    passes = [batch]
    if name == "nlvr2":
        passes.append(
            batch | {"image": {"pixels": golden.inputs["src_images_2"].float(), "type_ids": torch.ones(3, dtype=int)}}
        )
    if name == "avqa":
        batch["audio"] = {key: value.repeat_interleave(4, 0) for key, value in batch["audio"].items()}
    assert_near(model.predict(*passes), golden.outputs["logits"], TOKENS)
    assert not model.config.projections
    text = read_config(folder).processors.get("text", {})
    assert text.get("lower") == {"avqa": False}.get(name, True if "text" in modalities else None)


@pytest.mark.parametrize("protocol", [3, 4])
def test_vision_branch_pickle_gives_the_originals_features(tmp_path, protocol):
    content = {"model": vision_branch(), "__author__": "ofa", "matching_heuristics": True}
    path = bare_pickle(tmp_path / "one-peace-vision.pkl", content, protocol)

    folder = convert(path, tmp_path / "out")

    assert not (folder / "tokenizer.json").exists()
    assert_sees_as_golden(weight_files.load(folder))


@pytest.mark.parametrize("per_block", [False, True])
def test_imagenet_model_gives_the_originals_logits(tmp_path, per_block):
    tensors = vision_branch() | case("vision_classify").weights
    table = tensors.pop("image_adapter.rel_pos_table_list.0.weight")
    if per_block:
        tensors |= {f"encoder.layers.{i}.rel_pos_table.weight": table.clone() for i in range(3)}
    else:
        tensors["image_adapter.rel_pos_table.weight"] = table
    torch.save({"model": tensors}, tmp_path / "onepeace_ft.pth")

    model = weight_files.load(convert(tmp_path / "onepeace_ft.pth", tmp_path / "out"))

    golden = case("vision_classify")
    assert model.config.bias_per_block == per_block
    pixels = golden.inputs["image_64"].float()
    assert_near(model.predict({"image": {"pixels": pixels}}), golden.outputs["logits_64"], TOKENS)


def test_larger_pictures_embed_as_after_the_originals_loader(checkpoint, tmp_path, bpe):
    folder = convert(checkpoint, tmp_path / "out", bpe=bpe, image_size=96)

    golden = case("resized")
    config = read_config(folder)
    assert (config.processors["image"]["size"], config.model.adapters["image"]["bias_grid"]) == (96, 6)
    table = weight_files.read_state(folder)["adapters.image.bias_tables.0"]
    assert torch.equal(table, golden.outputs["rel_pos_table_4_to_6"])
    model = weight_files.load(folder)
    assert_near(
        model({"image": {"pixels": golden.inputs["image"].float()}})["image"], golden.outputs["image_embed"], UNIT
    )


def test_smaller_pictures_load_too(checkpoint, tmp_path, bpe):
    model = weight_files.load(convert(checkpoint, tmp_path / "out", bpe=bpe, image_size=48, modalities=["image"]))

    assert model({"image": {"pixels": torch.rand(1, 3, 48, 48)}})["image"].shape == (1, 32)
    assert model.state_dict()["adapters.image.bias_tables.0"].shape == (5 * 5 + 3, 4)


def test_dropped_modalities_leave_the_others_as_they_were(checkpoint, tmp_path):
    folder = convert(checkpoint, tmp_path / "out", modalities=["audio"])  # no text: no vocabulary needed

    names = set(weight_files.read_state(folder))
    assert not [name for name in names if ".text." in name or ".image." in name]
    config = read_config(folder)
    assert (list(config.model.adapters), config.model.projections, list(config.processors)) == (
        ["audio"],
        ("audio",),
        ["audio"],
    )
    assert_embeds_as_golden(weight_files.load(folder), ["audio"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtype_of_the_file_is_changed_on_request(checkpoint, tmp_path, bpe, dtype):
    folder = convert(checkpoint, tmp_path / "out", bpe=bpe, dtype=dtype)

    assert {tensor.dtype for tensor in weight_files.read_state(folder).values()} == {getattr(torch, dtype)}
    assert_embeds_as_golden(weight_files.load(folder, dtype=torch.float32), ["text", "image", "audio"], atol=0.02)


def test_numbers_too_large_for_float16_are_refused(tmp_path, bpe):
    tensors = released()
    tensors["image_proj.bias"] = torch.full((32,), 1e6)
    torch.save({"model": tensors}, tmp_path / "x.pt")

    with pytest.raises(UserError, match=r"heads\.image\.bias: has numbers up to 1e\+06"):
        convert(tmp_path / "x.pt", tmp_path / "out", bpe=bpe, dtype="float16")
    assert not (tmp_path / "out").exists()


def broken(change: str) -> dict[str, torch.Tensor]:
    tensors = released()
    if change == "left over":
        tensors["video_proj.weight"] = torch.zeros(2)
    elif change == "video":
        tensors["encoder.layers.0.T_Adapter.D_fc1.weight"] = torch.zeros(2)
    elif change == "missing":
        del tensors["encoder_wrapper.fusion_model.layers.1.audio_ffn.2.bias"]
    elif change == "missing adapter":
        del tensors["encoder_wrapper.text_adapter.embed_tokens.weight"]
    elif change == "misshapen":
        tensors["text_proj.weight"] = torch.zeros(32, 31)
    elif change == "missing block":
        tensors = {name: tensor for name, tensor in tensors.items() if ".layers.1." not in name}
    elif change == "tables":
        tensors["encoder_wrapper.text_adapter.rel_pos_table_list.1.weight"] = torch.zeros(18, 4)
    elif change == "twice":
        tensors["head.weight"] = tensors["classify_head.classifier.3.weight"] = torch.zeros(2, 32)
    return tensors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("left over", r"1 of \d+ tensors have no place here \(video_proj\.weight\)"),
        ("video", r"T_Adapter.*video network, which is not supported"),
        (
            "missing",
            r"lack 1 of \d+ tensors \(blocks\.1\.ffn\.audio\.norm\.bias\); the file has modalities audio, image, text",
        ),
        ("missing adapter", r"lacks encoder_wrapper\.text_adapter\.embed_tokens\.weight"),
        ("misshapen", r"heads\.text\.weight is \(32, 31\), not \(32, 32\)"),
        ("missing block", r"lack \d+ of \d+ tensors \(blocks\.1\."),
        ("tables", r"differ in their number of bias tables"),
        ("twice", r"are both heads\.classifier\.out\.weight"),
    ],
)
def test_every_tensor_is_placed_or_named(tmp_path, bpe, change, message):
    torch.save({"model": broken(change)}, tmp_path / "x.pt")

    with pytest.raises(UserError, match=message) as error:
        convert(tmp_path / "x.pt", tmp_path / "out", bpe=bpe)

    assert str(tmp_path / "x.pt") in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.pt"]


def test_cfg_of_another_model_is_refused(tmp_path, bpe):
    settings = cfg()
    settings["model"]["encoder"] = settings["model"]["encoder"] | {"attention_heads": 24}
    torch.save(wrapper(released(), settings), tmp_path / "x.pt")

    with pytest.raises(UserError, match="its cfg says attention_heads 24, its tensors are of a model with 4"):
        convert(tmp_path / "x.pt", tmp_path / "out", bpe=bpe)


def test_strides_that_nobody_knows_are_refused(tmp_path, bpe):
    tensors = released()
    name = "encoder_wrapper.audio_adapter.embed_audios.0.conv_layers.1.0.weight"
    tensors[name] = torch.zeros(24, 24, 4)
    torch.save({"model": tensors}, tmp_path / "x.pt")

    with pytest.raises(UserError, match="strides of the audio convolutions"):
        convert(tmp_path / "x.pt", tmp_path / "out", bpe=bpe)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 100}, "multiple of the patch size 16"),
        ({"image_size": 32}, "at least 48"),
        ({"modalities": ["audio"], "image_size": 96}, "no images, only audio"),
        ({"modalities": ["video"]}, "no modality 'video'; it has text, image, audio"),
        ({"modalities": []}, "no modality"),
        ({"dtype": "int8"}, "dtype int8 is unknown; known: float32"),
    ],
)
def test_impossible_options_are_one_line(checkpoint, tmp_path, bpe, options, message):
    with pytest.raises(UserError, match=message):
        convert(checkpoint, tmp_path / "out", bpe=bpe, **options)
    assert not (tmp_path / "out").exists()


def test_text_needs_the_right_vocabulary(checkpoint, tmp_path, monkeypatch):
    import huggingface_hub

    other = small_vocabulary(tmp_path / "other", size=150)
    with pytest.raises(UserError, match="has 150 pieces, the model's table 160"):
        convert(checkpoint, tmp_path / "out", bpe=other)

    def offline(*args, **options):
        raise OSError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError, match=r"could not be fetched \(no route to host\); give a folder .* --bpe DIR"):
        convert(checkpoint, tmp_path / "out")
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *args, **options: small_vocabulary(tmp_path / "hub")
    )
    assert (convert(checkpoint, tmp_path / "out") / "tokenizer.json").is_file()


def test_released_vocabulary_is_accepted(shared):
    assert convert_module.vocabulary(shared / "official_bpe", 50264).get_vocab_size() == 50264


@pytest.mark.parametrize("replacing", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
def test_interrupted_conversion_leaves_nothing_that_loads(checkpoint, tmp_path, bpe, monkeypatch, error, replacing):
    out = tmp_path / "out"
    if replacing:
        convert(checkpoint, out, modalities=["audio"])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    read, count = StoredTensor.read, iter(range(10**6))

    def fails_later(self):
        if next(count) == 40:
            raise error
        return read(self)

    monkeypatch.setattr(StoredTensor, "read", fails_later)
    with pytest.raises(type(error) if isinstance(error, Exception) else error):
        convert(checkpoint, out, bpe=bpe, replace_existing=True)

    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_killed_conversion_leaves_nothing_that_loads(checkpoint, tmp_path, bpe):
    # A process that dies cannot clean up: what it wrote so far must not pass for a model.
    program = f"""
import os
from onepeace.hub.convert.convert import convert
from onepeace.hub.convert.stored import StoredTensor
StoredTensor.read = lambda self: os._exit(9)
convert({str(checkpoint)!r}, {str(tmp_path / "out")!r}, bpe={str(bpe)!r})
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 9

    assert not (tmp_path / "out").exists()
    (rest,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    with pytest.raises(UserError, match="no config"):
        weight_files.load(rest)
    assert convert(checkpoint, tmp_path / "out", bpe=bpe).is_dir()


def test_existing_folders_are_not_overwritten_by_accident(checkpoint, tmp_path):
    other = tmp_path / "holiday"
    other.mkdir()
    (other / "a.jpg").write_text("picture")
    with pytest.raises(UserError, match="exists"):
        convert(tmp_path / "not read yet.pt", other, modalities=["audio"])
    with pytest.raises(UserError, match="no model folder; it will not be replaced"):
        convert(checkpoint, other, modalities=["audio"], replace_existing=True)
    with pytest.raises(UserError, match="is a file"):
        convert(checkpoint, checkpoint, modalities=["audio"], replace_existing=True)
    assert [path.name for path in other.iterdir()] == ["a.jpg"]

    out = convert(checkpoint, tmp_path / "out", modalities=["audio"])
    convert(checkpoint, out, modalities=["image"], replace_existing=True)
    assert list(read_config(out).model.adapters) == ["image"]


def test_large_models_are_written_in_shards(checkpoint, tmp_path, bpe, monkeypatch):
    monkeypatch.setattr(tensors, "SHARD_BYTES", 100_000)
    folder = convert(checkpoint, tmp_path / "out", bpe=bpe)

    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 3
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    total = 0
    for name in files:
        with safe_open(folder / name, framework="pt") as file:
            sizes = [file.get_tensor(key).nbytes for key in file.keys()]
            assert all(index["weight_map"][key] == name for key in file.keys())
        assert sum(sizes) <= 100_000
        total += sum(sizes)
    assert index["metadata"]["total_size"] == total
    assert_embeds_as_golden(weight_files.load(folder), ["text", "image", "audio"])

    (folder / files[1]).unlink()
    with pytest.raises(UserError, match=f"{files[1]}: missing"):
        weight_files.load(folder)


def test_command_converts_and_reports(checkpoint, tmp_path, bpe, capsys):
    out = tmp_path / "out"
    arguments = ["convert", str(checkpoint), str(out), "--bpe", str(bpe), "--image-size", "96", "--dtype", "bfloat16"]
    assert main([*arguments, "--modalities", "text, image"]) == 0
    output = capsys.readouterr()
    assert output.out == f"{out}\n"
    assert list(read_config(out).model.adapters) == ["text", "image"]

    assert main(arguments) == 1
    assert main([*arguments, "--force"]) == 0
    assert main(["convert", str(tmp_path / "absent.pt"), str(tmp_path / "x")]) == 1
    assert main(["convert"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("onepeace:") for line in lines)


def test_golden_checkpoints_embed_as_the_original(shared, tmp_path, bpe):
    folders = {}
    for packed in (shared / "golden" / "checkpoints").iterdir():
        path = tmp_path / packed.name.removesuffix(".xz")
        path.write_bytes(lzma.decompress(packed.read_bytes()) if packed.suffix == ".xz" else packed.read_bytes())
        folders[path.stem] = convert(path, tmp_path / path.stem, bpe=bpe)

    three = ["text", "image", "audio"]
    assert_embeds_as_golden(weight_files.load(folders["pretrained_release_layout"]), three)
    rounded = weight_files.load(folders["pretrained_without_buffers_bf16"], dtype=torch.float32)
    assert_embeds_as_golden(rounded, three, atol=0.02)
    stage_one = weight_files.load(folders["stage1_trainer_layout_bf16"], dtype=torch.float32)
    assert_embeds_as_golden(stage_one, ["text", "image"], atol=0.02)
    assert stage_one.decoder is not None
    sounds = weight_files.load(folders["finetune_vggsound_layout"])
    golden = case("classify_audio")
    assert_near(sounds.predict(golden.batch()), golden.outputs["logits"], TOKENS)
    assert_sees_as_golden(weight_files.load(folders["vision_branch"]))


MEASURE = """
import resource, sys
import torch
from onepeace.hub.convert.convert import convert
from onepeace.hub.weights import expected
convert(sys.argv[1], sys.argv[2], modalities=["image"])  # once small: imports and warm-up are not counted
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
convert(sys.argv[3], sys.argv[4])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(not hasattr(resource, "RUSAGE_SELF"), reason="peak memory is not measured here")
def test_conversion_takes_the_memory_of_its_largest_tensors(checkpoint, tmp_path):
    width, ffn, depth = 512, 2048, 13
    large = {}
    for name, tensor in vision_branch().items():
        if tensor.dtype == torch.int64:
            continue
        shape = [{32: width, 64: ffn, 8: width // 4}.get(size, size) for size in tensor.shape]
        numbers = [*range(depth)] if ".layers.0." in name else [0] if ".layers." not in name else []
        for i in numbers:
            large[name.replace(".layers.0.", f".layers.{i}.")] = torch.zeros(shape)
    path = tmp_path / "large.pt"
    torch.save({"model": large}, path)
    biggest = max(tensor.nbytes for tensor in large.values())
    size = path.stat().st_size
    assert size > 36 * biggest > 140_000_000
    del large

    arguments = [checkpoint, tmp_path / "small", path, tmp_path / "out"]
    command = [sys.executable, "-c", MEASURE, *map(str, arguments)]
    growth = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) * 1024

    assert (tmp_path / "out" / "model.safetensors").stat().st_size > 0.99 * size
    assert growth < 6 * biggest < size / 5


def test_model_folder_converts_to_another_dtype_and_to_fewer_modalities(checkpoint, tmp_path, bpe):
    first = convert(checkpoint, tmp_path / "first", bpe=bpe)

    second = convert(first, tmp_path / "second", dtype="float16", modalities=["text"])

    names = weight_files.read_state(second)
    assert {tensor.dtype for tensor in names.values()} == {torch.float16}
    assert not [name for name in names if ".image." in name or ".audio." in name]
    assert (second / "tokenizer.json").read_bytes() == (first / "tokenizer.json").read_bytes()
    assert_embeds_as_golden(weight_files.load(second, dtype=torch.float32), ["text"], atol=0.02)
