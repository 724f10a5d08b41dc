"""The released audio stem: a waveform -> one token per frame."""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onepeace.config.reader import Count

Number = TypeVar("Number", int, Tensor)
SAMPLE_RATE = 16000
Convolution = tuple[Count, Count, Count]
"""Channels, kernel and stride."""
RELEASED_CONVS = ((512, 10, 5), *((512, 3, 2),) * 4, *((512, 2, 2),) * 2)


class WindowConv(nn.Conv1d):
    """Convolution without padding and bias over (B, N, C), channels last, as one matrix product over its windows.

    The layer norms between the convolutions need channels last; a matrix product keeps this layout, while conv1d would
    transpose twice per layer. A window of k frames is contiguous in memory.
    """

    def reset_parameters(self) -> None:
        nn.init.kaiming_normal_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, T, D)."""
        if torch.compiler.is_exporting():  # whether linear may fold these windows depends on their number
            return super().forward(x.transpose(1, 2)).transpose(1, 2)
        windows = x.unfold(1, self.kernel_size[0], self.stride[0]).transpose(2, 3).flatten(2)  # (B, T, k C)
        return F.linear(windows, self.weight.transpose(1, 2).flatten(1))


class WaveStem(nn.Module):
    """The released stem: seven convolutions without padding over the waveform, as in wav2vec 2.0.

    ``convs`` lists (channels, kernel, stride). Hop 320 and receptive field 400 samples as released: a frame per 20 ms.
    No frame of an item depends on samples beyond the item, so padding needs no handling here.
    """

    def __init__(self, dim: int, convs: Sequence[Convolution] = RELEASED_CONVS):
        super().__init__()
        widths = [1] + [channels for channels, _, _ in convs]
        self.convs = nn.ModuleList(
            WindowConv(width, channels, kernel, stride, bias=False)
            for width, (channels, kernel, stride) in zip(widths, convs, strict=False)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for channels, _, _ in convs)
        self.norm = nn.LayerNorm(widths[-1])
        self.proj = nn.Linear(widths[-1], dim)
        self.hop = 1
        self.receptive_field = 1
        for _, kernel, stride in convs:
            self.receptive_field += (kernel - 1) * self.hop
            self.hop *= stride

    def forward(self, waveform: Tensor, lengths: Tensor | None, shortest: int) -> Tensor:
        """(B, N) -> (B, T, D)."""
        x = waveform.unsqueeze(-1).to(self.norm.weight.dtype)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.gelu(norm(conv(x)))
        return self.proj(self.norm(x))

    def token_lengths(self, samples: Number) -> Number:
        return (samples - self.receptive_field) // self.hop + 1
