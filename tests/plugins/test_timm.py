"""The image branch in timm, against timm itself and against our own models."""

import numpy as np
import pytest
import timm
import timm.data
import timm.optim
import torch
from PIL import Image
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
    """A model of pictures and texts of 32 x 32 pixels, width 32, with two blocks and a table for each."""
    path = tmp_path_factory.mktemp("timm") / "model"
    adapters = {"text": ADAPTERS["text"], "image": {"patch_size": 16, "grid": 3, "bias_grid": 3}}
    return save_random_model(path, ("text", "image"), bias_per_block=True, depth=3, adapters=adapters)


@pytest.fixture(scope="module")
def vision(tmp_path_factory):
    """The released vision branch's layout with a classifier of 9 classes, converted."""
    path = tmp_path_factory.mktemp("vision")
    torch.save({"model": {**vision_branch(), **case("vision_classify").weights}}, path / "one-peace-vision.pkl")
    return convert(path / "one-peace-vision.pkl", path / "vision")


@pytest.fixture
def small_size(monkeypatch, folder):
    """The sizes of that model are those of "onepeace" where no folder is given."""
    monkeypatch.setitem(plugin.CONFIGS, "onepeace", read_config(folder))


def create(source, **options):
    return timm.create_model(
        "onepeace", pretrained=True, pretrained_cfg_overlay={"file": str(source)}, **options
    ).eval()


def pictures(*sizes):
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


def transform_of(model):
    return timm.data.create_transform(**timm.data.resolve_model_data_config(model))


@torch.no_grad()
def test_features_of_the_bundled_model_are_those_of_load(tiny, samples):
    model = timm.create_model(TINY, pretrained=True).eval()
    picture = Image.open(samples / "images" / "dog.jpg")
    pixels = transform_of(model)(picture).unsqueeze(0)
    want = tiny.features({"image": picture})["image"]
    assert model(pixels).shape == (1, 256)
    torch.testing.assert_close(model(pixels)[0], want.cls, atol=1e-4, rtol=0)
    torch.testing.assert_close(model.forward_features(pixels)[0, 1:], want.features, atol=1e-4, rtol=0)
    assert TINY in timm.list_pretrained()
    assert {key for key in model.trunk.state_dict() if "text" in key or "audio" in key or "heads" in key} == set()


@torch.no_grad()
@pytest.mark.parametrize("indices", [(0, 2), (2, 0), (-3, -1), [1]])
def test_features_only_gives_maps_of_the_blocks(folder, indices):
    net = create(folder, features_only=True, out_indices=indices)
    count = len(indices)
    assert (net.feature_info.channels(), net.feature_info.reduction()) == ([32] * count, [16] * count)
    assert sorted(net.feature_info.out_indices) == sorted(i % 3 for i in indices)
    pixels = torch.randn(2, 3, 32, 64)
    maps = net(pixels)
    own = weight_files.load(folder, modalities=["image"])
    encoded = own.encode(own.stems({"image": {"pixels": pixels}}), out_indices=sorted(i % 3 for i in indices))
    wanted = [features.feature_map() for features in encoded["image"].intermediates]
    for found, want in zip(maps, wanted, strict=True):
        assert found.shape == (2, 32, 2, 4)
        assert torch.equal(found, want)
    assert len(net.model.trunk.blocks) == max(i % 3 for i in indices) + 1
    assert net.model.trunk.norms is None


@torch.no_grad()
def test_forward_intermediates_follows_its_options(folder):
    model, pixels = create(folder), torch.randn(2, 3, 32, 48)
    final, (first, last) = model.forward_intermediates(pixels, indices=[2, 0], norm=True)
    assert torch.equal(final, model.forward_features(pixels))
    assert torch.allclose(last.flatten(2).transpose(1, 2), final[:, 1:], atol=1e-6)
    assert not torch.allclose(first, last)
    plain = model.forward_intermediates(pixels, indices=[0], intermediates_only=True)[0]
    normed = model.trunk.norms["image"](plain.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert torch.allclose(normed, first, atol=1e-6)
    ((patches, cls),) = model.forward_intermediates(
        pixels, 1, return_prefix_tokens=True, norm=True, output_fmt="NLC", intermediates_only=True
    )
    assert torch.allclose(torch.cat([cls, patches], dim=1), final, atol=1e-6)
    assert len(model.forward_intermediates(pixels, intermediates_only=True)) == 3
    named = model.forward_intermediates(pixels, 1, return_prefix_tokens=True, norm=True, output_dict=True)
    assert torch.equal(named["image_features"], final)
    assert torch.equal(named["image_intermediates"][0], last)
    assert torch.equal(named["image_intermediates_prefix"][0], cls)
    assert torch.equal(model.get_intermediate_layers(pixels, 1, norm=True)[0], patches)
    assert torch.equal(model.get_intermediate_layers(pixels, [2], reshape=True, norm=True)[0], last)
    runs = []
    for block in model.trunk.blocks:
        block.register_forward_hook(lambda *_: runs.append(1))
    early, _ = model.forward_intermediates(pixels, [0], stop_early=True)
    assert len(runs) == 1
    assert torch.allclose(early[:, 1:].transpose(1, 2).unflatten(2, (2, 3)), first, atol=1e-6)
    with pytest.raises(UserError, match="output_fmt is 'NHWC'; it can be 'NCHW' or 'NLC'"):
        model.forward_intermediates(pixels, output_fmt="NHWC")
    with pytest.raises(AssertionError):  # timm's own
        model.forward_intermediates(pixels, [3])


@torch.no_grad()
def test_pooling_and_classifier_can_be_chosen_and_reset(folder):
    pixels = torch.randn(2, 3, 32, 32)
    tokens = create(folder).forward_features(pixels)
    pooled = {
        "token": tokens[:, 0],
        "avg": tokens[:, 1:].mean(1),
        "max": tokens[:, 1:].amax(1),
        "avgmax": (tokens[:, 1:].mean(1) + tokens[:, 1:].amax(1)) / 2,
        "": tokens,
    }
    for pool, want in pooled.items():
        model = create(folder, global_pool=pool, num_classes=5)
        assert torch.allclose(model.forward_head(tokens, pre_logits=True), want, atol=1e-6)
        assert model(pixels).shape == (*want.shape[:-1], 5)
        assert torch.allclose(model.get_classifier()(want), model(pixels), atol=1e-6)
    model.reset_classifier(3, "avg")
    assert (model(pixels).shape, model.num_classes, model.global_pool) == ((2, 3), 3, "avg")
    model.reset_classifier(0)
    assert torch.allclose(model(pixels), pooled["avg"], atol=1e-6)
    with pytest.raises(UserError, match="global_pool is 'map'; it can be 'token', 'avg'"):
        model.reset_classifier(2, "map")


@torch.no_grad()
@pytest.mark.parametrize("size", [64, 96])
def test_converted_vision_branch_matches_golden(vision, size):
    """The released layout: mean of the patches, its norm, classifier; the table grows as in the original."""
    found = case("vision_classify")
    pixels = found.inputs[f"image_{size}"].float()
    model = create(vision, img_size=size)
    assert (model.num_classes, model.global_pool) == (9, "avg")
    assert timm.data.resolve_model_data_config(model)["input_size"] == (3, size, size)
    assert_near(model.forward_features(pixels), found.outputs[f"features_{size}"], TOKENS)
    assert_near(model(pixels), found.outputs[f"logits_{size}"], TOKENS)
    other = create(vision, num_classes=4, img_size=size)
    assert other(pixels).shape == (2, 4)
    logits = model.head(other.forward_head(other.forward_features(pixels), pre_logits=True))
    assert_near(logits, found.outputs[f"logits_{size}"], TOKENS)


@torch.no_grad()
def test_pictures_of_other_sizes(folder):
    model, wide = create(folder), create(folder, img_size=(64, 32))
    for size in ((32, 32), (48, 16), (64, 96)):
        pixels = torch.randn(1, 3, *size)
        assert model.forward_features(pixels).shape == (1, 1 + size[0] * size[1] // 256, 32)
        assert torch.equal(wide(pixels), model(pixels))
    assert timm.data.resolve_model_data_config(wide)["input_size"] == (3, 64, 32)
    assert transform_of(wide)(pictures((20, 20))[0]).shape == (3, 64, 32)
    large = create(folder, img_size=64)
    assert large.trunk.adapters["image"].bias_tables[0].shape == (7 * 7 + 3, 4)
    with pytest.raises(ValueError, match="40 x 32 pixels is not a multiple of the patch, 16"):
        model(torch.randn(1, 3, 40, 32))
    for size, message in (
        ((32, 40), "img_size 32 x 40"),
        (40, "img_size 40 x 40"),
    ):
        with pytest.raises(UserError, match=message):
            create(folder, img_size=size)
        with pytest.raises(UserError, match=message):
            model.set_input_size(size)
    with pytest.raises(UserError, match="patch_size"):
        model.set_input_size(patch_size=8)
    model.set_input_size(64)
    assert torch.equal(model(torch.ones(1, 3, 64, 64)), large(torch.ones(1, 3, 64, 64)))
    assert timm.data.resolve_model_data_config(model)["input_size"] == (3, 64, 64)


@pytest.mark.parametrize("decay", [None, 0.5])
def test_optimizer_groups_are_those_of_our_recipes(folder, decay):
    model = create(folder, num_classes=5)
    found = {}
    for group in timm.optim.create_optimizer_v2(model, opt="adamw", weight_decay=0.1, layer_decay=decay).param_groups:
        found |= {id(parameter): (group.get("lr_scale", 1.0), group["weight_decay"]) for parameter in group["params"]}
    names = dict(model.named_parameters())
    assert set(found) == {id(parameter) for parameter in names.values()}
    ours = {}
    for group in parameter_groups(model.trunk, OptimConfig(weight_decay=0.1, layer_decay=decay)):
        ours |= {f"trunk.{name}": (group["lr_scale"], group["weight_decay"]) for name, _ in group["params"]}
    ours |= {"head.weight": (1.0, 0.1), "head.bias": (1.0, 0.0)}
    assert {name: found[id(parameter)] for name, parameter in names.items()} == ours
    assert layer_id("adapters.image.bias_tables.2", 3) == 3


def test_training_reaches_all_parameters_and_checkpointing_changes_nothing(folder):
    pixels, target = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    gradients = []
    for enable in (False, True):
        torch.manual_seed(0)
        model = create(folder, num_classes=3, global_pool="avg").train()
        model.set_grad_checkpointing(enable)
        assert {block.gradient_checkpointing for block in model.trunk.blocks} == {enable}
        optimizer = timm.optim.create_optimizer_v2(model, opt="adamw", lr=1e-3, layer_decay=0.9)
        losses = []
        for step in range(3):
            loss = torch.nn.functional.cross_entropy(model(pixels), target)
            optimizer.zero_grad()
            loss.backward()
            if step == 0:
                gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
            optimizer.step()
            losses.append(loss.item())
        assert losses[2] < losses[1] < losses[0]
    for name, gradient in gradients[0].items():
        assert gradient.any(), name
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4)


def test_device_and_dtype_are_those_asked_for_and_a_new_classifier_takes_them_over():
    model = timm.create_model(TINY, pretrained=False, device="meta", dtype=torch.bfloat16).eval()
    model.reset_classifier(3)
    assert {(tensor.device.type, tensor.dtype) for tensor in model.parameters()} == {("meta", torch.bfloat16)}
    assert not any(module.training for module in model.modules())
    assert f"{model.default_cfg['first_conv']}.weight" in model.state_dict()


def test_drop_rates_are_off_unless_asked_for(folder):
    model = create(folder, drop_path_rate=0.3, drop_rate=0.2)
    assert [round(block.drop_path.rate, 2) for block in model.trunk.blocks] == [0.0, 0.15, 0.3]
    assert model.head_drop.p == 0.2
    bundled = timm.create_model(TINY, pretrained=True)
    assert {block.drop_path.rate for block in bundled.trunk.blocks} == {0.0}
    create(folder, dynamic_img_size=True)
    with pytest.raises(TypeError, match="attn_drop_rate"):
        create(folder, attn_drop_rate=0.1)


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("name", ["folder", "bundled"])
def test_pictures_of_other_channels(folder, tmp_path, name, channels):
    if name == "folder":
        model, plain = create(folder, in_chans=channels), create(folder)
    else:
        model, plain = (timm.create_model(TINY, pretrained=True, in_chans=count).eval() for count in (channels, 3))
    stem = next(module for module in model.trunk.modules() if isinstance(module, torch.nn.Conv2d))
    pixels = torch.randn(1, channels, 64, 64)
    assert stem.weight.shape[1] == stem.in_channels == channels
    if channels == 1:  # one channel counts as three equal ones
        torch.testing.assert_close(model(pixels), plain(pixels.expand(-1, 3, -1, -1)), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match=f"should be .B, {channels}, H, W."):
        model(torch.randn(1, 3, 64, 64))
    if name == "folder":
        timm.models.save_for_hf(plain, tmp_path / "saved", safe_serialization=True)
        again = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True, in_chans=channels).eval()
        assert torch.equal(again(pixels), model(pixels))


@torch.no_grad()
def test_fx_sees_the_trunk_as_one_node(folder):
    model, pixels = create(folder, num_classes=3), torch.randn(2, 3, 32, 48)
    graph = torch.fx.symbolic_trace(model)
    assert torch.equal(graph(pixels), model(pixels))
    names = timm.models.get_graph_node_names(model)[1]
    extract = timm.models.create_feature_extractor(model, {names[-1]: "out"})
    assert torch.equal(extract(pixels)["out"], model(pixels))


@torch.no_grad()
def test_what_timm_saves_it_loads_again(tmp_path, folder):
    model = create(folder, num_classes=3, global_pool="avg", img_size=64)
    timm.models.save_for_hf(model, tmp_path / "saved", safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True).eval()
    pixels = torch.randn(1, 3, 64, 64)
    assert torch.equal(again(pixels), model(pixels))
    assert (again.trunk.adapters["image"].bias_grid, again.global_pool) == (4, "avg")
    other = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True, num_classes=7).eval()
    assert torch.equal(other.forward_features(pixels), model.forward_features(pixels))
    assert other(pixels).shape == (1, 7)


def test_networks_of_transformers_take_it_as_a_backbone(small_size):
    from transformers import TimmBackboneConfig, UperNetConfig, UperNetForSemanticSegmentation

    maps = TimmBackboneConfig(backbone="onepeace", out_indices=[0, 1, 2])
    upernet = UperNetConfig(backbone_config=maps, num_labels=3, hidden_size=16, use_auxiliary_head=False)
    network = UperNetForSemanticSegmentation(upernet)
    out = network(torch.randn(2, 3, 48, 96), labels=torch.randint(0, 3, (2, 48, 96)))
    assert out.logits.shape == (2, 3, 48, 96)
    out.loss.backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@torch.no_grad()
def test_backbone_of_transformers_has_the_weights():
    from transformers import TimmBackbone

    backbone = TimmBackbone.from_pretrained("onepeace_tiny", out_indices=[0, 2]).eval()
    own = timm.create_model(TINY, pretrained=True, features_only=True, out_indices=(0, 2)).eval()
    pixels = torch.randn(1, 3, 64, 96)
    for found, want in zip(backbone(pixels).feature_maps, own(pixels), strict=True):
        assert torch.equal(found, want)
    assert want.shape == (1, 256, 2, 3)
