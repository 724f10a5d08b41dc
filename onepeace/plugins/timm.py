"""Image branch as timm models; importing this module registers them.

    import timm
    import onepeace.plugins.timm

    model = timm.create_model("onepeace_tiny.image", pretrained=True, num_classes=10)
    maps = timm.create_model("onepeace_tiny.image", pretrained=True, features_only=True, out_indices=(2, 5))
    own = timm.create_model("onepeace", pretrained=True, pretrained_cfg_overlay={"file": "models/mine"})
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(own))

``onepeace_tiny`` is the bundled model, ``onepeace`` that of ``file``, which is what `onepeace.load` takes: a model
folder, such as `onepeace convert` makes of the released one-peace-vision.pkl, or a name of the hub.

``img_size``, a side or (height, width) in pixels, says which pictures the model is for. For a square the table of
relative positions is resampled; a model takes pictures of other sizes as well,
for which positions and table are stretched on the fly. All sizes are multiples of the patch.

Networks of transformers that take a backbone of timm take these, with maps of one stride:

    from transformers import TimmBackbone, TimmBackboneConfig, UperNetConfig, UperNetForSemanticSegmentation

    maps = TimmBackboneConfig(backbone="onepeace_tiny", out_indices=[1, 2, 3, 5])
    network = UperNetForSemanticSegmentation(UperNetConfig(backbone_config=maps, num_labels=150))  # random weights
    network.backbone = TimmBackbone.from_pretrained("onepeace_tiny", out_indices=[1, 2, 3, 5])

Mask2Former likewise, with ``feature_strides`` and ``common_stride`` of the patch.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from timm import models
from torch import nn

from onepeace.config import Config
from onepeace.errors import UserError, expect
from onepeace.hub.folder import read_config
from onepeace.hub.resolve import BUNDLED, resolve
from onepeace.plugins.timm_model import KEY, ImageBranch, own_classes, sides_of
from onepeace.processors import ImageProcessor

FIRST_CONV = {"hmlp": "convs.0", "conv": "convs.0", "lite": "network.first"}
"""First convolution by stem; timm adapts it to another number of channels."""


def _create(
    name: str,
    pretrained: bool,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    out_indices: int | Sequence[int] = 3,
    device: Any = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> nn.Module:
    """Build a registered model for `timm.create_model`."""
    cfg = models.resolve_pretrained_cfg(name, pretrained_cfg, pretrained_cfg_overlay)
    config, overlay = CONFIGS[name], {}
    if cfg.file and cfg.source is None:  # with a source, timm reads weights it saved itself
        folder = resolve(cfg.file)
        config = read_config(folder)
        if KEY not in config.model.adapters:
            raise UserError(f"{folder}: has no {KEY}s, only {', '.join(config.model.adapters)}")
        overlay = {**_data_config(config), **(pretrained_cfg_overlay or {}), "file": str(folder), "custom_load": True}
    if config is None:
        raise UserError(f'{name} has no sizes of its own: give pretrained_cfg_overlay={{"file": FOLDER}}')
    if (size := options.get("img_size")) is not None:
        overlay["input_size"] = (options.get("in_chans", 3), *sides_of(size))
    with torch.device(device or torch.get_default_device()):
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
    return model if dtype is None else model.to(dtype)


def _data_config(config: Config) -> dict[str, Any]:
    """Settings that make `timm.data.create_transform` equal our processor, and the classifier's."""
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


CONFIGS: dict[str, Config | None] = {"onepeace": None, "onepeace_tiny": read_config(BUNDLED / "tiny")}
"""Configurations by name of the functions below; None: that of the given folder."""

default_cfgs = models.generate_default_cfgs(
    {
        "onepeace": {"num_classes": 0, "classifier": "head"},
        "onepeace_tiny.image": {
            **_data_config(expect(CONFIGS["onepeace_tiny"], Config)),
            "file": str(BUNDLED / "tiny"),
            "custom_load": True,
        },
    }
)
"""Settings; `register_model` looks them up in its module under this name."""


@models.register_model
def onepeace(pretrained: bool = False, **options: Any) -> nn.Module:
    return _create("onepeace", pretrained, **options)


@models.register_model
def onepeace_tiny(pretrained: bool = False, **options: Any) -> nn.Module:
    return _create("onepeace_tiny", pretrained, **options)
