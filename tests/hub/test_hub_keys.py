"""The table of parameter names."""

import re
from collections.abc import Iterator

import pytest
from support.golden_cases import case, weights
from support.hub_layouts import to_original

from onepeace.hub.convert.keys import ALIASES, TABLE, TO_OURS, to_ours

CASES = ("vqa", "nlvr2", "grounding", "avqa", "classify_audio", "classify_image")


def weight_and_bias(start: str, *names: str) -> Iterator[str]:
    for name in names:
        yield f"{start}.{name}.weight"
        yield f"{start}.{name}.bias"


def video_names() -> Iterator[str]:
    """What the video network has beside the vision branch, in the words of the pretraining layout."""
    yield "encoder_wrapper.video_adapter.temporal_embedding"
    for name in ("T", "S", "MLP"):
        yield from weight_and_bias(f"encoder_wrapper.fusion_model.layers.3.{name}_Adapter", "D_fc1", "D_fc2")


@pytest.fixture(scope="module")
def names() -> set[str]:
    names = {*weights(), *video_names()}
    names.add("encoder_wrapper.image_adapter.type_embedding_2")
    for name in CASES:
        names.update(case(name).weights)
    names.add("encoder_wrapper.text_adapter.rel_pos_table_list.39.weight")
    return names


@pytest.fixture(scope="module")
def kept_names(names):
    return [name for name in names if to_ours(name) is not None]


def test_map_is_a_bijection_over_all_names(kept_names):
    ours = {name: to_ours(name) for name in kept_names}
    assert len(set(ours.values())) == len(ours) > 200
    for theirs, name in ours.items():
        assert to_original(name) == theirs


def test_every_row_of_the_table_is_used_once(kept_names):
    rows = set()
    for name in kept_names:
        matches = [pattern.fullmatch(name) is not None for pattern, _ in TO_OURS]
        assert matches.count(True) == 1, name
        rows.add(matches.index(True))
    assert rows == set(range(len(TABLE)))


def test_only_unused_tensors_are_dropped(names):
    dropped = {name for name in names if to_ours(name) is None}

    assert dropped == {
        "encoder_wrapper.audio_adapter.mask_embedding",
        "encoder_wrapper.fusion_model.version",
        "encoder_wrapper.image_adapter.position_idx",
        "decoder_wrapper.audio_adapter.mask_embedding",
        "decoder_wrapper.fusion_model.version",
        "decoder_wrapper.image_adapter.position_idx",
        "decoder_wrapper.text_adapter.cls_embedding",
        "decoder_wrapper.image_adapter.cls_embedding",
        "decoder_wrapper.audio_adapter.cls_embedding",
    }


OLDER = {
    "image_adapter.rel_pos_table.weight": "adapters.image.bias_tables.0",
    "encoder.layers.7.rel_pos_table.weight": "adapters.image.bias_tables.7",
    "encoder.layers.7.rp_bucket": None,
    "encoder_wrapper.text_adapter.rp_bucket": None,
    "image_adapter.rp_bucket": None,
    "image_adapter.position_idx": None,
    "image_adapter.embed_images.6.bias": "adapters.image.stem.convs.2.bias",
    "encoder.layers.1.image_ffn.3.weight": "blocks.1.ffn.image.down.weight",
    "encoder.image_layer_norm.bias": "norms.image.bias",
    "encoder.layer_norm.weight": "norms.image.weight",
    "fc_norm.weight": "heads.classifier.norm.weight",
    "head.bias": "heads.classifier.out.bias",
    "encoder_wrapper.fusion_model.layers.2.layer_norms.1.bias": "blocks.2.norm2.bias",
    "encoder_wrapper.text_adapter.rel_pos_table.weight": "adapters.text.bias_tables.0",
    "backbone.image_adapter.temporal_embedding": "adapters.video.time_embed",
    "backbone.image_adapter.rel_pos_table.weight": "adapters.video.bias_tables.0",
    "backbone.encoder.layers.2.rel_pos_table.weight": "adapters.video.bias_tables.2",
    "backbone.encoder.layers.2.image_ffn.0.wi_1.weight": "blocks.2.ffn.video.up.weight",
    "backbone.encoder.layers.2.S_Adapter.D_fc2.bias": "blocks.2.clips.video.space.up.bias",
    "backbone.encoder.image_layer_norm.weight": "norms.video.weight",
    "cls_head.fc_cls.bias": "heads.classifier.out.bias",
    "encoder_wrapper.fusion_model.layers.0.layer_norms.0.weight": "blocks.0.norm1.weight",
}


@pytest.mark.parametrize("name", OLDER)
def test_name_of_an_older_layout(name):
    assert to_ours(name) == OLDER[name]


@pytest.mark.parametrize("pattern", [pattern for pattern, _ in ALIASES])
def test_every_alias_has_a_case(pattern):
    assert any(re.fullmatch(pattern, name) for name in OLDER)


@pytest.mark.parametrize(
    "name",
    [
        "decode_head.conv.weight",
        "encoder_wrapper.text_adapter.embed_tokens.bias2",
        "",
        "encoder_wrapper.fusion_model.layers.01.gamma_1",
        "smell_proj.weight",
    ],
)
def test_unknown_name_is_an_error(name):
    with pytest.raises(LookupError):
        to_ours(name)
