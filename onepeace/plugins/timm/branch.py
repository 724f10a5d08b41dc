"""Image encoder with the methods and attributes that timm expects of a Vision Transformer."""

from dataclasses import replace
from typing import Any

import torch
import torch.fx
from timm import models
from timm.layers import global_pool_nlc, to_2tuple
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from onepeace.config import Config
from onepeace.errors import UserError, expect
from onepeace.heads import Classifier
from onepeace.hub import weights as weight_files
from onepeace.hub.architectures import architecture, build_encoder, keep_modalities
from onepeace.layers.position import trunc_normal
from onepeace.model import OnePeace
from onepeace.model.adapters.image import ImageAdapter

from .settings import KEY, own_classes, with_image_size

POOLS = ("token", "avg", "avgmax", "max", "")


class ImageBranch(nn.Module):
    """Image encoder with timm's interface.

    A classifier is one linear layer on pooled tokens. Pooled tokens are normalised once more (``fc_norm``) where the
    encoder has no final norm, as in the released vision branch, or where the model's own classifier does so.

    Args:
        config: model configuration; only the image branch is built.
        num_classes: 0 returns the pooled features (B, D).
        global_pool: "token" is CLS; "avg", "max" and "avgmax" pool the patches; "" keeps all tokens. The default is
            "avg" with ``fc_norm``, else "token".
        in_chans: image channels; the first convolution is adapted as in timm's own models.
        img_size: image size of the model; see the package.
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
        has_fc_norm = own_classes(config.model) > 0 or not config.model.has_final_norm(KEY)
        config = keep_modalities(config, [KEY], "timm")
        if img_size is not None:
            config = with_image_size(config, img_size)
        self.architecture = config.architecture
        self.trunk = _make_trunk(config, drop_path_rate, empty)
        self.patch_size = self._adapter.patch_size
        self._adapt_channels(in_chans)
        self._describe(config.model.dim, config.model.depth)
        self.fc_norm: nn.Module = nn.LayerNorm(config.model.dim) if has_fc_norm else nn.Identity()
        self.head_drop = nn.Dropout(drop_rate)
        if global_pool is None:
            global_pool = "avg" if has_fc_norm else "token"
        self.reset_classifier(num_classes, global_pool)

    @property
    def _adapter(self) -> ImageAdapter:
        return expect(self.trunk.adapters[KEY], ImageAdapter)

    def _adapt_channels(self, in_chans: int) -> None:
        """Adapt the first convolution to the number of image channels."""
        convs = ((name, module) for name, module in self.trunk.named_modules() if isinstance(module, nn.Conv2d))
        name, conv = next(convs)
        self.first_conv = f"{name}.weight"
        self.in_chans = in_chans
        self._adapter.channels = in_chans
        if in_chans != conv.in_channels:
            conv.weight = nn.Parameter(models.adapt_input_conv(in_chans, conv.weight.detach().float()))
            conv.in_channels = in_chans

    def _describe(self, dim: int, depth: int) -> None:
        """Set the attributes in which timm's tools look for sizes."""
        self.embed_dim = dim
        self.num_features = dim
        self.head_hidden_size = dim
        self.feature_info = [
            {"module": f"trunk.blocks.{block}", "num_chs": dim, "reduction": self.patch_size} for block in range(depth)
        ]

    def load_pretrained(self, folder: str) -> None:
        """Copy the weights of a model folder; timm calls this if ``custom_load`` is set."""
        encoder = weight_files.load_encoder(folder, modalities=[KEY])
        tensors = encoder.state_dict()
        tensors[self.first_conv] = models.adapt_input_conv(self.in_chans, tensors[self.first_conv].float())
        state = {}
        for name, target in self.trunk.state_dict().items():
            state[name] = self._resized(tensors[name], tuple(target.shape), f"{folder}: {name}")
        self.trunk.load_state_dict(state)
        num_classes = own_classes(encoder.config)
        if num_classes > 0:
            classifier = expect(encoder.heads["classifier"], Classifier)
            self.fc_norm.load_state_dict(classifier.norm.state_dict())
            if num_classes == self.num_classes:
                self.head.load_state_dict(classifier.out.state_dict())

    def _resized(self, tensor: Tensor, shape: tuple[int, ...], where: str) -> Tensor:
        """A tensor in its shape for the image size of this model; UserError begins with ``where``."""
        resize = architecture(self.architecture).resize
        if resize is None or tensor.shape == shape:
            return tensor
        try:
            return resize(tensor, shape)
        except ValueError as error:
            raise UserError(f"{error}", where=where) from error

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
            parameter = next(self.trunk.parameters())
            self.head = nn.Linear(self.embed_dim, num_classes, device=parameter.device, dtype=parameter.dtype)
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
        blocks, _ = feature_take_indices(len(self.trunk.blocks), indices, as_set=True)
        blocks = sorted(blocks)
        stems = self.trunk.stems({KEY: {"pixels": x}})
        num_blocks = blocks[-1] + 1 if stop_early else None
        features = self.trunk.encode(stems, out_indices=blocks, num_blocks=num_blocks)[KEY]
        patches = []
        prefixes = []
        for block_features in features.intermediates:
            if norm and self.trunk.norms is not None:
                block_features = block_features._replace(tokens=self.trunk.norms[KEY](block_features.tokens))
            prefixes.append(block_features.tokens[:, :1])
            if output_fmt == "NCHW":
                patches.append(block_features.feature_map())
            else:
                patches.append(block_features.tokens[:, 1:])
        if output_dict:
            outputs: dict[str, Any] = {"image_intermediates": patches}
            if return_prefix_tokens:
                outputs["image_intermediates_prefix"] = prefixes
            if not intermediates_only:
                outputs["image_features"] = features.tokens
            return outputs
        intermediates: list[Any] = list(zip(patches, prefixes, strict=True)) if return_prefix_tokens else patches
        return intermediates if intermediates_only else (features.tokens, intermediates)

    def get_intermediate_layers(
        self,
        x: Tensor,
        n: int | list[int] = 1,
        reshape: bool = False,
        return_prefix_tokens: bool = False,
        norm: bool = False,
    ) -> list[Any]:
        """`forward_intermediates` with the arguments of DINO."""
        return self.forward_intermediates(
            x,
            indices=n,
            return_prefix_tokens=return_prefix_tokens,
            norm=norm,
            output_fmt="NCHW" if reshape else "NLC",
            intermediates_only=True,
        )

    def set_input_size(self, img_size: int | list[int] | None = None, patch_size: int | None = None) -> None:
        """Set ``img_size`` as the constructor does, on a loaded model."""
        if patch_size not in (None, self.patch_size):
            raise UserError(f"patch_size is {patch_size}; the stem has patches of {self.patch_size}")
        if img_size is None:
            return
        config = with_image_size(Config(self.trunk.config, architecture=self.architecture), img_size)
        with torch.device("meta"):
            target = expect(build_encoder(config).adapters[KEY], ImageAdapter)
        for table, target_table in zip(self._adapter.bias_tables, target.bias_tables, strict=True):
            if table.is_meta:
                table.data = target_table.to(table.dtype)
            else:
                table.data = self._resized(table.data, tuple(target_table.shape), "img_size").to(table.dtype)
        self._adapter.bias_grid = target.bias_grid
        self.trunk.config = config.model
        settings = {**getattr(self, "pretrained_cfg", {}), "input_size": (self.in_chans, *to_2tuple(img_size))}
        self.pretrained_cfg = settings
        self.default_cfg = settings
        self._model_args: dict[str, Any] = {**getattr(self, "_model_args", {}), "img_size": img_size}  # timm saves them

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
        return _tokens(self.trunk, x)

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


@torch.fx.wrap
def _tokens(trunk: OnePeace, x: Tensor) -> Tensor:
    # One node in a traced graph, as the operations depend on the image size.
    return trunk.features({KEY: {"pixels": x}})[KEY]
