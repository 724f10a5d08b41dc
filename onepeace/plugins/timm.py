"""Image branch as timm models; importing this module registers them.

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
import torch.fx
from timm import models
from timm.layers import global_pool_nlc, to_2tuple
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from onepeace.config import Config, ModelConfig, to_plain
from onepeace.errors import UserError, expect
from onepeace.heads import Classifier
from onepeace.hub import weights as weight_files
from onepeace.hub.architectures import architecture, build_encoder, keep_modalities
from onepeace.hub.folder import parse_config, read_config
from onepeace.hub.resolve import BUNDLED, resolve
from onepeace.layers.position import trunc_normal
from onepeace.model import OnePeace
from onepeace.model.adapters.image import ImageAdapter
from onepeace.processors import ImageProcessor

KEY = "image"
POOLS = ("token", "avg", "avgmax", "max", "")
FIRST_CONV = {"hmlp": "convs.0", "conv": "convs.0", "lite": "network.first"}
"""First convolution by stem; timm adapts it to another number of channels."""


class ImageBranch(nn.Module):
    """Image encoder with the methods and attributes that timm expects of a Vision Transformer.

    A classifier is one linear layer on pooled tokens. Pooled tokens are normalised once more (``fc_norm``) where the
    encoder has no final norm, as in the released vision branch, or where the model's own classifier does so.

    Args:
        config: model configuration; only the image branch is built.
        num_classes: 0 returns the pooled features (B, D).
        global_pool: "token" is CLS; "avg", "max" and "avgmax" pool the patches; "" keeps all tokens. The default is
            "avg" with ``fc_norm``, else "token".
        in_chans: image channels; the first convolution is adapted as in timm's own models.
        img_size: image size of the model; see the module.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth rate of the last block.
        dynamic_img_size: accepted for compatibility; images of any size fit either way.
        empty: leave the encoder uninitialised until `load_pretrained`; random weights take minutes at 4 B.
    """

    num_prefix_tokens = 1

    def __init__(
        self,
        config: Config,
        num_classes: int = 0,
        global_pool: str | None = None,
        in_chans: int = 3,
        img_size: int | list[int] | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        dynamic_img_size: bool = True,
        empty: bool = False,
    ):
        super().__init__()
        has_norm = own_classes(config.model) > 0 or not config.model.has_final_norm(KEY)
        config = keep_modalities(config, [KEY], "timm")
        if img_size is not None:
            config = with_image_size(config, img_size)
        model = replace(
            config.model, projections=(), heads={}, decoder=None, logit_scale=False, drop_path=drop_path_rate
        )
        device = torch.get_default_device()
        with torch.device("meta" if empty else device):
            self.trunk = expect(build_encoder(replace(config, model=model)), OnePeace)
        if empty:
            self.trunk.to_empty(device=device)
        adapter = expect(self.trunk.adapters[KEY], ImageAdapter)
        self.patch_size, self.architecture = adapter.patch_size, config.architecture
        self.in_chans = adapter.channels = in_chans
        name, conv = next((n, m) for n, m in self.trunk.named_modules() if isinstance(m, nn.Conv2d))
        self.first_conv = f"{name}.weight"
        if in_chans != conv.in_channels:
            conv.weight = nn.Parameter(models.adapt_input_conv(in_chans, conv.weight.detach().float()))
            conv.in_channels = in_chans
        self.embed_dim = self.num_features = self.head_hidden_size = model.dim
        self.feature_info = [
            {"module": f"trunk.blocks.{i}", "num_chs": model.dim, "reduction": self.patch_size}
            for i in range(model.depth)
        ]
        self.fc_norm: nn.Module = nn.LayerNorm(model.dim) if has_norm else nn.Identity()
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, ("avg" if has_norm else "token") if global_pool is None else global_pool)

    def load_pretrained(self, folder: str) -> None:
        """Copy the weights of a model folder; timm calls this if ``custom_load`` is set."""
        found = weight_files.load_encoder(folder, modalities=[KEY])
        given, resize = found.state_dict(), architecture(self.architecture).resize
        wanted = {name: tuple(tensor.shape) for name, tensor in self.trunk.state_dict().items()}
        given[self.first_conv] = models.adapt_input_conv(self.in_chans, given[self.first_conv].float())
        for name, shape in wanted.items():
            if resize is not None and given[name].shape != shape:  # another img_size
                try:
                    given[name] = resize(given[name], shape)
                except ValueError as error:
                    raise UserError(f"{folder}: {name}: {error}") from error
        self.trunk.load_state_dict({name: given[name] for name in wanted})
        if (classes := own_classes(found.config)) > 0:
            classifier = expect(found.heads["classifier"], Classifier)
            self.fc_norm.load_state_dict(classifier.norm.state_dict())
            if classes == self.num_classes:
                self.head.load_state_dict(classifier.out.state_dict())

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
            if global_pool not in POOLS:
                raise UserError(f"global_pool is {global_pool!r}; it can be {', '.join(map(repr, POOLS))}")
            self.global_pool = global_pool
        self.num_classes = num_classes
        self.head: nn.Module = nn.Identity()
        if num_classes > 0:
            like = next(self.trunk.parameters())
            self.head = nn.Linear(self.embed_dim, num_classes, device=like.device, dtype=like.dtype)
            trunc_normal(self.head.weight)
            nn.init.zeros_(self.head.bias)
        self.head.train(self.training)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
    ) -> Any:
        """(final tokens (B, L, D), outputs of chosen blocks); the latter alone with ``intermediates_only``.

        Args:
            x: (B, 3, H, W).
            indices: block numbers, -1 is the last; or the number of last blocks; None: all. Outputs are in ascending
                order.
            return_prefix_tokens: return pairs of patches and CLS (B, 1, D).
            norm: apply the final norm to each output.
            stop_early: skip the blocks after the last of ``indices``.
            output_fmt: "NCHW" for maps (B, D, rows, columns), "NLC" for tokens (B, rows * columns, D).
            output_dict: return "image_intermediates", "image_intermediates_prefix" and "image_features".
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise UserError(f"output_fmt is {output_fmt!r}; it can be 'NCHW' or 'NLC'")
        chosen = sorted(feature_take_indices(len(self.trunk.blocks), indices, as_set=True)[0])
        stems = self.trunk.stems({KEY: {"pixels": x}})
        features = self.trunk.encode(stems, out_indices=chosen, num_blocks=chosen[-1] + 1 if stop_early else None)[KEY]
        maps, prefixes = [], []
        for each in features.intermediates:
            if norm and self.trunk.norms is not None:
                each = each._replace(tokens=self.trunk.norms[KEY](each.tokens))
            maps.append(each.feature_map() if output_fmt == "NCHW" else each.tokens[:, 1:])
            prefixes.append(each.tokens[:, :1])
        if output_dict:
            prefix = {"image_intermediates_prefix": prefixes} if return_prefix_tokens else {}
            final = {} if intermediates_only else {"image_features": features.tokens}
            return {"image_intermediates": maps, **prefix, **final}
        outputs = list(zip(maps, prefixes, strict=True)) if return_prefix_tokens else maps
        return outputs if intermediates_only else (features.tokens, outputs)

    def get_intermediate_layers(
        self,
        x: Tensor,
        n: int | list[int] = 1,
        reshape: bool = False,
        return_prefix_tokens: bool = False,
        norm: bool = False,
    ) -> list[Any]:
        """`forward_intermediates` with the arguments of DINO."""
        output_fmt = "NCHW" if reshape else "NLC"
        return self.forward_intermediates(x, n, return_prefix_tokens, norm, False, output_fmt, True)

    def set_input_size(self, img_size: int | list[int] | None = None, patch_size: int | None = None) -> None:
        """Set ``img_size`` as the constructor does, on a loaded model."""
        if patch_size not in (None, self.patch_size):
            raise UserError(f"patch_size is {patch_size}; the stem has patches of {self.patch_size}")
        if img_size is None:
            return
        config = with_image_size(Config(self.trunk.config, architecture=self.architecture), img_size)
        with torch.device("meta"):
            target = build_encoder(config).adapters[KEY]
        adapter, resize = expect(self.trunk.adapters[KEY], ImageAdapter), architecture(self.architecture).resize
        for table, other in zip(adapter.bias_tables, target.bias_tables, strict=True):
            if resize is not None and table.shape != other.shape:
                resized = other if table.is_meta else resize(table.data, tuple(other.shape))
                table.data = resized.to(table.dtype)
        adapter.bias_grid, self.trunk.config = expect(target, ImageAdapter).bias_grid, config.model
        size = {"input_size": (self.in_chans, *to_2tuple(img_size))}
        self.pretrained_cfg = self.default_cfg = {**getattr(self, "pretrained_cfg", {}), **size}

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the layers that the outputs of these blocks do not need; return the block numbers."""
        trunk, adapter = self.trunk, self.trunk.adapters[KEY]
        chosen, last = feature_take_indices(len(trunk.blocks), indices)
        trunk.blocks, adapter.bias_tables = trunk.blocks[: last + 1], adapter.bias_tables[: last + 1]
        if prune_norm:
            trunk.norms = None
        trunk.config = replace(trunk.config, depth=last + 1, final_norm=trunk.norms is not None)
        if prune_head:
            self.fc_norm = nn.Identity()
            self.reset_classifier(0, "")
        return chosen

    def forward_features(self, x: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) to tokens (B, 1 + rows * columns, D), CLS first."""
        return _tokens(self.trunk, x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens to logits (B, num_classes); to pooled features (B, D) with ``pre_logits`` or without a classifier."""
        x = self.head_drop(self.fc_norm(global_pool_nlc(x, self.global_pool, self.num_prefix_tokens)))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


@torch.fx.wrap
def _tokens(trunk: OnePeace, x: Tensor) -> Tensor:
    # One node in a traced graph, as the operations depend on the image size.
    return trunk.features({KEY: {"pixels": x}})[KEY]


def with_image_size(config: Config, img_size: int | Sequence[int]) -> Config:
    """Configuration for images of this size; a square size also sets the grid of the relative positions."""
    height, width = to_2tuple(img_size)
    adapter = config.model.adapters[KEY]
    patch = adapter.get("patch_size", 16)
    if height % patch or width % patch or height == width < 3 * patch:  # the table of positions is at least 3 x 3
        raise UserError(f"img_size {height} x {width}: give multiples of the patch, {patch}, from {3 * patch}")
    if height != width:
        return config
    adapters = {**config.model.adapters, KEY: {**adapter, "bias_grid": height // patch}}
    processors = {**config.processors, KEY: {**config.processors.get(KEY, {}), "size": height}}
    return replace(config, model=replace(config.model, adapters=adapters), processors=processors)


def own_classes(model: ModelConfig) -> int:
    """Number of classes of the model's classifier if it has timm's form (mean, norm, linear layer), else 0."""
    head = model.heads.get("classifier", {})
    alone = len(model.adapters) == 1 and head.get("on") == KEY and head.get("inputs", 1) == 1
    if not alone or head.get("pool") != "mean" or head.get("hidden_ratio", 2) or head.get("pooler", False):
        return 0
    return head["num_classes"]


def _data_config(config: Config) -> dict[str, Any]:
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


def _create(
    name: str,
    pretrained: bool,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    out_indices: int | Sequence[int] = 3,
    config: Any = None,
    device: Any = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> nn.Module:
    """Build a registered model for `timm.create_model`; ``config`` is that of a model saved by timm."""
    cfg = models.resolve_pretrained_cfg(name, pretrained_cfg, pretrained_cfg_overlay)
    config, overlay = CONFIGS[name] if config is None else parse_config(config, "config.json"), {}
    if cfg.file and cfg.source is None:  # with a source, timm reads weights it saved itself
        folder = resolve(cfg.file)
        config = read_config(folder)
        if KEY not in config.model.adapters:
            raise UserError(f"{folder}: the model has no {KEY} branch, only {', '.join(config.model.adapters)}")
        overlay = {**_data_config(config), **(pretrained_cfg_overlay or {}), "file": str(folder), "custom_load": True}
    if config is None:
        raise UserError(f'{name} has no default weights: give pretrained_cfg_overlay={{"file": FOLDER}}')
    if (size := options.get("img_size")) is not None:
        overlay["input_size"] = (options.get("in_chans", 3), *to_2tuple(size))
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
    model._model_args = {"config": to_plain(config)}  # type: ignore[assignment]  # timm saves them
    return model if dtype is None else model.to(dtype)


CONFIGS: dict[str, Config | None] = {"onepeace": None, "onepeace_tiny": read_config(BUNDLED / "tiny")}
"""Configurations by name of the functions below; None: read from the given folder."""

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
"""Settings of the models; `register_model` looks them up in this module under this name."""


@models.register_model
def onepeace(pretrained: bool = False, **options: Any) -> nn.Module:
    return _create("onepeace", pretrained, **options)


@models.register_model
def onepeace_tiny(pretrained: bool = False, **options: Any) -> nn.Module:
    return _create("onepeace_tiny", pretrained, **options)
