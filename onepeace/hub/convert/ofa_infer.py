"""Infers the configuration of an original OFA checkpoint from its tensors; the file's own settings must agree."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onepeace.config import Config, build
from onepeace.config.ofa import OFAConfig
from onepeace.errors import UserError
from onepeace.hub.convert.infer import Shapes, section
from onepeace.hub.convert.ofa_keys import to_original

NORMALISED = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
CODE_PIXELS = 8

# Switches of the original that change what it computes without a trace in the tensors, and how this library has them.
# `disable_entangle` is not a default of the original: without it positions are added to the decoder's tokens.
SWITCHES = {
    "disable_entangle": True,
    "entangle_position_embedding": False,
    "no_scale_embedding": True,
    "attn_scale_factor": 2,
    "encoder_normalize_before": True,
    "decoder_normalize_before": True,
}


def infer_config(path: Path, shapes: Mapping[str, tuple[int, ...]], cfg: Mapping[str, Any]) -> Config:
    """The configuration of a model whose tensors have these shapes, by our names.

    `cfg` is the original trainer's, {} if unknown. UserError when a tensor is missing or the two contradict each other.
    """
    found = Shapes(path, shapes, to_original)
    of, count = found.of, found.count
    model, task = section(cfg, "model"), section(cfg, "task")
    for switch, ours in SWITCHES.items():
        said = model.get(switch)
        if said is not None and said != ours:
            raise UserError(f"{path}: its configuration has {switch} {said}; this library only has {ours}")
    vocab_size, dim = of("decoder.token_embed.weight")
    num_codes, num_bins = (task.get(key, default) for key, default in (("code_dict_size", 8192), ("num_bins", 1000)))
    num_words = vocab_size - 1 - num_codes - num_bins
    if num_words < 1:
        needed = f"{num_codes} image codes and {num_bins} bins"
        raise UserError(f"{path}: its vocabulary of {vocab_size} has no room for {needed}; not a released checkpoint")
    corner = model.get("orig_patch_image_size", 256) // 16 if model.get("interpolate_position") else None
    settings = {
        "dim": dim,
        "encoder_depth": count("encoder.blocks.{}.norm1.weight"),
        "decoder_depth": count("decoder.blocks.{}.norm1.weight"),
        "num_heads": of("encoder.blocks.0.attn.gain")[0],
        "ffn_dim": of("encoder.blocks.0.ffn.up.weight")[0],
        "num_words": num_words,
        "num_codes": num_codes,
        "num_bins": num_bins,
        "num_positions": of("encoder.words.pos_embed")[0],
        "num_buckets": (of("encoder.words.bias_tables.0")[0] + 1) // 2,
        "image_grid": math.isqrt(of("encoder.patches.pos_embed")[0] - 1),
        "stretched_grid": corner,
        "code_grid": model.get("code_image_size", 128) // CODE_PIXELS,
        "stem_depths": [count(f"encoder.stem.layer{stage}.{{}}.conv1.weight") for stage in (1, 2, 3)],
        "stem_width": of("encoder.stem.conv1.weight")[0],
    }
    image = {"size": task.get("patch_image_size", 480)}
    image |= IMAGENET if task.get("imagenet_default_mean_and_std") else NORMALISED
    content = {"model": build(OFAConfig, settings, str(path), "model"), "processors": {"image": image}}
    return build(Config, {**content, "architecture": "ofa"}, str(path))
