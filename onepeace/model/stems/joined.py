"""Two pretrained networks as one audio stem."""

import torch
from torch import Tensor, nn

from .aisfx import AisfxStem
from .pretrained import PretrainedStem
from .soundnet import SoundNetStem
from .wave import Count


class JoinedStem(PretrainedStem):
    """Concatenated features of `AisfxStem` and `SoundNetStem`, whose tokens have the same length.

    Args:
        dim: width of the tokens.
    """

    def __init__(self, dim: int):
        parts = AisfxStem(0), SoundNetStem(0)
        super().__init__(dim, sum(part.channels for part in parts))
        self.network = nn.ModuleList(parts)
        self.hop = parts[0].hop
        self.receptive_field = max(part.receptive_field for part in parts)

    def features(self, waveform: Tensor, lengths: Tensor | None, shortest: int) -> Tensor:
        """(B, N) samples, lengths (B,) or None if all are N, and the shortest length -> (B, T, channels)."""
        return torch.cat([part.features(waveform, lengths, shortest) for part in self.network], dim=-1)

    def token_lengths(self, samples: Count) -> Count:
        return self.network[0].token_lengths(samples)

    def load_pretrained(self) -> None:
        for part in self.network:
            part.load_pretrained()
