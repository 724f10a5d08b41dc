"""The table of parameter names."""

import re
from collections.abc import Iterator

import pytest
from support.golden_cases import case, weights
from support.hub_layouts import to_original

from onepeace.hub.convert.keys import _TO_OURS, ALIASES, TABLE, to_ours

CASES = ("vqa", "nlvr2", "grounding", "avqa", "classify_audio", "classify_image")


def released_names() -> Iterator[str]:
    """Parameters of the released 4 B model, written down from its description rather than from the table."""
    wrapper = "encoder_wrapper"
    for m in ("text", "image", "audio"):
        yield f"{wrapper}.{m}_adapter.cls_embedding"
        yield f"{wrapper}.{m}_adapter.rel_pos_table_list.0.weight"
        yield from both(f"{wrapper}.fusion_model.{m}_layer_norm", f"{m}_proj")
    yield from (f"{wrapper}.text_adapter.{name}.weight" for name in ("embed_tokens", "embed_positions"))
    yield f"{wrapper}.image_adapter.pos_embed"
    yield from both(*(f"{wrapper}.image_adapter.embed_images.{name}" for name in
                      ("0", "1.layer_norm", "3", "4.layer_norm", "6")))  # fmt: skip
    yield f"{wrapper}.audio_adapter.cls_pos_embed"
    for j in range(7):
        yield f"{wrapper}.audio_adapter.embed_audios.0.conv_layers.{j}.0.weight"
        yield from both(f"{wrapper}.audio_adapter.embed_audios.0.conv_layers.{j}.2.1")
    yield from both(*(f"{wrapper}.audio_adapter.{name}" for name in ("embed_audios.2", "embed_audios.3")))
    yield from both(*(f"{wrapper}.audio_adapter.embed_positions.{j}.0" for j in range(1, 6)))
    for i in range(40):
        layer = f"{wrapper}.fusion_model.layers.{i}"
        yield from (f"{layer}.gamma_1", f"{layer}.gamma_2", f"{layer}.self_attn.k_proj.weight")
        attention = (f"self_attn.{name}" for name in ("q_proj", "v_proj", "out_proj", "ln"))
        yield from both(*(f"{layer}.{name}" for name in (*attention, "self_attn_layer_norm", "final_layer_norm")))
        for m in ("text", "image", "audio"):
            yield from (f"{layer}.{m}_ffn.0.wi_0.weight", f"{layer}.{m}_ffn.0.wi_1.weight")
            yield from both(f"{layer}.{m}_ffn.2", f"{layer}.{m}_ffn.3")


def video_names() -> Iterator[str]:
    """What the video network has beside the vision branch, in the words of the pretraining layout."""
    yield "encoder_wrapper.video_adapter.temporal_embedding"
    for name in ("T", "S", "MLP"):
        fused = f"encoder_wrapper.fusion_model.layers.3.{name}_Adapter"
        yield from both(f"{fused}.D_fc1", f"{fused}.D_fc2")


def both(*names: str) -> Iterator[str]:
    for name in names:
        yield from (f"{name}.weight", f"{name}.bias")


def all_names() -> set[str]:
    extra = (name for which in CASES for name in case(which).weights)
    tables = (
        f"encoder_wrapper.{m}_adapter.rel_pos_table_list.{i}.weight" for m in ("text", "image") for i in range(40)
    )
    return {*weights(), *extra, *tables, *released_names(), *video_names(),
            "encoder_wrapper.image_adapter.type_embedding_2"}  # fmt: skip


def test_map_is_a_bijection_over_all_known_names():
    names = all_names()
    ours = {name: to_ours(name) for name in names}
    kept = {name: target for name, target in ours.items() if target is not None}

    assert len(set(kept.values())) == len(kept) > 1500
    assert {name: to_original(target) for name, target in kept.items()} == {name: name for name in kept}
    # Every row of the table is exercised: a row nobody uses is one nobody checks.
    used = {to_row(name) for name in kept}
    assert used == set(range(len(TABLE)))


def to_row(name: str) -> int:
    (row,) = [number for number, (pattern, _) in enumerate(_TO_OURS) if pattern.fullmatch(name)]
    return row


def test_only_unused_tensors_are_dropped():
    dropped = {name for name in all_names() if to_ours(name) is None}

    assert dropped == {
        "encoder_wrapper.audio_adapter.mask_embedding",
        "decoder_wrapper.audio_adapter.mask_embedding",
        *(f"decoder_wrapper.{m}_adapter.cls_embedding" for m in ("text", "image", "audio")),
        *(
            f"{part}_wrapper.{name}"
            for part in ("encoder", "decoder")
            for name in ("fusion_model.version", "image_adapter.position_idx")
        ),
    }
    for name in ("encoder_wrapper.text_adapter.rp_bucket", "image_adapter.rp_bucket", "image_adapter.position_idx"):
        assert to_ours(name) is None


OLDER = {
    "image_adapter.rel_pos_table.weight": "adapters.image.bias_tables.0",
    "encoder.layers.7.rel_pos_table.weight": "adapters.image.bias_tables.7",
    "encoder.layers.7.rp_bucket": None,
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


def test_names_of_older_layouts_are_known():
    assert {name: to_ours(name) for name in OLDER} == OLDER
    for pattern, _ in ALIASES:
        assert any(re.fullmatch(pattern, name) for name in OLDER), f"no case for {pattern}"


@pytest.mark.parametrize("name", ["decode_head.conv.weight", "encoder_wrapper.text_adapter.embed_tokens.bias2", "",
                                  "encoder_wrapper.fusion_model.layers.01.gamma_1", "smell_proj.weight"])  # fmt: skip
def test_unknown_names_are_errors(name):
    with pytest.raises(LookupError):
        to_ours(name)
