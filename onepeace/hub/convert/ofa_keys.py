"""The key map of OFA: names of the original code (fairseq) and ours.

{i} stands for a number, {s} for "encoder" or "decoder", {p} for "weight" or "bias". Tensors keep their shapes.
"""

import re

from onepeace.hub.convert.keys import compile_table, translate, translate_original

ATTENTION = [
    ("q_proj.{p}", "q.{p}"),
    ("k_proj.{p}", "k.{p}"),
    ("v_proj.{p}", "v.{p}"),
    ("out_proj.{p}", "proj.{p}"),
    ("c_attn", "gain"),
]
BLOCK = [
    ("self_attn_layer_norm.{p}", "norm1.{p}"),
    *[(f"self_attn.{theirs}", f"attn.{ours}") for theirs, ours in ATTENTION],
    ("fc1.{p}", "ffn.up.{p}"),
    ("ffn_layernorm.{p}", "ffn.norm.{p}"),
    ("fc2.{p}", "ffn.down.{p}"),
]
TABLE = [
    ("encoder.embed_tokens.weight", "decoder.token_embed.weight"),
    # encoder
    ("encoder.type_embedding.weight", "encoder.type_embed"),
    ("encoder.embed_images.{stem}", "encoder.stem.{stem}"),
    ("encoder.image_proj.{p}", "encoder.image_proj.{p}"),
    ("encoder.patch_layernorm_embedding.{p}", "encoder.patches.norm.{p}"),
    ("encoder.embed_image_positions.weight", "encoder.patches.pos_embed"),
    ("encoder.image_pos_ln.{p}", "encoder.patches.pos_norm.{p}"),
    ("encoder.image_rel_pos_table_list.{i}.weight", "encoder.patches.bias_tables.{i}"),
    ("encoder.pos_q_linear.{p}", "encoder.pos.q.{p}"),
    ("encoder.pos_k_linear.{p}", "encoder.pos.k.{p}"),
    ("encoder.layers.{i}.attn_ln.{p}", "encoder.blocks.{i}.attn_norm.{p}"),
    ("encoder.layers.{i}.final_layer_norm.{p}", "encoder.blocks.{i}.norm2.{p}"),
    # both
    ("{s}.layernorm_embedding.{p}", "{s}.words.norm.{p}"),
    ("{s}.embed_positions.weight", "{s}.words.pos_embed"),
    ("{s}.pos_ln.{p}", "{s}.words.pos_norm.{p}"),
    ("{s}.token_rel_pos_table_list.{i}.weight", "{s}.words.bias_tables.{i}"),
    *[("{s}.layers.{i}." + theirs, "{s}.blocks.{i}." + ours) for theirs, ours in BLOCK],
    ("{s}.layer_norm.{p}", "{s}.norm.{p}"),
    # decoder
    ("decoder.code_layernorm_embedding.{p}", "decoder.codes.norm.{p}"),
    ("decoder.embed_image_positions.weight", "decoder.codes.pos_embed"),
    ("decoder.image_pos_ln.{p}", "decoder.codes.pos_norm.{p}"),
    ("decoder.image_rel_pos_table_list.{i}.weight", "decoder.codes.bias_tables.{i}"),
    ("decoder.self_pos_q_linear.{p}", "decoder.self_pos.q.{p}"),
    ("decoder.self_pos_k_linear.{p}", "decoder.self_pos.k.{p}"),
    ("decoder.cross_pos_q_linear.{p}", "decoder.cross_pos.q.{p}"),
    ("decoder.cross_pos_k_linear.{p}", "decoder.cross_pos.k.{p}"),
    ("decoder.layers.{i}.self_attn_ln.{p}", "decoder.blocks.{i}.attn_norm.{p}"),
    ("decoder.layers.{i}.encoder_attn_layer_norm.{p}", "decoder.blocks.{i}.norm2.{p}"),
    *[("decoder.layers.{i}.encoder_attn." + t, "decoder.blocks.{i}.cross_attn." + o) for t, o in ATTENTION],
    ("decoder.layers.{i}.cross_attn_ln.{p}", "decoder.blocks.{i}.cross_attn_norm.{p}"),
    ("decoder.layers.{i}.final_layer_norm.{p}", "decoder.blocks.{i}.norm3.{p}"),
]

# Tables of indices that are computed here, counts that nothing reads, two more copies of the embedding, and heads for
# classes that the original trains beside the decoder.
DROPPED = re.compile(
    r".*\.(version|token_rp_bucket|image_rp_bucket|image_position_idx|num_batches_tracked)|"
    r"decoder\.(embed_tokens|output_projection)\.weight|classification_heads\..*"
)

_VALUES = {
    "i": r"(?P<i>0|[1-9]\d*)",
    "p": r"(?P<p>weight|bias)",
    "s": r"(?P<s>encoder|decoder)",
    "stem": r"(?P<stem>(conv1|bn1|layer[123]\.\d+\.(conv[123]|bn[123]|downsample\.[01]))"
    r"\.(weight|bias|running_mean|running_var))",
}
_TO_OURS, _TO_ORIGINAL = compile_table(TABLE, _VALUES)


def to_ours(name: str) -> str | None:
    """Our name of an original parameter; None for what is dropped. LookupError for a name the table lacks."""
    return translate_original(name, (), DROPPED, _TO_OURS)


def to_original(name: str) -> str:
    """The original's name of one of our parameters. LookupError for a name the table lacks."""
    return translate(name, _TO_ORIGINAL)
