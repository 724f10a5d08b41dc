"""Every layout of the original becomes a model folder whose numbers are the original's."""

from pathlib import Path

import pytest
import torch
from support.golden_cases import (
    TOKENS,
    UNIT,
    assert_embeds_as_golden,
    assert_near,
    case,
    golden_model,
    head_passes,
    weights,
)
from support.hub_layouts import (
    bare_pickle,
    cfg,
    golden_checkpoints,
    old_trainer_file,
    released,
    small_vocabulary,
    state,
    video_network,
    vision_branch,
    wrapper,
)

from onepeace.errors import UserError
from onepeace.hub import weights as weight_files
from onepeace.hub.convert import convert as convert_module
from onepeace.hub.convert.convert import convert
from onepeace.hub.convert.infer import CLIP_MEAN, CLIP_STD
from onepeace.hub.folder import read_config
from onepeace.hub.one_peace import resize
from onepeace.plugins.timm import with_image_size


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield


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
        "MODEL_CARD.md", "SHA256SUMS", "config.yaml", "model.safetensors", "tokenizer.json"]  # fmt: skip
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
    "vqa": ("text image", {"_name": "vqa", "num_classes": 11}, {"use_pooler": True}),
    "nlvr2": ("text image", {"use_two_images": True}, {}),
    "grounding": ("text image", {"_name": "refcoco"}, {"use_image_features": True}),
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
    torch.save(wrapper(state(*modalities.split(), tables=3) | golden.weights, cfg(task, **model_settings)), path)

    folder = convert(path, tmp_path / "out", bpe=bpe)
    model = weight_files.load(folder)

    assert_near(model.predict(*head_passes(name)), golden.outputs["logits"], TOKENS)
    assert not model.config.projections
    tasks = {"vqa": "answer", "grounding": "box", "avqa": "choice"}
    assert model.config.heads["classifier"].get("task") == tasks.get(name)
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


@pytest.mark.parametrize("per_block", [False, True])
def test_video_network_gives_the_originals_features_and_its_heads_logits(tmp_path, per_block):
    tensors = video_network()
    if per_block:
        table = tensors.pop("backbone.image_adapter.rel_pos_table.weight")
        tensors |= {f"backbone.encoder.layers.{i}.rel_pos_table.weight": table.clone() for i in range(3)}
        tensors["backbone.encoder.layers.0.rp_bucket"] = torch.zeros(17, 17, dtype=torch.int64)
    torch.save({"meta": {"epoch": 30}, "state_dict": tensors}, tmp_path / "onepeace_video_k400.pth")

    folder = convert(tmp_path / "onepeace_video_k400.pth", tmp_path / "out")

    config = read_config(folder)
    assert list(config.model.adapters) == ["video"]
    assert config.model.bias_per_block == per_block
    assert config.processors["video"] == {"size": 64, "mean": CLIP_MEAN, "std": CLIP_STD, "frames": 4, "stride": 32}
    golden, model = case("vision_video"), weight_files.load(folder)
    logits = model.predict({"video": {"pixels": golden.inputs["frames"].float().transpose(1, 2)}})
    cls = golden.outputs["features"].mean((2, 3, 4))
    expected = cls @ tensors["cls_head.fc_cls.weight"].T + tensors["cls_head.fc_cls.bias"]
    assert_near(logits, expected, TOKENS)


def test_larger_pictures_embed_as_after_the_originals_loader(checkpoint, tmp_path, bpe):
    golden, folder = case("resized"), convert(checkpoint, tmp_path / "out", bpe=bpe)
    config = with_image_size(read_config(folder), 96)
    assert (config.processors["image"]["size"], config.model.adapters["image"]["bias_grid"]) == (96, 6)
    state, name = weight_files.read_state(folder), "adapters.image.bias_tables.0"
    state[name] = resize(state[name], weight_files.expected(config)[name])
    assert torch.equal(state[name], golden.outputs["rel_pos_table_4_to_6"])
    weight_files.save(tmp_path / "large", state, config, tokenizer=folder / "tokenizer.json")
    model = weight_files.load(tmp_path / "large")
    assert_near(
        model({"image": {"pixels": golden.inputs["image"].float()}})["image"], golden.outputs["image_embed"], UNIT
    )


def test_numbers_too_large_for_float16_are_refused(tmp_path, bpe):
    tensors = released()
    tensors["image_proj.bias"] = torch.full((32,), 1e6)
    torch.save({"model": tensors}, tmp_path / "x.pt")

    with pytest.raises(UserError, match=r"heads\.image\.bias: has numbers up to 1e\+06"):
        convert(tmp_path / "x.pt", tmp_path / "out", bpe=bpe, dtype="float16")
    assert not (tmp_path / "out").exists()


ZEROS = torch.zeros(2)
LAYERS = "encoder_wrapper.fusion_model.layers"
BROKEN = [
    # Name (or part of it) -> what is in its place, None: nothing; and the tensor that the error names.
    ({"smell_proj.weight": ZEROS}, "smell_proj.weight"),
    ({"encoder.layers.0.T_Adapter.D_fc1.weight": ZEROS}, "blocks.0.clips.video.time.down.weight"),
    ({f"{LAYERS}.1.audio_ffn.2.bias": None}, "blocks.1.ffn.audio.norm.bias"),
    ({"encoder_wrapper.text_adapter.embed_tokens.weight": None}, "adapters.text.token_embed.weight"),
    ({"text_proj.weight": torch.zeros(32, 31)}, "heads.text.weight is (32, 31)"),
    ({"encoder_wrapper.text_adapter.rel_pos_table_list.1.weight": torch.zeros(18, 4)}, "bias tables"),
    (
        {"head.weight": torch.zeros(2, 32), "classify_head.classifier.3.weight": torch.zeros(2, 32)},
        "are both heads.classifier.out.weight",
    ),
]


@pytest.mark.parametrize(("changes", "message"), BROKEN)
def test_every_tensor_is_placed_or_named(tmp_path, bpe, changes, message):
    tensors = {name: tensor for name, tensor in released().items() if not any(part in name for part in changes)}
    tensors |= {name: tensor for name, tensor in changes.items() if tensor is not None}
    torch.save({"model": tensors}, tmp_path / "x.pt")

    with pytest.raises(UserError) as error:
        convert(tmp_path / "x.pt", tmp_path / "out", bpe=bpe)

    assert str(tmp_path / "x.pt") in str(error.value)
    assert message in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.pt"]


def test_text_needs_the_right_vocabulary(checkpoint, tmp_path, monkeypatch):
    import huggingface_hub

    other = small_vocabulary(tmp_path / "other", size=150)
    with pytest.raises(UserError, match="has 150 pieces, the model's table 160"):
        convert(checkpoint, tmp_path / "out", bpe=other)

    def offline(*args, **options):
        raise OSError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError, match=r"could not be fetched \(no route to host\); .* --bpe DIR"):
        convert(checkpoint, tmp_path / "out")
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *args, **options: small_vocabulary(tmp_path / "hub")
    )
    assert (convert(checkpoint, tmp_path / "out") / "tokenizer.json").is_file()


def test_released_vocabulary_is_accepted(shared):
    assert convert_module.vocabulary(shared / "official_bpe", 50264).get_vocab_size() == 50264


def test_golden_checkpoints_embed_as_the_original(shared, tmp_path, bpe):
    folders = {}
    for path in golden_checkpoints(shared, tmp_path):
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


def test_model_folder_converts_to_another_dtype_and_to_fewer_modalities(checkpoint, tmp_path, bpe):
    first = convert(checkpoint, tmp_path / "first", bpe=bpe)

    second = convert(first, tmp_path / "second", dtype="float16", modalities=["text"])

    names = weight_files.read_state(second)
    assert {tensor.dtype for tensor in names.values()} == {torch.float16}
    assert not [name for name in names if ".image." in name or ".audio." in name]
    assert (second / "tokenizer.json").read_bytes() == (first / "tokenizer.json").read_bytes()
    assert_embeds_as_golden(weight_files.load(second, dtype=torch.float32), ["text"], atol=0.02)
