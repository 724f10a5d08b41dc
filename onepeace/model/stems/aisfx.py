"""An audio stem trained on libraries of sound effects (Ma and Lerch, "Representation learning for the automatic
indexing of sound effects libraries", ISMIR 2022; the package aisfx, CC BY 4.0): a waveform -> one token per 375 ms.

Padding never leaks: it is zeroed before every convolution that could see it.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onepeace.config.reader import Count, Positive
from onepeace.layers.cache import cached
from onepeace.layers.precision import without_autocast

from ..sequence import padding
from .mel import power_spectrum
from .pretrained import PretrainedStem, load_bundled_sound_network
from .wave import SAMPLE_RATE, Number

PUBLISHED_RATE = 44100
PUBLISHED_WINDOW = 2048
PUBLISHED_MELS = 96
"""Sampling rate, window in samples and number of mel bands, up to half the rate, of the published front end."""


@cached(4)
def sfx_filters(num_mels: int, window: int, device: torch.device) -> Tensor:
    """Triangular filters (window // 2 + 1, num_mels) on the HTK mel scale, 96 of which would reach 22.05 kHz; each sums
    to 1. Filters narrower than a bin keep the height 1 (as in Essentia).
    """
    bins = torch.linspace(0, SAMPLE_RATE / 2, window // 2 + 1, dtype=torch.float64).unsqueeze(1)
    step = 2595 * math.log10(1 + PUBLISHED_RATE / 2 / 700) / (PUBLISHED_MELS + 1)
    mels = step * torch.arange(num_mels + 2, dtype=torch.float64)
    points = 700 * (10 ** (mels / 2595) - 1)
    low = points[:-2]
    middle = points[1:-1]
    high = points[2:]
    rising = (bins - low) / (middle - low)
    falling = (high - bins) / (high - middle)
    triangles = torch.minimum(rising, falling).clamp_min(0)
    sums = (high - low) / 2 / (SAMPLE_RATE / window)
    return (triangles / sums.clamp_min(1)).float().to(device, non_blocking=True)


class AisfxStem(PretrainedStem):
    """A log-mel spectrogram and four pairs of 3x3 convolutions, pooled in time and frequency after the first three.

    The published front end has windows of 2048 samples every 1024 at 44.1 kHz, and 96 bands. At 16 kHz a window of 750
    has the same bins within 1 %, and the upper 24 bands would be empty. A step of a whole window instead of half a
    window halves the cost of the network; a linear probe on ESC-50 loses half a point.

    Args:
        dim: width of the tokens.
        width: channels of the first pair; each further pair has twice as many.
        num_mels: bands of the spectrogram.
        step: samples from one window to the next.
        loudness: root mean square to which sounds are scaled (input sounds have 1).
    """

    window = 750

    def __init__(self, dim: int, width: Count = 64, num_mels: Count = 72, step: Count = 750, loudness: Positive = 0.03):
        super().__init__(dim, 8 * width)
        widths = [1]
        for pair in range(4):
            widths += [width * 2**pair] * 2
        self.network = nn.ModuleList(
            nn.Conv2d(before, after, kernel_size=3, padding=1) for before, after in pairwise(widths)
        )
        self.num_mels = num_mels
        self.step = step
        self.loudness = loudness
        self.hop = 8 * self.step
        self.receptive_field = self.window + 7 * self.step

    def spectrogram(self, waveform: Tensor) -> Tensor:
        """(B, N) of unit deviation -> (B, frames, mels), float32, mostly between 0 and 1."""
        with without_autocast(waveform.device.type):
            sound = self.loudness * waveform.float()
            power = power_spectrum(sound, self.window, self.step, self.window // 2 + 1)
            power = power * (PUBLISHED_WINDOW / self.window) ** 2
            mel = power.transpose(1, 2) @ sfx_filters(self.num_mels, self.window, waveform.device)
            return (1e4 * mel + 1).log10() / 9.4578

    def features(self, waveform: Tensor, lengths: Tensor | None, shortest: int) -> Tensor:
        """(B, N) samples, lengths (B,) or None if all are N, and the shortest length -> (B, T, channels)."""
        x = self.spectrogram(waveform).unsqueeze(1).to(self.network[0].weight.dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        frames = None if lengths is None else self._frames(lengths)
        fewest = self._frames(shortest)
        for i, conv in enumerate(self.network):
            if frames is not None and fewest < x.shape[2]:
                x = x.masked_fill(padding(frames, x.shape[2])[:, None, :, None], 0.0)
            x = F.relu(conv(x))
            if i in (1, 3, 5):
                x = F.max_pool2d(x, 2)
                frames = None if frames is None else frames // 2
                fewest = fewest // 2
        return x.mean(3).transpose(1, 2)

    def _frames(self, samples: Number) -> Number:
        return (samples - self.window) // self.step + 1

    def token_lengths(self, samples: Number) -> Number:
        return self._frames(samples) // 8

    def load_pretrained(self) -> None:
        load_bundled_sound_network(self.network, 0)
