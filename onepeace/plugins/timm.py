"""Image branch as timm models; importing this package registers them.

    import timm
    import onepeace.plugins.timm

    model = timm.create_model("onepeace_tiny.image", pretrained=True, num_classes=10)
    maps = timm.create_model("onepeace_tiny.image", pretrained=True, features_only=True, out_indices=(0, 2))
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
from timm.layers import global_pool_nlc, to_2tuple
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from onepeace.config import Config, to_plain
from onepeace.errors import UserError, expect
from onepeace.hub import weights as weight_files
from onepeace.hub.architectures import architecture, build_encoder, keep_modalities
from onepeace.hub.folder import parse_config
from onepeace.hub.resolve import BUNDLED, fetch_model, open_model
from onepeace.layers.position import trunc_normal
from onepeace.model import OnePeace
from onepeace.model.adapters.image import ImageAdapter
from onepeace.processors import ImageProcessor
from onepeace.processors.image import RESIZE

__all__ = ["CONFIGS", "ImageBranch", "default_cfgs"]

KEY = "image"


class ImageBranch(nn.Module):
    """Image encoder with timm's interface.

    A classifier is one linear layer on pooled tokens. Pooled tokens are normalised once more (``fc_norm``) where the
    encoder has no final norm, as in the released vision branch.

    Args:
        config: model configuration; only the image branch is built.
        num_classes: 0 returns the pooled features (B, D).
        global_pool: "token" is CLS; "avg", "max" and "avgmax" pool the patches; "" keeps all tokens. The default is
            "avg" with ``fc_norm``, else "token".
        img_size: image size of the model; see the package.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth rate of the last block.
        in_chans: number of image channels, always 3.
        empty: leave the encoder uninitialised until `load_pretrained`; random weights take minutes at 4 B.
    """

    num_prefix_tokens = 1

    def __init__(
        self,
        config: Config,
        num_classes: int = 0,
        global_pool: str | None = None,
        img_size: int | Sequence[int] | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        in_chans: int = 3,
        empty: bool = False,
    ):
        super().__init__()
        if in_chans != 3:
            raise UserError(f"in_chans is {in_chans}; pictures have 3 channels: repeat a grey one three times")
        has_fc_norm = not config.model.has_final_norm(KEY)
        config = keep_modalities(config, [KEY], "timm")
        if img_size is not None:
            config = with_image_size(config, img_size)
        self.architecture = config.architecture
        self.trunk = _make_trunk(config, drop_path_rate, empty)
        dim = config.model.dim
        self.embed_dim = self.num_features = self.head_hidden_size = dim
        self.feature_info = [
            {"module": f"trunk.blocks.{block}", "num_chs": dim, "reduction": self._adapter.patch_size}
            for block in range(config.model.depth)
        ]
        self.fc_norm: nn.Module = nn.LayerNorm(dim) if has_fc_norm else nn.Identity()
        self.head_drop = nn.Dropout(drop_rate)
        if global_pool is None:
            global_pool = "avg" if has_fc_norm else "token"
        self.reset_classifier(num_classes, global_pool)

    @property
    def _adapter(self) -> ImageAdapter:
        return expect(self.trunk.adapters[KEY], ImageAdapter)

    def load_pretrained(self, folder: str) -> None:
        """Copy the weights of a model folder; timm calls this if ``custom_load`` is set."""
        encoder = weight_files.load_encoder(folder, modalities=[KEY])
        resize: Any = architecture(self.architecture).resize
        state = encoder.state_dict()
        for name, target in self.trunk.state_dict().items():
            if state[name].shape != target.shape:  # a table of relative positions, of another img_size
                state[name] = resize(state[name], tuple(target.shape))
        self.trunk.load_state_dict({name: state[name] for name in self.trunk.state_dict()})

    def no_weight_decay(self) -> set[str]:
        return {f"trunk.{name}" for name in self.trunk.no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for layer-wise decay, as in our recipes: adapter, blocks, the rest.

        A table of relative positions belongs to its block.
        """
        return {
            "stem": rf"^trunk\.adapters\.{KEY}\.(?!bias_tables)",
            "blocks": [(rf"^trunk\.(?:blocks|adapters\.{KEY}\.bias_tables)\.(\d+)", None)],
        }

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.trunk.set_grad_checkpointing(enable)

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one, or by none for 0; `global_pool` None keeps the pooling."""
        if global_pool is not None:
            self.global_pool = global_pool
        self.num_classes = num_classes
        self.head: nn.Module = nn.Identity()
        if num_classes > 0:
            parameter = next(self.trunk.parameters())
            self.head = nn.Linear(self.embed_dim, num_classes, device=parameter.device, dtype=parameter.dtype)
            trunc_normal(self.head.weight)
            nn.init.zeros_(self.head.bias)
        self.head.train(self.training)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """(final tokens (B, L, D), outputs of chosen blocks); the latter alone with ``intermediates_only``.

        Args:
            x: (B, 3, H, W).
            indices: block numbers, -1 is the last; or the number of last blocks; None: all. Outputs are in ascending
                order.
            norm: apply the final norm to each output.
            output_fmt: "NCHW" for maps (B, D, rows, columns), "NLC" for tokens (B, rows * columns, D).
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise UserError(f"output_fmt is {output_fmt!r}; it can be 'NCHW' or 'NLC'")
        blocks, _ = feature_take_indices(len(self.trunk.blocks), indices)
        stems = self.trunk.stems({KEY: {"pixels": x}})
        features = self.trunk.encode(stems, out_indices=sorted(blocks))[KEY]
        intermediates = []
        for block in features.intermediates:
            if norm and self.trunk.norms is not None:
                block = block._replace(tokens=self.trunk.norms[KEY](block.tokens))
            intermediates.append(block.feature_map() if output_fmt == "NCHW" else block.tokens[:, 1:])
        return intermediates if intermediates_only else (features.tokens, intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the layers that the outputs of these blocks do not need; return the block numbers."""
        blocks, last = feature_take_indices(len(self.trunk.blocks), indices)
        self.trunk.blocks = self.trunk.blocks[: last + 1]
        self._adapter.bias_tables = self._adapter.bias_tables[: last + 1]
        if prune_norm:
            self.trunk.norms = None
        has_norm = self.trunk.norms is not None
        self.trunk.config = replace(self.trunk.config, depth=last + 1, final_norm=has_norm)
        if prune_head:
            self.fc_norm = nn.Identity()
            self.reset_classifier(0, "")
        return blocks

    def forward_features(self, x: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) to tokens (B, 1 + rows * columns, D), CLS first."""
        return self.trunk.features({KEY: {"pixels": x}})[KEY]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens to logits (B, num_classes); to pooled features (B, D) with ``pre_logits`` or without a classifier."""
        pooled = global_pool_nlc(x, self.global_pool, self.num_prefix_tokens)
        pooled = self.head_drop(self.fc_norm(pooled))
        return pooled if pre_logits else self.head(pooled)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def _make_trunk(config: Config, drop_path_rate: float, empty: bool) -> OnePeace:
    """The image branch of a configuration, without what only the shared space and other heads use."""
    model = replace(config.model, projections=(), heads={}, decoder=None, logit_scale=False, drop_path=drop_path_rate)
    device = torch.get_default_device()
    with torch.device("meta" if empty else device):
        trunk = expect(build_encoder(replace(config, model=model)), OnePeace)
    return trunk.to_empty(device=device) if empty else trunk


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
        opened = fetch_model(cfg.file)
        config = opened.config
        if KEY not in config.model.adapters:
            raise UserError(f"the model has no {KEY} branch, only {', '.join(config.model.adapters)}", where=opened)
        overlay = {**data_config(config), **(pretrained_cfg_overlay or {}), "file": str(opened), "custom_load": True}
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
    """Settings that make `timm.data.create_transform` equal our processor, and those of a model without classifier.

    With "pad", timm's margins have the mean colour, and ours are black.
    """
    with torch.device("cpu"):  # also while a model is built on the meta device
        processor = expect(ImageProcessor.from_config(config.processors.get(KEY, {})), ImageProcessor)
    return {
        "input_size": (3, processor.height, processor.width),
        "mean": tuple(processor.mean.flatten().tolist()),
        "std": tuple(processor.std.flatten().tolist()),
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": RESIZE[processor.resize].crop_mode,
        "num_classes": 0,
        "classifier": "head",
    }


CONFIGS = {"onepeace_tiny": open_model(BUNDLED / "tiny").config}
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
