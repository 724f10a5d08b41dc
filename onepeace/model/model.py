"""OnePeace: adapters, shared blocks with an FFN per modality, projections. Start reading here, then sequence.py.

The flow (paper: Figure 1): raw batch -> adapter -> TokenSequence -> blocks -> features by modality -> CLS -> projection
-> unit vector. A modality is a key of the input dictionary; nothing below knows which keys there are.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from onepeace.config import ModelConfig
from onepeace.heads import Classifier, Projection
from onepeace.layers.position import trunc_normal

from .adapters import ADAPTERS, Adapter
from .block import Block
from .encoder import Features, encode
from .masked_decoder import MaskedDecoder, decoder_positions
from .sequence import Stem, TokenSequence

Inputs = Mapping[str, dict[str, Tensor]]


class OnePeace(nn.Module):
    """One Transformer for all modalities (arXiv 2305.11172).

    Args:
        config: sizes and modalities; on the meta device nothing is allocated.
    """

    # Both are an nn.ModuleDict, typed by what it holds.
    adapters: Mapping[str, Adapter]
    heads: Mapping[str, Projection]

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        keys = list(config.adapters)
        tables = config.depth if config.bias_per_block else 1
        self.adapters = nn.ModuleDict(  # type: ignore[assignment]
            {
                key: ADAPTERS[key](key, config.dim, config.num_heads, tables, **options)
                for key, options in config.adapters.items()
            }
        )
        rates = torch.linspace(0, config.drop_path, config.depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(
            Block(config.dim, config.num_heads, config.ffn_dim, keys, rate, config.layer_scale) for rate in rates
        )
        self.norms = nn.ModuleDict({key: nn.LayerNorm(config.dim) for key in keys}) if config.final_norm else None
        heads = {key: Projection(config.dim, config.embed_dim) for key in config.heads}
        self.heads = nn.ModuleDict(heads)  # type: ignore[assignment]
        self.logit_scale = nn.Parameter(torch.empty(())) if config.logit_scale else None
        self.decoder, self.classifier = None, None
        if (d := config.decoder) is not None:
            positions = {key: decoder_positions(ADAPTERS[key], d.options.get(key, {})) for key in keys}
            self.decoder = MaskedDecoder(config.dim, d.dim, d.depth, d.num_heads, d.ffn_dim, positions)
        if (c := config.classifier) is not None:
            num_heads = c.num_heads or config.num_heads
            parts = (c.num_classes, c.pool, c.hidden_ratio, c.pooler, c.inputs)
            self.classifier = Classifier(config.dim, num_heads, *parts)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The released initialisation: Linear layers normal, cut at one deviation; biases and bias tables 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal(module.weight, self.config.init_std)
            if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)
            # torch's own layers were filled by their constructors; others say what they want beyond the rule above.
            own = module is not self and not type(module).__module__.startswith("torch.")
            if own and not isinstance(module, nn.Linear) and hasattr(module, "reset_parameters"):
                module.reset_parameters()  # type: ignore[operator]
        if self.logit_scale is not None:
            nn.init.constant_(self.logit_scale, math.log(1 / 0.07))

    def no_weight_decay(self) -> set[str]:
        """Names of the positions and CLS tokens, which are not decayed (released code)."""
        names = {f"adapters.{key}.{name}" for key, a in self.adapters.items() for name in a.no_weight_decay()}
        if self.decoder is not None:
            names |= {f"decoder.{name}" for name in self.decoder.no_weight_decay()}
        return names

    def stems(self, inputs: Inputs) -> dict[str, Stem]:
        """Run each modality's stem, the part that does not depend on what is hidden."""
        unknown = [key for key in inputs if key not in self.adapters]
        if unknown or not inputs:
            raise ValueError(f"no modality {unknown[0] if unknown else ''!r}; the model has {', '.join(self.adapters)}")
        return {key: self.adapters[key].stem_tokens(inputs[key]) for key in self.adapters if key in inputs}

    def encode(self, stems: Mapping[str, Stem], keep: Mapping[str, Tensor] | None = None) -> dict[str, Features]:
        """One joint pass over all given modalities; ``keep`` (B, K) by modality: visible token ids, padded with -1."""
        keep = keep or {}
        placed = [self.adapters[key].embed_positions(stem, keep.get(key)) for key, stem in stems.items()]
        return encode(TokenSequence.concat(placed), self.blocks, self.norms)

    def embed(self, key: str, features: Features) -> Tensor:
        """Features of one modality -> unit vectors (B, E)."""
        if key not in self.heads:
            raise ValueError(f"{key} has no projection into the shared space; those that have: {', '.join(self.heads)}")
        return self.heads[key](features.cls)

    def forward(self, inputs: Inputs) -> dict[str, Tensor]:
        """Unit vectors (B, E) of each given modality, each encoded on its own.

        Args:
            inputs: any of {"text": {"ids"}, "image": {"pixels"}, "audio": {"waveform", "lengths"}}; see the adapters.
        """
        stems = self.stems(inputs)
        return {key: self.embed(key, self.encode({key: stem})[key]) for key, stem in stems.items()}

    def features(self, inputs: Inputs, keep: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Token features (B, L_m, D), CLS first, of one joint pass of all given modalities; padding is undefined."""
        return {key: features.tokens for key, features in self.encode(self.stems(inputs), keep).items()}

    def reconstruct(self, stems: Mapping[str, Stem], keep: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Encode only the tokens ``keep`` and let the decoder predict the features of all: (B, L_m, D), CLS first."""
        if self.decoder is None:
            raise ValueError("this model has no decoder; give model.decoder in its configuration")
        masks = {}
        for key, stem in stems.items():
            mask = stem.padding_mask
            masks[key] = None if mask is None else torch.cat([mask.new_zeros(len(mask), 1), mask], dim=1)
        grids = {key: stem.grid for key, stem in stems.items()}
        return self.decoder(self.encode(stems, keep), keep, grids, masks)

    def classify(self, *inputs: Inputs) -> Tensor:
        """Logits (B, num_classes) over one joint pass, or over one for each of ``config.classifier.inputs``."""
        if self.classifier is None or self.config.classifier is None:
            raise ValueError("this model has no classifier; load a fine-tuned one, or use unit vectors and labels")
        key = self.config.classifier.features
        return self.classifier(*(self.encode(self.stems(one))[key] for one in inputs))

    def temperature(self) -> Tensor:
        """exp(logit_scale), the stored parameter clamped in place to [0, ln 100] first (released code)."""
        if self.logit_scale is None:
            raise ValueError("this model has no logit_scale")
        with torch.no_grad():
            self.logit_scale.clamp_(0, math.log(100))
        return self.logit_scale.exp()
