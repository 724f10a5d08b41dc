"""What timm's settings of a model say, from the configuration of ours."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from timm.layers import to_2tuple

from onepeace.config import Config, ModelConfig
from onepeace.errors import UserError, expect
from onepeace.processors import ImageProcessor

KEY = "image"
FIRST_CONV = {"hmlp": "convs.0", "conv": "convs.0", "lite": "network.first"}
"""First convolution by stem; timm adapts it to another number of channels."""


def with_image_size(config: Config, img_size: int | Sequence[int]) -> Config:
    """Configuration for images of this size; a square size also sets the grid of the relative positions."""
    height, width = to_2tuple(img_size)
    adapter = config.model.adapters[KEY]
    patch = adapter.get("patch_size", 16)
    too_small = height == width < 3 * patch  # the table of positions is at least 3 x 3
    if height % patch or width % patch or too_small:
        raise UserError(f"img_size {height} x {width}: give multiples of the patch, {patch}, from {3 * patch}")
    if height != width:
        return config
    adapters = {**config.model.adapters, KEY: {**adapter, "bias_grid": height // patch}}
    image_settings = {**config.processors.get(KEY, {}), "size": height}
    return replace(
        config,
        model=replace(config.model, adapters=adapters),
        processors={**config.processors, KEY: image_settings},
    )


def own_classes(model: ModelConfig) -> int:
    """Number of classes of the model's classifier if it has timm's form (mean, norm, linear layer), else 0."""
    head = model.heads.get("classifier", {})
    reads_one_image = head.get("on") == KEY and head.get("inputs", 1) == 1
    if len(model.adapters) > 1 or not reads_one_image:
        return 0
    is_linear = not head.get("hidden_ratio", 2) and not head.get("pooler", False)
    if head.get("pool") != "mean" or not is_linear:
        return 0
    return head["num_classes"]


def data_config(config: Config) -> dict[str, Any]:
    """Settings that make `timm.data.create_transform` equal our processor, and settings of the classifier."""
    stem = config.model.adapters[KEY].get("stem", "hmlp").rstrip("012")  # lite0, lite1, lite2
    with torch.device("cpu"):  # also while a model is built on the meta device
        processor = expect(ImageProcessor.from_config(config.processors.get(KEY, {})), ImageProcessor)
    return {
        "input_size": (3, processor.height, processor.width),
        "mean": tuple(processor.mean.flatten().tolist()),
        "std": tuple(processor.std.flatten().tolist()),
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "squash" if processor.resize == "squash" else "center",
        "num_classes": own_classes(config.model),
        "classifier": "head",
        "first_conv": f"trunk.adapters.{KEY}.stem.{FIRST_CONV.get(stem, '')}",
    }
