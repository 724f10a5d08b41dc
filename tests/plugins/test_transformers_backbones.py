"""Towers and backbones of the transformers plug-in, against the features of the module they hold."""

import pytest
import torch

import onepeace.plugins.transformers as plugin

WAVE = {
    **{"dim": 32, "embed_dim": 16, "depth": 2, "num_heads": 4, "ffn_dim": 48},
    "adapters": {"audio": {"stem": "wave", "num_buckets": 8, "pos_depth": 1, "pos_groups": 4}},
}
"""With the released stem of sounds."""


def close(got, want):
    assert tuple(got.shape) == tuple(want.shape)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


@pytest.fixture
def pixels():
    return torch.randn(2, 3, 48, 32, generator=torch.Generator().manual_seed(0))


def outputs_of_blocks(model, pixels, indices):
    return model.encode(model.stems({"image": {"pixels": pixels}}), out_indices=indices)["image"].intermediates


def test_a_vision_tower(random_folder, pixels):
    tower = plugin.OnePeaceVisionModel.from_onepeace(str(random_folder))
    module = tower.onepeace
    with torch.no_grad():
        got = tower(pixels, output_hidden_states=True, return_dict=True)
        alone = tower(pixels)
        last = module.features({"image": {"pixels": pixels}})["image"]
        blocks = [one.tokens for one in outputs_of_blocks(module, pixels, [0, 1])]
        normed = module.norms["image"](got.hidden_states[-1])
    assert tower.config.hidden_size == 32
    assert tower.config.image_size == 32
    assert tower.config.patch_size == 16
    assert len(got.hidden_states) == 3
    assert alone.hidden_states is None
    close(got.last_hidden_state, last)
    close(got.last_hidden_state, normed)
    close(got.pooler_output, last[:, 0])
    close(alone[0], last)
    for state, block in zip(got.hidden_states[1:], blocks, strict=True):
        close(state, block)
    first, *_ = module.blocks
    with torch.no_grad():
        sequence = module.adapters["image"](module.stems({"image": {"pixels": pixels}})["image"])
    close(got.hidden_states[0], sequence.tokens)
    tower.config.output_hidden_states = True
    assert len(tower(pixels).hidden_states) == 3
    assert first.ffn.keys() == {"image"}  # nothing else is kept


def test_a_number_of_a_state_gives_the_states(random_folder, pixels):
    tower = plugin.OnePeaceVisionModel.from_onepeace(str(random_folder))
    states = tower(pixels, output_hidden_states=True).hidden_states
    chosen = tower(pixels, output_hidden_states=-2).hidden_states
    close(chosen[-2], states[-2])  # the others are None, or there too in an older transformers
    assert tower(pixels, output_hidden_states=False).hidden_states is None


@pytest.mark.parametrize("norm", [True, False])
def test_maps_of_pictures(random_folder, pixels, norm):
    backbone = plugin.OnePeaceImageBackbone.from_onepeace(
        str(random_folder), out_features=["stem", "stage2"], apply_layernorm=norm
    )
    assert backbone.stage_names == ["stem", "stage1", "stage2"]
    assert (backbone.out_indices, backbone.out_features) == ([0, 2], ["stem", "stage2"])
    assert backbone.channels == [32, 32]
    with torch.no_grad():
        got = backbone(pixels)
        with_states = backbone(pixels, output_hidden_states=True)
        (want,) = outputs_of_blocks(backbone.onepeace, pixels, [1])
        tokens = backbone.onepeace.norms["image"](want.tokens) if norm else want.tokens
        want = want._replace(tokens=tokens).feature_map()
    assert [tuple(feature_map.shape) for feature_map in got.feature_maps] == [(2, 32, 3, 2)] * 2
    close(got.feature_maps[1], want)
    assert got.hidden_states is None
    assert len(with_states.hidden_states) == len(backbone.stage_names)
    for one, other in zip(got.feature_maps, with_states.feature_maps, strict=True):
        close(one, other)
    stem = with_states.hidden_states[0]
    stem = backbone.onepeace.norms["image"](stem) if norm else stem
    close(got.feature_maps[0], stem[:, 1:].transpose(1, 2).unflatten(2, (3, 2)))


def test_tokens_in_place_of_maps_and_indices_from_the_end(random_folder, pixels):
    backbone = plugin.OnePeaceImageBackbone.from_onepeace(
        str(random_folder), out_indices=[-2], reshape_hidden_states=False
    )
    assert backbone.out_features == ["stage1"]
    with torch.no_grad():
        (want,) = outputs_of_blocks(backbone.onepeace, pixels, [0])
        normed = backbone.onepeace.norms["image"](want.tokens)
    close(backbone(pixels).feature_maps[0].detach(), normed)
    with pytest.raises(ValueError, match="stage7"):
        plugin.OnePeaceImageBackbone.from_onepeace(str(random_folder), out_features=["stage7"])


def test_a_configuration_without_a_model_is_that_of_the_size_base(pixels):
    config = plugin.OnePeaceVisionConfig(out_features=["stage1", "stage12"])
    assert (config.hidden_size, config.num_hidden_layers, config.out_indices) == (768, 12, [1, 12])
    narrow = plugin.OnePeaceVisionConfig(
        hidden_size=32, num_attention_heads=2, intermediate_size=48, num_hidden_layers=2, out_indices=[1, 2]
    )
    maps = plugin.OnePeaceImageBackbone(narrow)(pixels).feature_maps
    assert [tuple(feature_map.shape) for feature_map in maps] == [(2, 32, 3, 2)] * 2
    sounds = plugin.OnePeaceAudioConfig()
    assert list(sounds.to_onepeace().model.adapters) == ["audio"]


def test_the_released_stem_of_sounds_can_be_offloaded():
    accelerate = pytest.importorskip("accelerate")
    model = plugin.OnePeaceAudioModel(plugin.OnePeaceAudioConfig(model=WAVE)).eval()
    with torch.no_grad():
        want = model(torch.ones(1, 16000))
        accelerate.cpu_offload(model, execution_device="cpu")
        close(model(torch.ones(1, 16000)).pooler_output, want.pooler_output)
