"""The key map of ONE-PEACE: parameter names of the original code and ours.

{i} and {j} stand for numbers, {m} for a modality, {g} for one with a grid of patches, {p} for "weight" or "bias". All
tensors keep their shapes except two: type embeddings are rows of one table (hence "[0]", "[1]"), and the query of the
attention pool loses its two leading axes of size 1.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

Rules = list[tuple[re.Pattern[str], str]]

MODALITIES = ("text", "image", "audio", "video")

ATTENTION_BLOCK = [
    ("gamma_1", "ls1.gain"),
    ("gamma_2", "ls2.gain"),
    ("self_attn_layer_norm.{p}", "norm1.{p}"),
    ("self_attn.q_proj.{p}", "attn.q.{p}"),
    ("self_attn.k_proj.{p}", "attn.k.{p}"),
    ("self_attn.v_proj.{p}", "attn.v.{p}"),
    ("self_attn.ln.{p}", "attn.norm.{p}"),
    ("self_attn.out_proj.{p}", "attn.proj.{p}"),
    ("final_layer_norm.{p}", "norm2.{p}"),
    ("{m}_ffn.0.wi_0.{p}", "ffn.{m}.gate.{p}"),
    ("{m}_ffn.0.wi_1.{p}", "ffn.{m}.up.{p}"),
    ("{m}_ffn.2.{p}", "ffn.{m}.norm.{p}"),
    ("{m}_ffn.3.{p}", "ffn.{m}.down.{p}"),
]
TABLE = [
    ("logit_scale", "logit_scale"),
    ("{m}_proj.{p}", "heads.{m}.{p}"),
    # adapters
    ("encoder_wrapper.{m}_adapter.cls_embedding", "adapters.{m}.cls_token"),
    ("encoder_wrapper.{m}_adapter.rel_pos_table_list.{i}.weight", "adapters.{m}.bias_tables.{i}"),
    ("encoder_wrapper.{m}_adapter.type_embedding", "adapters.{m}.type_embed[0]"),
    ("encoder_wrapper.{m}_adapter.type_embedding_2", "adapters.{m}.type_embed[1]"),
    ("encoder_wrapper.text_adapter.embed_tokens.weight", "adapters.text.token_embed.weight"),
    ("encoder_wrapper.text_adapter.embed_positions.weight", "adapters.text.pos_embed.weight"),
    ("encoder_wrapper.{g}_adapter.pos_embed", "adapters.{g}.pos_embed.weight"),
    ("encoder_wrapper.{g}_adapter.embed_images.0.{p}", "adapters.{g}.stem.convs.0.{p}"),
    ("encoder_wrapper.{g}_adapter.embed_images.1.layer_norm.{p}", "adapters.{g}.stem.norms.0.{p}"),
    ("encoder_wrapper.{g}_adapter.embed_images.3.{p}", "adapters.{g}.stem.convs.1.{p}"),
    ("encoder_wrapper.{g}_adapter.embed_images.4.layer_norm.{p}", "adapters.{g}.stem.norms.1.{p}"),
    ("encoder_wrapper.{g}_adapter.embed_images.6.{p}", "adapters.{g}.stem.convs.2.{p}"),
    ("encoder_wrapper.audio_adapter.cls_pos_embed", "adapters.audio.cls_pos"),
    ("encoder_wrapper.audio_adapter.embed_audios.0.conv_layers.{j}.0.{p}", "adapters.audio.stem.convs.{j}.{p}"),
    ("encoder_wrapper.audio_adapter.embed_audios.0.conv_layers.{j}.2.1.{p}", "adapters.audio.stem.norms.{j}.{p}"),
    ("encoder_wrapper.audio_adapter.embed_audios.2.{p}", "adapters.audio.stem.norm.{p}"),
    ("encoder_wrapper.audio_adapter.embed_audios.3.{p}", "adapters.audio.stem.proj.{p}"),
    # The original counts from 1: its entry 0 is a transposition.
    ("encoder_wrapper.audio_adapter.embed_positions.{j+1}.0.{p}", "adapters.audio.pos_conv.{j}.{p}"),
    # encoder and decoder
    *[("encoder_wrapper.fusion_model.layers.{i}." + theirs, "blocks.{i}." + ours) for theirs, ours in ATTENTION_BLOCK],
    ("encoder_wrapper.fusion_model.{m}_layer_norm.{p}", "norms.{m}.{p}"),
    # video
    ("encoder_wrapper.video_adapter.temporal_embedding", "adapters.video.time_embed"),
    *[
        (
            f"encoder_wrapper.fusion_model.layers.{{i}}.{theirs}_Adapter.D_fc{number}.{{p}}",
            f"blocks.{{i}}.clips.video.{ours}.{layer}.{{p}}",
        )
        for theirs, ours in (("T", "time"), ("S", "space"), ("MLP", "mlp"))
        for number, layer in ((1, "down"), (2, "up"))
    ],
    *[
        ("decoder_wrapper.fusion_model.layers.{i}." + theirs, "decoder.blocks.{i}." + ours)
        for theirs, ours in ATTENTION_BLOCK
        if not theirs.startswith("gamma")
    ],
    ("decoder_wrapper.fusion_model.{m}_layer_norm.{p}", "decoder.norms.{m}.{p}"),
    ("decoder_wrapper.text_adapter.embed_positions.weight", "decoder.pos_embed.text.weight"),
    ("decoder_wrapper.image_adapter.pos_embed", "decoder.pos_embed.image.weight"),
    ("decoder_wrapper.audio_adapter.embed_positions.weight", "decoder.pos_embed.audio.weight"),
    ("decoder_{m}_embed.{p}", "decoder.into.{m}.{p}"),
    ("{m}_mask_token", "decoder.mask_token.{m}"),
    ("{m}_mask_head.{p}", "decoder.out.{m}.{p}"),
    # classification head
    ("classify_head.attn_pooling_func.q", "heads.classifier.pool.q"),
    ("classify_head.attn_pooling_func.k_proj.{p}", "heads.classifier.pool.k.{p}"),
    ("classify_head.attn_pooling_func.v_proj.{p}", "heads.classifier.pool.v.{p}"),
    ("classify_head.attn_pooling_func.out_proj.{p}", "heads.classifier.pool.proj.{p}"),
    ("classify_head.norm.{p}", "heads.classifier.norm.{p}"),
    ("classify_head.pooler.1.{p}", "heads.classifier.pooler.{p}"),
    ("classify_head.classifier.0.{p}", "heads.classifier.hidden.{p}"),
    ("classify_head.classifier.1.{p}", "heads.classifier.hidden_norm.{p}"),
    ("classify_head.classifier.3.{p}", "heads.classifier.out.{p}"),
]

# Stored by the original but not needed: computed buffers, version numbers, and parameters that no pass reads.
DROPPED = re.compile(
    r".*\.(rp_bucket|position_idx|version|mask_embedding)|decoder_wrapper\.(text|image|audio)_adapter\.cls_embedding"
)

# Tensors of original shape (1, 1, H, D), with the number of last axes that are kept.
KEPT_AXES = {"heads.classifier.pool.q": 2}

# Names in older files, in the vision branch (which has no "encoder_wrapper") and in the video network built from it (in
# "backbone"), translated to the original names in the table above.
ALIASES = [
    (r"backbone\.encoder\.layers\.(\d+)\.rel_pos_table\.weight", r"video_adapter.rel_pos_table_list.\1.weight"),
    (r"backbone\.encoder\.image_layer_norm\.(.*)", r"encoder_wrapper.fusion_model.video_layer_norm.\1"),
    (r"backbone\.(.*?)image_(adapter|ffn)\.(.*)", r"\1video_\2.\3"),
    (r"backbone\.encoder\.(.*)", r"encoder.\1"),
    (r"cls_head\.fc_cls\.(.*)", r"head.\1"),
    (r"(.*)\.layer_norms\.0\.(.*)", r"\1.self_attn_layer_norm.\2"),
    (r"(.*)\.layer_norms\.1\.(.*)", r"\1.final_layer_norm.\2"),
    (r"encoder\.layers\.(\d+)\.rel_pos_table\.weight", r"image_adapter.rel_pos_table_list.\1.weight"),
    (r"encoder\.layers\.(\d+)\.rp_bucket", r"image_adapter.rp_bucket"),
    (r"(.*)\.rel_pos_table\.weight", r"\1.rel_pos_table_list.0.weight"),
    (r"(image|video)_adapter\.(.*)", r"encoder_wrapper.\1_adapter.\2"),
    (r"encoder\.layers\.(.*)", r"encoder_wrapper.fusion_model.layers.\1"),
    (r"encoder\.(?:image_)?layer_norm\.(.*)", r"encoder_wrapper.fusion_model.image_layer_norm.\1"),
    (r"fc_norm\.(.*)", r"classify_head.norm.\1"),
    (r"head\.(.*)", r"classify_head.classifier.3.\1"),
]

_FIELD = re.compile(r"\{(.+?)\}")
FIELD_PATTERNS = {
    "i": r"(?P<i>0|[1-9]\d*)",
    "j": r"(?P<j>0|[1-9]\d*)",
    "j+1": r"(?P<after_j>[1-9]\d*)",
    "m": rf"(?P<m>{'|'.join(MODALITIES)})",
    "g": r"(?P<g>image|video)",
    "p": r"(?P<p>weight|bias)",
}


def to_ours(name: str) -> str | None:
    """Our name of an original parameter; None if it is dropped. LookupError for a name that the table lacks."""
    return translate_original(name, ALIASES, DROPPED, TO_OURS)


def translate_original(
    name: str, aliases: Iterable[tuple[str, str]], dropped: re.Pattern[str], rules: Rules
) -> str | None:
    """Our name by the aliases and then the rules; None if it is dropped. LookupError for an unknown name."""
    for pattern, replacement in aliases:
        name = re.sub(rf"^(?:{pattern})$", replacement, name)
    return None if dropped.fullmatch(name) else translate(name, rules)


def compile_table(table: Sequence[tuple[str, str]], values: Mapping[str, str]) -> Rules:
    """Compile a table to rules that translate the first name of a row to the second.

    Args:
        table: pairs of names, with fields in braces.
        values: regular expression of each field, with a group named after it.
    """

    def pattern(template: str) -> re.Pattern[str]:
        # Splitting at the fields returns text, field, text, field, ..., text.
        parts = _FIELD.split(template)
        return re.compile("".join(values[part] if at % 2 else re.escape(part) for at, part in enumerate(parts)))

    return [(pattern(template_of_name), target) for template_of_name, target in table]


def translate(name: str, rules: Rules) -> str:
    """Translate a name by the first rule that matches. LookupError if none does."""
    for pattern, target in rules:
        if match := pattern.fullmatch(name):
            values = match.groupdict()
            if "after_j" in values:
                values["j"] = str(int(values["after_j"]) - 1)
            return "".join(values[part] if at % 2 else part for at, part in enumerate(_FIELD.split(target)))
    raise LookupError(name)


TO_OURS = compile_table(TABLE, FIELD_PATTERNS)
