"""The image branch in timm, against timm itself and against our own models."""

import pytest
import timm
import timm.data
import timm.optim
import torch
from PIL import Image
from support.embedding import assert_same
from support.golden_cases import TOKENS, assert_near, case
from support.hub_layouts import vision_branch
from support.random_model import ADAPTERS, save_random_model

import onepeace.plugins.timm  # noqa: F401  (registers the models)
from onepeace.errors import UserError
from onepeace.hub import weights as weight_files
from onepeace.hub.weights import convert
from onepeace.train.optim import layer_id, parameter_groups
from onepeace.train.sections import OptimConfig

TINY = "onepeace_tiny.image"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of pictures and texts of 48 x 48 pixels, width 32, with three blocks and a table for each."""
    path = tmp_path_factory.mktemp("timm") / "model"
    adapters = {
        "text": ADAPTERS["text"],
        "image": {"patch_size": 16, "grid": 3, "bias_grid": 3},
    }
    return save_random_model(path, ("text", "image"), bias_per_block=True, depth=3, adapters=adapters)


@pytest.fixture
def branch(folder):
    return create(folder)


@pytest.fixture
def pixels():
    return torch.randn(2, 3, 32, 48)


def create(folder, **options):
    overlay = {"file": str(folder)}
    return timm.create_model("onepeace", pretrained=True, pretrained_cfg_overlay=overlay, **options).eval()


def create_tiny(**options):
    return timm.create_model(TINY, pretrained=True, **options).eval()


def transform_of(model):
    return timm.data.create_transform(**timm.data.resolve_model_data_config(model))


def input_size(model):
    return timm.data.resolve_model_data_config(model)["input_size"]


def test_features_of_the_bundled_model(tiny, samples):
    picture = Image.open(samples / "images" / "dog.jpg")
    model = create_tiny()

    pixels = transform_of(model)(picture).unsqueeze(0)

    features = tiny.features({"image": picture})["image"]
    assert_same(model(pixels)[0], features.cls, atol=1e-4)
    assert_same(model.forward_features(pixels)[0, 1:], features.features, atol=1e-4)
    assert TINY in timm.list_pretrained()


@pytest.mark.parametrize("indices", [(2, 0), (-3, -1)])
def test_features_only_gives_maps_of_blocks(folder, pixels, indices):
    blocks = sorted(index % 3 for index in indices)
    model = create(folder, features_only=True, out_indices=indices)
    module = weight_files.load(folder, modalities=["image"])

    maps = model(pixels)

    stems = module.stems({"image": {"pixels": pixels}})
    encoded = module.encode(stems, out_indices=blocks)["image"]
    for feature_map, intermediate in zip(maps, encoded.intermediates, strict=True):
        assert feature_map.shape == (2, 32, 2, 3)
        assert torch.equal(feature_map, intermediate.feature_map())
    assert model.feature_info.channels() == [32] * len(blocks)
    assert model.feature_info.reduction() == [16] * len(blocks)
    assert sorted(model.feature_info.out_indices) == blocks
    assert len(model.model.trunk.blocks) == max(blocks) + 1
    assert model.model.trunk.norms is None


@pytest.fixture(scope="module")
def vision(tmp_path_factory):
    """The released vision branch's layout, converted."""
    path = tmp_path_factory.mktemp("vision")
    tensors = vision_branch() | case("vision_classify").weights
    torch.save({"model": tensors}, path / "one-peace-vision.pkl")
    return convert(path / "one-peace-vision.pkl", path / "vision")


@pytest.mark.parametrize("size", [64, 96])
def test_converted_vision_branch_matches_golden(vision, size):
    """The table of positions grows as in the original."""
    golden = case("vision_classify")
    pixels = golden.inputs[f"image_{size}"].float()
    model = create(vision, img_size=size)

    assert model.global_pool == "avg"
    assert input_size(model) == (3, size, size)
    assert_near(model.forward_features(pixels), golden.outputs[f"features_{size}"], TOKENS)
    assert create(vision, num_classes=4, img_size=size)(pixels).shape == (2, 4)


def test_img_size_that_is_no_square_only_sets_the_transform(folder, branch, pictures):
    model = create(folder, img_size=(64, 32))
    pixels = transform_of(model)(pictures[0]).unsqueeze(0)

    assert pixels.shape == (1, 3, 64, 32)
    assert torch.equal(model(pixels), branch(pixels))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"img_size": (32, 40)}, "img_size 32 x 40"),
        ({"in_chans": 1}, "in_chans"),
    ],
)
def test_unknown_values_are_refused(folder, options, words):
    with pytest.raises(UserError, match=words):
        create(folder, **options)


def test_optimizer_groups_are_those_of_our_recipes(folder):
    model = create(folder, num_classes=5)
    name_of = {parameter: name for name, parameter in model.named_parameters()}

    settings = {}
    optimizer = timm.optim.create_optimizer_v2(model, opt="adamw", weight_decay=0.1, layer_decay=0.5)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            settings[name_of[parameter]] = (group.get("lr_scale", 1.0), group["weight_decay"])

    expected = {"head.weight": (1.0, 0.1), "head.bias": (1.0, 0.0)}
    for group in parameter_groups(model.trunk, OptimConfig(weight_decay=0.1, layer_decay=0.5)):
        for name, _ in group["params"]:
            expected[f"trunk.{name}"] = (group["lr_scale"], group["weight_decay"])
    assert settings == expected
    assert layer_id("adapters.image.bias_tables.2", 3) == 3


def test_saved_model_keeps_size_and_pooling(folder, tmp_path):
    model = create(folder, num_classes=3, global_pool="avg", img_size=64)
    timm.models.save_for_hf(model, tmp_path / "saved", safe_serialization=True)

    loaded = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True).eval()

    pixels = torch.randn(1, 3, 64, 64)
    assert torch.equal(loaded(pixels), model(pixels))
    assert loaded.global_pool == "avg"


def test_backbone_of_transformers_has_the_weights():
    from transformers import TimmBackbone

    backbone = TimmBackbone.from_pretrained("onepeace_tiny", out_indices=[0, 2]).eval()
    pixels = torch.randn(1, 3, 64, 96)

    maps = create_tiny(features_only=True, out_indices=(0, 2))(pixels)
    for feature_map, expected in zip(backbone(pixels).feature_maps, maps, strict=True):
        assert torch.equal(feature_map, expected)
