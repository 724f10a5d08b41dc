"""An audio stem trained on the sound of two million videos (Aytar, Vondrick and Torralba, "SoundNet: Learning sound
representations from unlabeled video", NeurIPS 2016; MIT): a waveform -> one token per 375 ms. `JoinedStem` has the
features of aisfx beside them.

Padding never leaks: it is zeroed before every convolution that could see it.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onepeace.config.reader import Count, Positive
from onepeace.layers.cache import cached
from onepeace.layers.precision import without_autocast

from ..sequence import padding
from .aisfx import AisfxStem
from .pretrained import PretrainedStem, load_bundled_sound_network
from .wave import Number

LAYERS = ((64, 8), (32, 8), (16, 1), (8, 1), (4, 4))
"""Kernel of each convolution, which has stride 2, and size of the max pooling after it."""
STEP = 6000
PUBLISHED_STEP = 8192
"""Samples per token at 16 kHz, and at 21.8 kHz, the rate of the network (published: 22.05 kHz)."""
INPUTS = 375
OUTPUTS = 512
"""Input and output samples of the resampler: `STEP` / `PUBLISHED_STEP` in lowest terms."""


@cached(2)
def resampler(device: torch.device) -> Tensor:
    """Kernels (512, 1, 391) of a convolution of stride 375 that resamples: sinc under a Hann window of 16 samples."""
    at = torch.arange(OUTPUTS, dtype=torch.float64).unsqueeze(1) * INPUTS / OUTPUTS
    distance = at - torch.arange(-8, INPUTS + 8, dtype=torch.float64)
    window = (math.pi / 16 * distance.clamp(-8, 8)).cos().square()
    return (torch.special.sinc(distance) * window).float().unsqueeze(1).to(device, non_blocking=True)


class SoundNetStem(PretrainedStem):
    """Logarithm of the output of the first five of SoundNet's eight convolutions.

    Args:
        dim: width of the tokens.
        width: channels of the first convolution; each further one has twice as many.
        loudness: root mean square to which sounds are scaled (input sounds have 1).
    """

    hop = receptive_field = STEP

    def __init__(self, dim: int, width: Count = 16, loudness: Positive = 8.0):
        super().__init__(dim, 16 * width)
        self.loudness = loudness
        self.network = nn.ModuleList()
        before = 1
        after = width
        for kernel, _ in LAYERS:
            self.network.append(nn.Conv1d(before, after, kernel, stride=2, padding=kernel // 2))
            before = after
            after = 2 * after

    def features(self, waveform: Tensor, lengths: Tensor | None, shortest: int) -> Tensor:
        """(B, N) samples, lengths (B,) or None if all are N, and the shortest length -> (B, T, channels)."""
        num_tokens = self.token_lengths(waveform.shape[1])
        tokens = None  # of each item, if they differ
        if lengths is not None and self.token_lengths(shortest) < num_tokens:
            tokens = self.token_lengths(lengths)
        x = self._resampled(waveform, num_tokens, tokens).to(self.network[0].weight.dtype)
        samples = PUBLISHED_STEP
        extra = 0
        for conv, (_, pooled) in zip(self.network, LAYERS, strict=True):
            if tokens is not None:
                x = _zero_padding(x, tokens * samples + extra)
            x = _max_pool(F.relu(conv(x)), pooled)
            samples = samples // (2 * pooled)
            extra = int(pooled == 1)  # without pooling one more frame is left
        return x.transpose(1, 2).log1p()

    def _resampled(self, waveform: Tensor, num_tokens: int, tokens: Tensor | None) -> Tensor:
        """The waveform (B, 1, num_tokens * 8192), float32, at the rate and the loudness that the network expects."""
        with without_autocast(waveform.device.type):
            # torch.export would fix the length of a slice.
            whole_steps = torch.arange(num_tokens * STEP, device=waveform.device)
            x = waveform.index_select(1, whole_steps).unsqueeze(1).float()
            if tokens is not None:
                x = _zero_padding(x, tokens * STEP)
            x = F.conv1d(F.pad(x, (8, 8)), resampler(x.device), stride=INPUTS)
            return self.loudness * x.transpose(1, 2).flatten(1).unsqueeze(1)

    def token_lengths(self, samples: Number) -> Number:
        return samples // STEP

    def load_pretrained(self) -> None:
        load_bundled_sound_network(self.network, 1)


def _max_pool(x: Tensor, size: int) -> Tensor:
    """Maximum of ``size`` samples of (B, C, N), without the rest; torch.export would fix the length in max_pool1d."""
    return F.max_pool2d(x.unsqueeze(2), (1, size)).squeeze(2)


def _zero_padding(x: Tensor, lengths: Tensor) -> Tensor:
    """(B, C, N) with zeros after the first ``lengths`` (B,) of each item."""
    return x.masked_fill(padding(lengths, x.shape[2])[:, None], 0.0)


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

    def token_lengths(self, samples: Number) -> Number:
        return self.network[0].token_lengths(samples)

    def load_pretrained(self) -> None:
        for part in self.network:
            part.load_pretrained()
