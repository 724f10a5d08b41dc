"""Checkpoints of the original OFA code (fairseq): names of their parameters and ours, and their configuration.

In the table {i} stands for a number, {s} for "encoder" or "decoder", {p} for "weight" or "bias"; tensors keep their
shapes. The configuration is inferred from the tensors; the file's own settings must agree.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onepeace.config import Config, build
from onepeace.errors import UserError
from onepeace.generative.config import OFAConfig
from onepeace.hub.convert.infer import Shapes, section
from onepeace.hub.convert.keys import compile_table, translate_original

CREDIT = "Weights by the authors of OFA (Wang et al., arXiv 2202.03052; https://github.com/OFA-Sys/OFA, Apache-2.0)."
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

# Index tables that are computed here, counters that are not read, two more copies of the embedding, parameters for
# image generation, and classification heads that the original trains in addition to the decoder.
DROPPED = re.compile(
    r".*\.(version|token_rp_bucket|image_rp_bucket|image_position_idx|num_batches_tracked)|"
    r"decoder\.(embed_tokens|output_projection)\.weight|classification_heads\..*|"
    r"decoder\.(code_layernorm_embedding|embed_image_positions|image_pos_ln|image_rel_pos_table_list)\..*"
)

_VALUES = {
    "i": r"(?P<i>0|[1-9]\d*)",
    "p": r"(?P<p>weight|bias)",
    "s": r"(?P<s>encoder|decoder)",
    "stem": r"(?P<stem>(conv1|bn1|layer[123]\.\d+\.(conv[123]|bn[123]|downsample\.[01]))"
    r"\.(weight|bias|running_mean|running_var))",
}
_TO_OURS = compile_table(TABLE, _VALUES)

NORMALISED = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}

# Options of the original that change its output but not its tensors, with the values that this library supports.
# `disable_entangle` is not a default of the original: without it positions are added to the decoder's tokens.
SWITCHES = {
    "disable_entangle": True,
    "entangle_position_embedding": False,
    "no_scale_embedding": True,
    "attn_scale_factor": 2,
    "encoder_normalize_before": True,
    "decoder_normalize_before": True,
}


def to_ours(name: str) -> str | None:
    """Our name of an original parameter; None if it is dropped. LookupError for a name that the table lacks."""
    return translate_original(name, (), DROPPED, _TO_OURS)


def infer_config(path: Path, shapes: Mapping[str, tuple[int, ...]], cfg: Mapping[str, Any]) -> Config:
    """Infer the configuration of a model from the shapes of its tensors by our names.

    `cfg` is the original trainer's, {} if unknown. UserError if a tensor is missing or `cfg` contradicts the shapes.
    """
    sizes = Shapes(path, shapes)
    model = section(cfg, "model")
    task = section(cfg, "task")
    for switch, ours in SWITCHES.items():
        theirs = model.get(switch)
        if theirs is not None and theirs != ours:
            raise UserError(f"its configuration has {switch} {theirs}; this library only has {ours}", where=path)
    settings = {
        **_vocabulary(path, sizes, task),
        "dim": sizes.of("decoder.token_embed.weight")[1],
        "encoder_depth": sizes.count("encoder.blocks.{}.norm1.weight"),
        "decoder_depth": sizes.count("decoder.blocks.{}.norm1.weight"),
        "num_heads": sizes.of("encoder.blocks.0.attn.gain")[0],
        "ffn_dim": sizes.of("encoder.blocks.0.ffn.up.weight")[0],
        "num_positions": sizes.of("encoder.words.pos_embed")[0],
        "num_buckets": (sizes.of("encoder.words.bias_tables.0")[0] + 1) // 2,
        "image_grid": math.isqrt(sizes.of("encoder.patches.pos_embed")[0] - 1),
        "stretched_grid": _stretched_grid(model),
        "stem_depths": [sizes.count(f"encoder.stem.layer{stage}.{{}}.conv1.weight") for stage in (1, 2, 3)],
        "stem_width": sizes.of("encoder.stem.conv1.weight")[0],
    }
    image = {"size": task.get("patch_image_size", 480)}
    image |= IMAGENET if task.get("imagenet_default_mean_and_std") else NORMALISED
    content = {
        "model": build(OFAConfig, settings, str(path), "model"),
        "processors": {"image": image},
        "architecture": "ofa",
    }
    return build(Config, content, str(path))


def _vocabulary(path: Path, sizes: Shapes, task: Mapping[str, Any]) -> dict[str, int]:
    """The numbers of words, image codes and bins of places, which share one table."""
    vocab_size = sizes.of("decoder.token_embed.weight")[0]
    num_codes = task.get("code_dict_size", 8192)
    num_bins = task.get("num_bins", 1000)
    num_words = vocab_size - 1 - num_codes - num_bins
    if num_words < 1:
        needed = f"{num_codes} image codes and {num_bins} bins"
        raise UserError(
            f"its vocabulary of {vocab_size} has no room for {needed}; not a released checkpoint", where=path
        )
    return {"num_words": num_words, "num_codes": num_codes, "num_bins": num_bins}


def _stretched_grid(model: Mapping[str, Any]) -> int | None:
    """Side of the grid of positions that is stretched over a larger one; None if it is not."""
    if not model.get("interpolate_position"):
        return None
    return model.get("orig_patch_image_size", 256) // 16
