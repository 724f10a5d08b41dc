"""Every layout of the original becomes a model folder whose numbers are the original's."""

import huggingface_hub
import pytest
import torch
from support.golden_cases import (
    CONVS,
    TOKENS,
    UNIT,
    assert_embeds_as_golden,
    assert_near,
    case,
    golden_model,
    head_batch,
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
)
from support.training import assert_same_tensors

from onepeace.errors import UserError
from onepeace.hub import weights as weight_files
from onepeace.hub.architectures import resize
from onepeace.hub.convert.infer import CLIP_MEAN, CLIP_STD
from onepeace.hub.folder import read_config
from onepeace.hub.weights import convert
from onepeace.plugins.timm import with_image_size

ALL = ["text", "image", "audio"]


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield


@pytest.fixture
def converted(checkpoint, tmp_path, bpe):
    """The folder of the released pretraining layout."""
    return convert(checkpoint, tmp_path / "converted", bpe=bpe)


def assert_sees_as_golden(model):
    golden = case("vision_classify")
    pixels = golden.inputs["image_64"].float()
    features = model.features({"image": {"pixels": pixels}})["image"]
    assert_near(features, golden.outputs["features_64"], TOKENS)


def test_released_layout_embeds_as_golden(converted):
    assert_embeds_as_golden(weight_files.load(converted), ALL)
    assert {file.name for file in converted.iterdir()} == {
        "MODEL_CARD.md",
        "SHA256SUMS",
        "config.yaml",
        "model.safetensors",
        "tokenizer.json",
    }


def test_configuration_of_the_released_layout(converted):
    config = read_config(converted)
    assert config.model.adapters["audio"]["convs"] == CONVS
    assert config.processors["audio"] == {
        "sample_rate": 16000,
        "max_seconds": 15.0,
        "min_seconds": 1.0,
    }
    assert config.processors["image"]["size"] == 64
    assert config.processors["text"]["max_tokens"] == 70


def test_sizes_come_from_the_tensors_without_settings(converted, convert_tensors):
    assert read_config(convert_tensors(released())) == read_config(converted)


def test_sizes_come_from_the_tensors_of_an_old_trainer(converted, tmp_path, bpe):
    path = old_trainer_file(tmp_path / "old.pt", released())
    assert read_config(convert(path, tmp_path / "out", bpe=bpe)) == read_config(converted)


@pytest.mark.parametrize(
    ("modalities", "head_type", "max_seconds"),
    [
        ("text image", "vl", None),
        ("text audio", "al", 20.0),
    ],
)
def test_retrieval_model_has_a_table_per_block_and_a_temperature(convert_tensors, modalities, head_type, max_seconds):
    tensors = state(*modalities.split(), heads=True, tables=3)
    folder = convert_tensors(tensors, cfg({"head_type": head_type, "max_duration": 20}))

    model = weight_files.load(folder)
    assert_same_tensors(
        weight_files.read_state(folder), golden_model(modalities, projections=True, bias_per_block=True).state_dict()
    )
    assert_embeds_as_golden(model, modalities.split())
    assert model.logit_scale == weights()["logit_scale"]
    assert read_config(folder).processors.get("audio", {}).get("max_seconds") == max_seconds


def test_trainer_file_keeps_its_decoder(convert_tensors):
    tensors = state("text", "audio", heads=True, decoder=True)
    folder = convert_tensors(tensors, cfg(), "checkpoint_last.pt")

    assert_same_tensors(
        weight_files.read_state(folder), golden_model("text audio", projections=True, decoder=True).state_dict()
    )
    assert weight_files.load(folder).decoder is not None


@pytest.mark.parametrize(
    ("name", "modalities", "task", "settings"),
    [
        ("vqa", "text image", {"_name": "vqa", "num_classes": 11}, {"use_pooler": True}),
        ("nlvr2", "text image", {"use_two_images": True}, {}),
        ("grounding", "text image", {"_name": "refcoco"}, {"use_image_features": True}),
        ("grounding_text_features", "text image", {}, {"use_image_features": False}),
        ("avqa", "text audio", {"_name": "avqa"}, {}),
        ("classify_audio", "audio", {"_name": "vggsound"}, {}),
        ("classify_image", "image", {}, {}),
    ],
)
def test_logits_of_a_classifier(convert_tensors, name, modalities, task, settings):
    golden = case(name)
    tensors = state(*modalities.split(), tables=3) | golden.weights
    folder = convert_tensors(tensors, cfg(task, **settings))

    model = weight_files.load(folder)
    assert_near(model.predict(head_batch(name)), golden.outputs["logits"], TOKENS)
    assert not model.config.projections
    tasks = {"vqa": "answer", "grounding": "box", "avqa": "choice"}
    assert model.config.heads["classifier"].get("task") == tasks.get(name)
    if "text" in modalities:
        assert read_config(folder).processors["text"]["lower"] == (name != "avqa")


def test_features_of_a_vision_branch_in_a_pickle(tmp_path):
    content = {"model": vision_branch(), "__author__": "ofa", "matching_heuristics": True}
    path = bare_pickle(tmp_path / "one-peace-vision.pkl", content)

    folder = convert(path, tmp_path / "out")

    assert not (folder / "tokenizer.json").exists()
    assert_sees_as_golden(weight_files.load(folder))


def test_logits_of_the_imagenet_model(convert_tensors):
    golden = case("vision_classify")
    tensors = vision_branch() | golden.weights
    table = tensors.pop("image_adapter.rel_pos_table_list.0.weight")
    for block in range(3):
        tensors[f"encoder.layers.{block}.rel_pos_table.weight"] = table.clone()

    model = weight_files.load(convert_tensors(tensors))

    assert model.config.bias_per_block
    pixels = golden.inputs["image_64"].float()
    logits = model.predict({"image": {"pixels": pixels}})
    assert_near(logits, golden.outputs["logits_64"], TOKENS)


def test_logits_of_the_video_network(tmp_path):
    tensors = video_network()
    path = tmp_path / "onepeace_video_k400.pth"
    torch.save({"meta": {"epoch": 30}, "state_dict": tensors}, path)

    folder = convert(path, tmp_path / "out")

    config = read_config(folder)
    assert list(config.model.adapters) == ["video"]
    assert config.processors["video"] == {
        "size": 64,
        "mean": CLIP_MEAN,
        "std": CLIP_STD,
        "frames": 4,
        "stride": 32,
    }
    golden = case("vision_video")
    pixels = golden.inputs["frames"].float().transpose(1, 2)
    logits = weight_files.load(folder).predict({"video": {"pixels": pixels}})
    cls = golden.outputs["features"].mean((2, 3, 4))
    expected = cls @ tensors["cls_head.fc_cls.weight"].T + tensors["cls_head.fc_cls.bias"]
    assert_near(logits, expected, TOKENS)


def test_larger_pictures_embed_as_after_the_original_loader(converted, tmp_path):
    golden = case("resized")
    table = "adapters.image.bias_tables.0"
    config = with_image_size(read_config(converted), 96)
    tensors = weight_files.read_state(converted)
    tensors[table] = resize(tensors[table], weight_files.expected(config)[table])
    tokenizer = converted / "tokenizer.json"

    model = weight_files.load(weight_files.save(tmp_path / "large", tensors, config, tokenizer=tokenizer))

    assert config.processors["image"]["size"] == 96
    assert config.model.adapters["image"]["bias_grid"] == 6
    assert torch.equal(tensors[table], golden.outputs["rel_pos_table_4_to_6"])
    pixels = golden.inputs["image"].float()
    vectors = model({"image": {"pixels": pixels}})["image"]
    assert_near(vectors, golden.outputs["image_embed"], UNIT)


def test_numbers_too_large_for_float16_are_refused(convert_tensors, tmp_path):
    tensors = released()
    tensors["image_proj.bias"] = torch.full((32,), 1e6)

    with pytest.raises(UserError, match=r"heads\.image\.bias: .*1e\+06"):
        convert_tensors(tensors, dtype="float16")

    assert not (tmp_path / "out").exists()


LAYERS = "encoder_wrapper.fusion_model.layers"
MISPLACED = [
    ("smell_proj.weight", torch.zeros(2), "smell_proj.weight"),
    ("text_proj.weight", torch.zeros(32, 31), "heads.text.weight is (32, 31)"),
    ("encoder_wrapper.text_adapter.rel_pos_table_list.1.weight", torch.zeros(18, 4), "bias tables"),
    (f"{LAYERS}.1.audio_ffn.2.bias", None, "blocks.1.ffn.audio.norm.bias"),
    ("encoder_wrapper.text_adapter.embed_tokens.weight", None, "adapters.text.token_embed.weight"),
]
"""Name of a tensor, what is in its place (None: nothing), and what the error names."""


@pytest.mark.parametrize(("name", "tensor", "part"), MISPLACED, ids=[name for name, *_ in MISPLACED])
def test_misplaced_tensor_is_named(convert_tensors, tmp_path, name, tensor, part):
    tensors = released()
    tensors[name] = tensor
    if tensor is None:
        del tensors[name]

    with pytest.raises(UserError) as error:
        convert_tensors(tensors)

    assert str(tmp_path / "checkpoint.pt") in str(error.value)
    assert part in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_two_tensors_in_one_place_are_refused(convert_tensors):
    tensors = released()
    tensors["head.weight"] = torch.zeros(2, 32)
    tensors["classify_head.classifier.3.weight"] = torch.zeros(2, 32)

    with pytest.raises(UserError, match=r"both heads\.classifier\.out\.weight"):
        convert_tensors(tensors)


def test_vocabulary_of_another_size_is_refused(checkpoint, tmp_path):
    folder = small_vocabulary(tmp_path / "other", size=150)
    with pytest.raises(UserError, match=r"150 .*160"):
        convert(checkpoint, tmp_path / "out", bpe=folder)


def test_vocabulary_that_cannot_be_fetched_names_the_option(checkpoint, tmp_path, monkeypatch):
    def offline(*args, **options):
        raise OSError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError, match=r"no route to host.* --bpe"):
        convert(checkpoint, tmp_path / "out")


@pytest.fixture(scope="module")
def golden_folders(shared, tmp_path_factory, bpe):
    """The checkpoints of the original's layouts, converted."""
    root = tmp_path_factory.mktemp("golden")
    folders = {}
    for path in golden_checkpoints(shared, root):
        folders[path.stem] = convert(path, root / path.stem, bpe=bpe)
    return folders


def test_golden_pretrained_models(golden_folders):
    model = weight_files.load(golden_folders["pretrained_release_layout"])
    assert_embeds_as_golden(model, ALL)

    rounded = weight_files.load(golden_folders["pretrained_without_buffers_bf16"], dtype=torch.float32)
    assert_embeds_as_golden(rounded, ALL, atol=0.02)


def test_golden_model_of_stage_one(golden_folders):
    model = weight_files.load(golden_folders["stage1_trainer_layout_bf16"], dtype=torch.float32)
    assert_embeds_as_golden(model, ["text", "image"], atol=0.02)
    assert model.decoder is not None


def test_golden_finetuned_models(golden_folders):
    golden = case("classify_audio")
    model = weight_files.load(golden_folders["finetune_vggsound_layout"])
    assert_near(model.predict(golden.batch()), golden.outputs["logits"], TOKENS)
    assert_sees_as_golden(weight_files.load(golden_folders["vision_branch"]))


@pytest.mark.parametrize("name", ["tasks.yaml", "terms.safetensors"])
def test_what_training_left_in_a_model_folder_goes_along(converted, tmp_path, name):
    (converted / name).write_bytes(b"of a run")

    folder = convert(converted, tmp_path / "smaller", dtype="float16")

    assert (folder / name).read_bytes() == b"of a run"


def test_model_folder_in_another_dtype_with_fewer_modalities(converted, tmp_path):
    folder = convert(converted, tmp_path / "smaller", dtype="float16", modalities=["text"])

    tensors = weight_files.read_state(folder)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert not [name for name in tensors if ".image." in name or ".audio." in name]
    assert (folder / "tokenizer.json").read_bytes() == (converted / "tokenizer.json").read_bytes()
    assert_embeds_as_golden(weight_files.load(folder, dtype=torch.float32), ["text"], atol=0.02)
