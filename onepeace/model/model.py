"""OnePeace: adapters, shared blocks with an FFN per modality, and heads.

Data flow (paper: Figure 1): raw batch -> adapter -> TokenSequence -> blocks -> features by modality -> CLS ->
projection -> unit vector. A modality is a key of the input dictionary; the code below does not depend on specific keys.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onepeace.config import ModelConfig
from onepeace.errors import UserError
from onepeace.heads import make_head
from onepeace.layers.features import Features
from onepeace.layers.position import trunc_normal

from .adapters import ADAPTERS, make_adapter
from .block import Block, ClipBlock
from .encoder import encode
from .interface import INITIAL_SCALE, Encoder, Inputs
from .masked_decoder import MaskedDecoder
from .sequence import StemOutput, TokenSequence


class OnePeace(Encoder):
    """One Transformer for all modalities (arXiv 2305.11172).

    Args:
        config: sizes and modalities. Construction on the meta device allocates nothing.
    """

    decoder: MaskedDecoder | None

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.adapters = _make_adapters(config)  # type: ignore[assignment]
        self.blocks = _make_blocks(config)  # type: ignore[assignment]
        self.norms = _make_norms(config)
        self.heads = _make_heads(config)  # type: ignore[assignment]
        self.logit_scale = nn.Parameter(torch.empty(())) if config.logit_scale else None
        self.decoder = _make_decoder(config)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as released: Linear weights normal, truncated at one standard deviation; biases, tables 0."""
        for module in self.modules():
            self.reset_module(module)

    def reset_module(self, module: nn.Module) -> None:
        """Initialise one module of this model, without its children.

        The plug-in of transformers calls it for the modules whose weights a file lacks. Layers of torch not named here
        keep what their constructors have drawn.
        """
        if module is self:
            if self.logit_scale is not None:
                nn.init.constant_(self.logit_scale, math.log(INITIAL_SCALE))
        elif isinstance(module, nn.Linear) and type(module).reset_parameters is nn.Linear.reset_parameters:
            self._reset_linear(module)
        else:
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)
            if _initialises_itself(module):
                module.reset_parameters()  # type: ignore[operator]

    def _reset_linear(self, linear: nn.Linear) -> None:
        trunc_normal(linear.weight, self.config.init_std)
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)

    def no_weight_decay(self) -> set[str]:
        """Names of position and CLS parameters, which have no weight decay (released code)."""
        names = set()
        for key, adapter in self.adapters.items():
            names |= {f"adapters.{key}.{name}" for name in adapter.no_weight_decay()}
        if self.decoder is not None:
            names |= {f"decoder.{name}" for name in self.decoder.no_weight_decay()}
        return names

    def sharding_units(self) -> list[nn.Module]:
        """The FFNs and the blocks around them: a pass gathers only the FFNs of its modalities."""
        units: list[nn.Module] = []
        for block in self.blocks:
            units += [*block.ffn.values(), block]  # type: ignore[union-attr, operator]
        return units

    def stems(self, inputs: Inputs) -> dict[str, StemOutput]:
        """Run the stem of each modality, the part that does not depend on the mask."""
        unknown = [key for key in inputs if key not in self.adapters]
        if unknown:
            raise ValueError(f"no modality {unknown[0]!r}; the model has {', '.join(self.adapters)}")
        if not inputs:
            raise ValueError(f"the batch is empty; the model reads {', '.join(self.adapters)}")
        return {key: self.adapters[key].stem_tokens(inputs[key]) for key in self.adapters if key in inputs}

    def encode(
        self,
        stems: Mapping[str, StemOutput],
        keep: Mapping[str, Tensor] | None = None,
        out_indices: Sequence[int] = (),
    ) -> dict[str, Features]:
        """Token features by modality from one joint pass over all modalities.

        Args:
            keep: (B, K) by modality: ids of the visible tokens, padded with -1.
            out_indices: blocks whose outputs are returned as ``intermediates``, as in timm; -1 is the last.
        """
        for key in stems:
            if self.adapters[key].over_time and len(stems) > 1:
                raise UserError(f"{key} cannot be encoded jointly with other modalities; encode it alone")
        depth = len(self.blocks)
        for index in out_indices:
            if not -depth <= index < depth:
                raise ValueError(f"out_indices has {index}; this model has {depth} blocks: {-depth} to {depth - 1}")
        out_numbers = [index % depth for index in out_indices]
        keep = keep or {}
        sequence = TokenSequence.concat(self.adapters[key](stem, keep.get(key)) for key, stem in stems.items())
        features_by_key = {}
        for key, features in encode(sequence, self.blocks, self.norms, out_numbers).items():
            features_by_key[key] = self.adapters[key].item_features(features, stems[key].pooled)
        return features_by_key

    def embed(self, key: str, features: Features) -> Tensor:
        """Map features of one modality to unit vectors (B, E): the projection of CLS, in float32 at least.

        The norm is outside the projection, so that LoRA and quantisation of Linear layers do not affect it.
        """
        if key not in self.config.projections:
            modalities = ", ".join(self.config.projections)
            raise ValueError(f"{key} has no projection into the shared space; modalities with one: {modalities}")
        x = self.heads[key](features.cls)
        return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)

    def reconstruct(self, stems: Mapping[str, StemOutput], keep: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Encode the tokens ``keep`` only, and decode the features of all tokens: (B, L_m, D), CLS first."""
        if self.decoder is None:
            raise ValueError("this model has no decoder; set model.decoder in its configuration")
        masks = {}
        for key, stem in stems.items():
            mask = stem.padding_mask
            masks[key] = None if mask is None else torch.cat([mask.new_zeros(mask.shape[0], 1), mask], dim=1)
        grids = {key: stem.grid for key, stem in stems.items()}
        return self.decoder(self.encode(stems, keep), keep, grids, masks)


def _initialises_itself(module: nn.Module) -> bool:
    """Whether a module has initial values of its own: it is neither of torch nor an embedding of a library."""
    is_of_torch = isinstance(module, nn.Embedding) or type(module).__module__.startswith("torch.")
    return not is_of_torch and hasattr(module, "reset_parameters")


def _make_adapters(config: ModelConfig) -> nn.ModuleDict:
    num_tables = config.depth if config.bias_per_block else 1
    adapters = {}
    for key, options in config.adapters.items():
        adapters[key] = make_adapter(key, options, config.dim, config.num_heads, num_tables)
    return nn.ModuleDict(adapters)


def _make_blocks(config: ModelConfig) -> nn.ModuleList:
    """The blocks, whose stochastic depth grows linearly from 0 to ``config.drop_path``."""
    make_block: Callable[..., Block] = Block
    modalities_over_time = [key for key in config.adapters if ADAPTERS[key].over_time]  # such as video
    if modalities_over_time:
        make_block = partial(ClipBlock, over_time=modalities_over_time)
    blocks = nn.ModuleList()
    for rate in torch.linspace(0, config.drop_path, config.depth, device="cpu").tolist():
        block = make_block(
            config.dim,
            config.num_heads,
            config.ffn_dim,
            modalities=list(config.adapters),
            drop_path=rate,
            layer_scale=config.layer_scale,
        )
        blocks.append(block)
    return blocks


def _make_norms(config: ModelConfig) -> nn.ModuleDict | None:
    """The final norms; None if no modality has one."""
    norms = {key: nn.LayerNorm(config.dim) for key in config.adapters if config.has_final_norm(key)}
    return nn.ModuleDict(norms) if norms else None


def _make_heads(config: ModelConfig) -> nn.ModuleDict:
    """Projections into the shared space by modality, and task heads by name; `ModelConfig` refuses a head with the name
    of a modality."""
    heads: dict[str, nn.Module] = {key: nn.Linear(config.dim, config.embed_dim) for key in config.projections}
    for name, options in config.heads.items():
        heads[name] = make_head(name, options, config.dim, config.num_heads)
    return nn.ModuleDict(heads)


def _make_decoder(config: ModelConfig) -> MaskedDecoder | None:
    decoder = config.decoder
    if decoder is None:
        return None
    positions = {}
    for key in config.adapters:
        options = decoder.options.get(key, {})
        positions[key] = partial(ADAPTERS[key].decoder_positions, **options)
    return MaskedDecoder(
        encoder_dim=config.dim,
        dim=decoder.dim,
        depth=decoder.depth,
        num_heads=decoder.num_heads,
        ffn_dim=decoder.ffn_dim,
        positions=positions,
    )
