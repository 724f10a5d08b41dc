"""The architecture "separate_towers": a Transformer for each modality; only the loss is shared.

Importing this file registers it. Blocks have the same shape and cost per item as in the shared Transformer.
"""

import copy
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from onepeace.config import ModelConfig
from onepeace.hub.architectures import ARCHITECTURES
from onepeace.layers.features import Features
from onepeace.model import OnePeace, StemOutput
from onepeace.model.encoder import encode


class Towers(OnePeace):
    """Modalities are encoded one at a time: there are no joint passes, and so no fused denoising."""

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.towers = nn.ModuleDict({key: copy.deepcopy(self.blocks) for key in self.adapters})
        for tower in self.towers.values():
            for module in tower.modules():
                if hasattr(module, "reset_parameters") and not isinstance(module, nn.LayerNorm):
                    module.reset_parameters()
        self.reset_parameters()
        del self.blocks[:]

    def encode(self, stems: Mapping[str, StemOutput], keep: Mapping[str, Tensor] | None = None) -> dict[str, Features]:
        if len(stems) != 1:
            raise ValueError(f"towers encode one modality at a time, not {' with '.join(stems)}")
        ((key, stem),) = stems.items()
        return encode(self.adapters[key](stem, (keep or {}).get(key)), self.towers[key], self.norms)


ARCHITECTURES["separate_towers"] = replace(ARCHITECTURES["onepeace"], module=Towers)
