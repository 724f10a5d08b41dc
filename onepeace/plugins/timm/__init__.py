"""Image branch as timm models; importing this package registers them.

    import timm
    import onepeace.plugins.timm

    model = timm.create_model("onepeace_tiny.image", pretrained=True, num_classes=10)
    maps = timm.create_model("onepeace_tiny.image", pretrained=True, features_only=True, out_indices=(2, 5))
    own = timm.create_model("onepeace", pretrained=True, pretrained_cfg_overlay={"file": "models/mine"})
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(own))

``onepeace_tiny`` is the bundled model; ``onepeace`` is the model of ``file``, as for `onepeace.load`: a model
folder, such as `onepeace convert` makes of the released one-peace-vision.pkl, or a name on the Hub.

``img_size``, a side or (height, width) in pixels, is the image size of the model. For a square, the table of relative
positions is resampled once; for other sizes, it is stretched in each pass. Sizes are multiples of the patch.

`TimmBackbone` of transformers takes these models by `TimmBackboneConfig(backbone="onepeace_tiny", out_indices=[...])`;
all maps have the stride of the patch.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from timm import models
from timm.layers import to_2tuple
from torch import nn

from onepeace.config import Config, to_plain
from onepeace.errors import UserError, expect
from onepeace.hub.folder import parse_config, read_config
from onepeace.hub.resolve import BUNDLED, resolve
from onepeace.processors import ImageProcessor

from .branch import KEY, ImageBranch, own_classes

__all__ = ["CONFIGS", "ImageBranch", "default_cfgs"]


def _create(
    name: str,
    pretrained: bool,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    out_indices: int | Sequence[int] = 3,
    config: Any = None,
    **options: Any,
) -> nn.Module:
    """Build a registered model for `timm.create_model`; ``config`` is that of a model saved by timm."""
    cfg = models.resolve_pretrained_cfg(name, pretrained_cfg, pretrained_cfg_overlay)
    config = CONFIGS.get(name) if config is None else parse_config(config, "config.json")
    overlay: dict[str, Any] = {}
    if cfg.file and cfg.source is None:  # with a source, timm reads weights it saved itself
        folder = resolve(cfg.file)
        config = read_config(folder)
        if KEY not in config.model.adapters:
            raise UserError(f"the model has no {KEY} branch, only {', '.join(config.model.adapters)}", where=folder)
        overlay = {**data_config(config), **(pretrained_cfg_overlay or {}), "file": str(folder), "custom_load": True}
    if config is None:
        raise UserError(f'{name} has no default weights: give pretrained_cfg_overlay={{"file": FOLDER}}')
    img_size = options.get("img_size")
    if img_size is not None:
        overlay["input_size"] = (3, *to_2tuple(img_size))
    model = models.build_model_with_cfg(
        ImageBranch,
        name,
        pretrained,
        pretrained_cfg=replace(cfg, **overlay).to_dict(),
        feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
        config=config,
        empty=pretrained and bool(overlay.get("custom_load")),
        **options,
    )
    model._model_args = {"config": to_plain(config)}  # type: ignore[assignment]  # timm saves them
    return model


def data_config(config: Config) -> dict[str, Any]:
    """Settings that make `timm.data.create_transform` equal our processor, and settings of the classifier."""
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
    }


CONFIGS = {"onepeace_tiny": read_config(BUNDLED / "tiny")}
"""Configurations by name of the functions below; others read that of the given folder."""

default_cfgs = models.generate_default_cfgs(
    {
        "onepeace": {"num_classes": 0, "classifier": "head"},
        "onepeace_tiny.image": {
            **data_config(CONFIGS["onepeace_tiny"]),
            "file": str(BUNDLED / "tiny"),
            "custom_load": True,
        },
    }
)
"""Settings of the models; `register_model` looks them up in this module under this name."""


@models.register_model
def onepeace(pretrained: bool = False, **options: Any) -> nn.Module:
    return _create("onepeace", pretrained, **options)


@models.register_model
def onepeace_tiny(pretrained: bool = False, **options: Any) -> nn.Module:
    return _create("onepeace_tiny", pretrained, **options)
