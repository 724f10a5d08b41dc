"""Towers and backbones of the transformers plug-in, against the features of the module they hold."""

import pytest
import torch
from support.embedding import assert_same

import onepeace.plugins.transformers as plugin
from onepeace.errors import UserError


@pytest.fixture
def pixels():
    return torch.randn(2, 3, 48, 32)


@pytest.fixture
def tower(random_name):
    return plugin.OnePeaceVisionModel.from_onepeace(random_name)


def stem_output(module, pixels):
    return module.stems({"image": {"pixels": pixels}})["image"]


def outputs_of_blocks(module, pixels, indices):
    features = module.encode({"image": stem_output(module, pixels)}, out_indices=indices)
    return features["image"].intermediates


def test_outputs_of_a_tower(tower, pixels):
    tokens = tower.onepeace.features({"image": {"pixels": pixels}})["image"]
    outputs = tower(pixels)

    assert_same(outputs.last_hidden_state, tokens)
    assert_same(outputs.pooler_output, tokens[:, 0])
    assert_same(outputs[0], tokens)
    assert outputs.hidden_states is None


def test_configuration_of_a_tower(tower):
    assert tower.config.hidden_size == 32
    assert tower.config.image_size == 32
    assert tower.config.patch_size == 16
    assert tower.onepeace.blocks[0].ffn.keys() == {"image"}  # nothing else is kept


def test_hidden_states_of_a_tower(tower, pixels):
    module = tower.onepeace
    first, *outputs = tower(pixels, output_hidden_states=True, return_dict=True).hidden_states

    assert_same(first, module.adapters["image"](stem_output(module, pixels)).tokens)
    blocks = outputs_of_blocks(module, pixels, [0, 1])
    for state, block in zip(outputs, blocks, strict=True):
        assert_same(state, block.tokens)
    assert_same(module.norms["image"](outputs[-1]), tower(pixels).last_hidden_state)


def test_hidden_states_chosen_by_configuration_or_number(tower, pixels):
    states = tower(pixels, output_hidden_states=True).hidden_states
    chosen = tower(pixels, output_hidden_states=-2).hidden_states

    assert_same(chosen[-2], states[-2])  # the others are None, or as here in an older transformers
    assert tower(pixels, output_hidden_states=False).hidden_states is None
    tower.config.output_hidden_states = True
    assert len(tower(pixels).hidden_states) == 3


@pytest.mark.parametrize("has_norm", [True, False])
def test_maps_of_a_backbone(random_name, pixels, has_norm):
    backbone = plugin.OnePeaceImageBackbone.from_onepeace(
        random_name, out_features=["stem", "stage2"], apply_layernorm=has_norm
    )
    norm = backbone.onepeace.norms["image"] if has_norm else torch.nn.Identity()

    outputs = backbone(pixels)

    stem_map, block_map = outputs.feature_maps
    (block,) = outputs_of_blocks(backbone.onepeace, pixels, [1])
    assert block_map.shape == (2, 32, 3, 2)
    assert_same(block_map, block._replace(tokens=norm(block.tokens)).feature_map())
    assert outputs.hidden_states is None
    with_states = backbone(pixels, output_hidden_states=True)
    assert len(with_states.hidden_states) == 3
    assert_same(with_states.feature_maps[1], block_map)
    patches = norm(with_states.hidden_states[0])[:, 1:]
    assert_same(stem_map, patches.mT.unflatten(2, (3, 2)))


def test_stages_of_a_backbone(random_name):
    backbone = plugin.OnePeaceImageBackbone.from_onepeace(random_name, out_features=["stem", "stage2"])

    assert backbone.stage_names == ["stem", "stage1", "stage2"]
    assert backbone.out_indices == [0, 2]
    assert backbone.out_features == ["stem", "stage2"]
    assert backbone.channels == [32, 32]


def test_tokens_of_a_stage_counted_from_the_end(random_name, pixels):
    backbone = plugin.OnePeaceImageBackbone.from_onepeace(random_name, out_indices=[-2], reshape_hidden_states=False)

    (tokens,) = backbone(pixels).feature_maps

    (block,) = outputs_of_blocks(backbone.onepeace, pixels, [0])
    assert_same(tokens, backbone.onepeace.norms["image"](block.tokens))
    assert backbone.out_features == ["stage1"]


def test_unknown_stage_is_refused(random_name):
    with pytest.raises(ValueError, match="stage7"):
        plugin.OnePeaceImageBackbone.from_onepeace(random_name, out_features=["stage7"])


def test_configuration_without_a_model_is_of_the_size_base():
    config = plugin.OnePeaceVisionConfig(out_features=["stage1", "stage12"])
    assert config.hidden_size == 768
    assert config.num_hidden_layers == 12
    assert config.out_indices == [1, 12]
    assert list(plugin.OnePeaceAudioConfig().to_onepeace().model.adapters) == ["audio"]


def test_whole_model_needs_a_configuration():
    with pytest.raises(UserError, match="from_onepeace"):
        plugin.OnePeaceConfig().to_onepeace()


def test_backbone_of_a_configuration_without_a_model(pixels):
    config = plugin.OnePeaceVisionConfig(
        hidden_size=32,
        num_attention_heads=2,
        intermediate_size=48,
        num_hidden_layers=2,
        out_indices=[1, 2],
    )
    maps = plugin.OnePeaceImageBackbone(config)(pixels).feature_maps
    assert [feature_map.shape for feature_map in maps] == [(2, 32, 3, 2)] * 2


def test_released_stem_of_sounds_can_be_offloaded():
    accelerate = pytest.importorskip("accelerate")
    adapter = {"stem": "wave", "num_buckets": 8, "pos_depth": 1, "pos_groups": 4}
    sizes = {"dim": 32, "embed_dim": 16, "depth": 2, "num_heads": 4, "ffn_dim": 48}
    config = plugin.OnePeaceAudioConfig(model={**sizes, "adapters": {"audio": adapter}})
    model = plugin.OnePeaceAudioModel(config).eval()
    vectors = model(torch.ones(1, 16000)).pooler_output

    accelerate.cpu_offload(model, execution_device="cpu")

    assert_same(model(torch.ones(1, 16000)).pooler_output, vectors)
