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

from onepeace.errors import UserError
from onepeace.hub import weights as weight_files
from onepeace.hub.convert.convert import convert
from onepeace.hub.folder import read_config
from onepeace.plugins import timm as plugin
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


def test_parameters_of_other_modalities_are_left_out():
    names = create_tiny().trunk.state_dict()
    assert not [name for name in names if "text" in name or "audio" in name or "heads" in name]


@pytest.mark.parametrize("indices", [(0, 2), (2, 0), (-3, -1), [1]])
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


def test_intermediates_are_in_ascending_order(branch, pixels):
    final, (first, last) = branch.forward_intermediates(pixels, indices=[2, 0], norm=True)

    assert torch.equal(final, branch.forward_features(pixels))
    assert_same(last.flatten(2).mT, final[:, 1:], atol=1e-6)
    assert not torch.allclose(first, last)
    assert len(branch.forward_intermediates(pixels, intermediates_only=True)) == 3


def test_intermediates_without_the_norm(branch, pixels):
    _, (normed,) = branch.forward_intermediates(pixels, indices=[0], norm=True)
    (plain,) = branch.forward_intermediates(pixels, indices=[0], intermediates_only=True)

    norm = branch.trunk.norms["image"]
    assert_same(normed, norm(plain.movedim(1, 3)).movedim(3, 1), atol=1e-6)


def test_intermediates_as_tokens(branch, pixels):
    options = {
        "return_prefix_tokens": True,
        "norm": True,
        "output_fmt": "NLC",
        "intermediates_only": True,
    }
    ((patches, cls),) = branch.forward_intermediates(pixels, 1, **options)

    tokens = torch.cat([cls, patches], dim=1)
    assert_same(tokens, branch.forward_features(pixels), atol=1e-6)
    (layer,) = branch.get_intermediate_layers(pixels, 1, norm=True)
    assert torch.equal(layer, patches)


def test_intermediates_as_a_dictionary(branch, pixels):
    options = {"return_prefix_tokens": True, "norm": True}
    final, ((patches, cls),) = branch.forward_intermediates(pixels, 1, **options)
    outputs = branch.forward_intermediates(pixels, 1, output_dict=True, **options)

    assert torch.equal(outputs["image_features"], final)
    assert torch.equal(outputs["image_intermediates"][0], patches)
    assert torch.equal(outputs["image_intermediates_prefix"][0], cls)


def test_layers_of_dino_as_maps(branch, pixels):
    _, (expected,) = branch.forward_intermediates(pixels, 1, norm=True)
    (layer,) = branch.get_intermediate_layers(pixels, [2], reshape=True, norm=True)
    assert torch.equal(layer, expected)


def test_intermediates_stop_early(branch, pixels):
    _, (first,) = branch.forward_intermediates(pixels, [0])
    blocks_run = []
    for block in branch.trunk.blocks:
        block.register_forward_hook(lambda block, *_: blocks_run.append(block))

    _, (early,) = branch.forward_intermediates(pixels, [0], stop_early=True)

    assert blocks_run == [branch.trunk.blocks[0]]
    assert torch.equal(early, first)


def test_unknown_output_format_is_refused(branch, pixels):
    with pytest.raises(UserError, match="NHWC"):
        branch.forward_intermediates(pixels, output_fmt="NHWC")


def mean_of_patches(tokens):
    return tokens[:, 1:].mean(1)


def max_of_patches(tokens):
    return tokens[:, 1:].amax(1)


POOLS = {
    "token": lambda tokens: tokens[:, 0],
    "avg": mean_of_patches,
    "max": max_of_patches,
    "avgmax": lambda tokens: (mean_of_patches(tokens) + max_of_patches(tokens)) / 2,
    "": lambda tokens: tokens,
}


@pytest.mark.parametrize("pool", POOLS)
def test_pooling_equals_plain_formulas(folder, pixels, pool):
    model = create(folder, global_pool=pool, num_classes=5)
    tokens = model.forward_features(pixels)
    pooled = POOLS[pool](tokens)

    assert_same(model.forward_head(tokens, pre_logits=True), pooled, atol=1e-6)
    assert model(pixels).shape == (*pooled.shape[:-1], 5)
    assert_same(model(pixels), model.get_classifier()(pooled), atol=1e-6)


def test_new_classifier_has_its_classes_and_pooling(branch, pixels):
    branch.reset_classifier(3, "avg")
    assert branch(pixels).shape == (2, 3)
    assert branch.num_classes == 3
    assert branch.global_pool == "avg"

    branch.reset_classifier(0)
    assert_same(branch(pixels), mean_of_patches(branch.forward_features(pixels)), atol=1e-6)


def test_new_classifier_refuses_unknown_pooling(branch):
    with pytest.raises(UserError, match="map"):
        branch.reset_classifier(2, "map")


@pytest.fixture(scope="module")
def vision(tmp_path_factory):
    """The released vision branch's layout with a classifier of 9 classes, converted."""
    path = tmp_path_factory.mktemp("vision")
    tensors = vision_branch() | case("vision_classify").weights
    torch.save({"model": tensors}, path / "one-peace-vision.pkl")
    return convert(path / "one-peace-vision.pkl", path / "vision")


@pytest.mark.parametrize("size", [64, 96])
def test_converted_vision_branch_matches_golden(vision, size):
    """The released layout: mean of the patches, its norm, classifier; the table grows as in the original."""
    golden = case("vision_classify")
    pixels = golden.inputs[f"image_{size}"].float()
    model = create(vision, img_size=size)

    assert model.num_classes == 9
    assert model.global_pool == "avg"
    assert input_size(model) == (3, size, size)
    assert_near(model.forward_features(pixels), golden.outputs[f"features_{size}"], TOKENS)
    assert_near(model(pixels), golden.outputs[f"logits_{size}"], TOKENS)


def test_other_classes_keep_the_norm_of_the_classifier(vision):
    golden = case("vision_classify")
    pixels = golden.inputs["image_64"].float()
    model = create(vision, num_classes=4, img_size=64)

    assert model(pixels).shape == (2, 4)
    pooled = model.forward_head(model.forward_features(pixels), pre_logits=True)
    own_head = create(vision, img_size=64).head
    assert_near(own_head(pooled), golden.outputs["logits_64"], TOKENS)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 16), (64, 96)])
def test_pictures_of_other_sizes(folder, branch, height, width):
    pixels = torch.randn(1, 3, height, width)

    assert branch.forward_features(pixels).shape == (1, 1 + height * width // 256, 32)
    resized = create(folder, img_size=(64, 32))
    assert torch.equal(resized(pixels), branch(pixels))


def test_size_that_is_not_a_rectangle_of_patches(branch):
    with pytest.raises(ValueError, match="40 x 32"):
        branch(torch.randn(1, 3, 40, 32))


def test_img_size_of_the_transform(folder, pictures):
    model = create(folder, img_size=(64, 32))

    assert input_size(model) == (3, 64, 32)
    assert transform_of(model)(pictures[0]).shape == (3, 64, 32)


def test_img_size_of_a_square_resizes_the_table(folder, branch):
    pixels = torch.randn(1, 3, 64, 64)
    large = create(folder, img_size=64)
    branch.set_input_size(64)

    (table, *_) = large.trunk.adapters["image"].bias_tables
    assert table.shape == (7 * 7 + 3, 4)
    assert torch.equal(branch(pixels), large(pixels))
    assert branch.trunk.config == large.trunk.config
    assert input_size(branch) == (3, 64, 64)


@pytest.mark.parametrize("size", [(32, 40), 40])
def test_img_size_of_partial_patches_is_refused(folder, branch, size):
    with pytest.raises(UserError, match=r"img_size \d+ x 40"):
        create(folder, img_size=size)
    with pytest.raises(UserError, match=r"img_size \d+ x 40"):
        branch.set_input_size(size)


def test_other_patch_size_is_refused(branch):
    with pytest.raises(UserError, match="patch_size"):
        branch.set_input_size(patch_size=8)


@pytest.mark.parametrize("decay", [None, 0.5])
def test_optimizer_groups_are_those_of_our_recipes(folder, decay):
    model = create(folder, num_classes=5)
    name_of = {parameter: name for name, parameter in model.named_parameters()}

    settings = {}
    optimizer = timm.optim.create_optimizer_v2(model, opt="adamw", weight_decay=0.1, layer_decay=decay)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            settings[name_of[parameter]] = (group.get("lr_scale", 1.0), group["weight_decay"])

    expected = {"head.weight": (1.0, 0.1), "head.bias": (1.0, 0.0)}
    for group in parameter_groups(model.trunk, OptimConfig(weight_decay=0.1, layer_decay=decay)):
        for name, _ in group["params"]:
            expected[f"trunk.{name}"] = (group["lr_scale"], group["weight_decay"])
    assert settings == expected
    assert layer_id("adapters.image.bias_tables.2", 3) == 3


def train(model, pixels):
    """Losses of three steps, and the gradients of the first."""
    torch.manual_seed(0)
    labels = torch.tensor([0, 1])
    optimizer = timm.optim.create_optimizer_v2(model, opt="adamw", lr=1e-3, layer_decay=0.9)
    losses = []
    gradients = {}
    for _ in range(3):
        loss = torch.nn.functional.cross_entropy(model(pixels), labels)
        optimizer.zero_grad()
        loss.backward()
        for name, parameter in model.named_parameters():
            gradients.setdefault(name, parameter.grad.clone())
        optimizer.step()
        losses.append(loss.item())
    return losses, gradients


def test_training_reaches_all_parameters(folder, pixels):
    model = create(folder, num_classes=2, global_pool="avg")
    losses, gradients = train(model.train(), pixels)

    assert losses[2] < losses[1] < losses[0]
    for name, gradient in gradients.items():
        assert gradient.any(), name


def test_gradient_checkpointing_changes_nothing(folder, pixels):
    torch.manual_seed(0)
    plain = create(folder, num_classes=2).train()
    torch.manual_seed(0)
    checkpointed = create(folder, num_classes=2).train()

    checkpointed.set_grad_checkpointing(True)

    assert all(block.gradient_checkpointing for block in checkpointed.trunk.blocks)
    assert not any(block.gradient_checkpointing for block in plain.trunk.blocks)
    _, plain_gradients = train(plain, pixels)
    _, gradients = train(checkpointed, pixels)
    for name, gradient in plain_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-6, rtol=1e-4)


def test_device_and_dtype_of_model_and_new_classifier():
    model = timm.create_model(TINY, device="meta", dtype=torch.bfloat16).eval()
    model.reset_classifier(3)

    assert {tensor.device.type for tensor in model.parameters()} == {"meta"}
    assert {tensor.dtype for tensor in model.parameters()} == {torch.bfloat16}
    assert not any(module.training for module in model.modules())
    assert f"{model.default_cfg['first_conv']}.weight" in model.state_dict()


def test_drop_rates_reach_blocks_and_head(folder):
    model = create(folder, drop_path_rate=0.3, drop_rate=0.2)

    rates = [block.drop_path.rate for block in model.trunk.blocks]
    assert rates == pytest.approx([0.0, 0.15, 0.3])
    assert model.head_drop.p == 0.2
    assert {block.drop_path.rate for block in create_tiny().trunk.blocks} == {0.0}


def test_unknown_option_is_refused(folder):
    create(folder, dynamic_img_size=True)
    with pytest.raises(TypeError, match="attn_drop_rate"):
        create(folder, attn_drop_rate=0.1)


@pytest.fixture(params=["folder", "tiny"])
def create_any(request, folder):
    """Creates the model of the folder, or the bundled one, which has another stem."""
    if request.param == "tiny":
        return create_tiny
    return lambda **options: create(folder, **options)


def test_one_channel_counts_as_three_equal_ones(create_any):
    pixels = torch.randn(1, 1, 64, 64)
    expected = create_any()(pixels.expand(-1, 3, -1, -1))
    model = create_any(in_chans=1)
    torch.testing.assert_close(model(pixels), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("channels", [1, 4])
def test_pictures_of_other_channels(create_any, channels):
    model = create_any(in_chans=channels)

    assert model.trunk.get_parameter(model.first_conv).shape[1] == channels
    assert model(torch.randn(1, channels, 64, 64)).isfinite().all()
    with pytest.raises(ValueError, match=f"B, {channels}, H, W"):
        model(torch.randn(1, 3, 64, 64))


@pytest.fixture
def save_and_load(tmp_path):
    """Saves a model as timm does, and loads it."""

    def run(model, **options):
        timm.models.save_for_hf(model, tmp_path / "saved", safe_serialization=True)
        return timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True, **options).eval()

    return run


@pytest.mark.parametrize("channels", [1, 4])
def test_saved_model_with_other_channels(folder, branch, save_and_load, channels):
    loaded = save_and_load(branch, in_chans=channels)
    adapted = create(folder, in_chans=channels)

    pixels = torch.randn(1, channels, 64, 64)
    assert torch.equal(loaded(pixels), adapted(pixels))


def test_saved_model_keeps_size_and_pooling(folder, save_and_load):
    model = create(folder, num_classes=3, global_pool="avg", img_size=64)
    loaded = save_and_load(model)

    pixels = torch.randn(1, 3, 64, 64)
    assert torch.equal(loaded(pixels), model(pixels))
    assert loaded.trunk.adapters["image"].bias_grid == 4
    assert loaded.global_pool == "avg"


def test_saved_model_keeps_a_size_that_was_set_later(branch, save_and_load):
    branch.set_input_size(64)
    loaded = save_and_load(branch)

    pixels = torch.randn(1, 3, 64, 64)
    assert torch.equal(loaded(pixels), branch(pixels))


def test_saved_model_with_other_classes(folder, pixels, save_and_load):
    model = create(folder, num_classes=3)
    loaded = save_and_load(model, num_classes=7)

    assert torch.equal(loaded.forward_features(pixels), model.forward_features(pixels))
    assert loaded(pixels).shape == (2, 7)


def test_fx_sees_the_trunk_as_one_node(folder, pixels):
    model = create(folder, num_classes=3)
    _, names = timm.models.get_graph_node_names(model)
    extractor = timm.models.create_feature_extractor(model, {names[-1]: "out"})

    assert torch.equal(torch.fx.symbolic_trace(model)(pixels), model(pixels))
    assert torch.equal(extractor(pixels)["out"], model(pixels))


def test_segmentation_network_of_transformers_trains_it(folder, monkeypatch):
    from transformers import TimmBackboneConfig, UperNetConfig, UperNetForSemanticSegmentation

    monkeypatch.setitem(plugin.CONFIGS, "onepeace", read_config(folder))  # instead of no configuration
    backbone = TimmBackboneConfig(backbone="onepeace", out_indices=[0, 1, 2])
    config = UperNetConfig(backbone_config=backbone, num_labels=3, hidden_size=16, use_auxiliary_head=False)
    network = UperNetForSemanticSegmentation(config)

    labels = torch.randint(3, (2, 48, 96))

    out = network(torch.randn(2, 3, 48, 96), labels=labels)
    out.loss.backward()

    assert out.logits.shape == (2, 3, 48, 96)
    for name, parameter in network.named_parameters():
        assert parameter.grad.any(), name


def test_backbone_of_transformers_has_the_weights():
    from transformers import TimmBackbone

    backbone = TimmBackbone.from_pretrained("onepeace_tiny", out_indices=[0, 2]).eval()
    pixels = torch.randn(1, 3, 64, 96)

    maps = create_tiny(features_only=True, out_indices=(0, 2))(pixels)
    for feature_map, expected in zip(backbone(pixels).feature_maps, maps, strict=True):
        assert torch.equal(feature_map, expected)
    assert maps[-1].shape == (1, 256, 2, 3)
