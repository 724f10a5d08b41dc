"""Audio stem for small datasets: waveform -> log-mel spectrogram -> one token per 80 ms.

Padding never leaks: it is zeroed before every convolution that could see it. `power_spectrum` is for other stems too.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onepeace.config.reader import Count, Natural
from onepeace.layers.cache import cached
from onepeace.layers.precision import without_autocast

from ..sequence import padding
from .wave import SAMPLE_RATE, Number


def power_spectrum(waveform: Tensor, window: int, step: int, num_bins: int) -> Tensor:
    """Power spectrum of Hann windows every ``step`` samples, without padding: (B, N) float32 -> (B, num_bins, frames).

    Args:
        num_bins: number of frequencies, up to half the sample rate; shorter windows than 2 (num_bins - 1) are padded.
    """
    length = 2 * (num_bins - 1)
    if torch.compiler.is_exporting():
        # torch.stft fixes the length to a multiple of the step, and onnxruntime's transform sums less exactly.
        kernels = fourier_kernels(window, num_bins, waveform.device)
        real, imaginary = F.conv1d(waveform.unsqueeze(1), kernels, stride=step).chunk(2, dim=1)
        return real.square() + imaginary.square()
    hann = torch.hann_window(window, device=waveform.device)
    spectrum = torch.stft(waveform, length, step, window, hann, center=False, return_complex=True)
    return torch.view_as_real(spectrum).square().sum(-1)  # abs() of complex numbers is many times slower


@cached(4)
def fourier_kernels(window: int, num_bins: int, device: torch.device) -> Tensor:
    """Convolution kernels (2 num_bins, 1, 2 (num_bins - 1)): windowed cosines, then sines."""
    length = 2 * (num_bins - 1)
    before = (length - window) // 2
    hann = F.pad(torch.hann_window(window, dtype=torch.float64), (before, length - window - before))
    turns = torch.outer(torch.arange(num_bins), torch.arange(length)).remainder(length).double() / length
    angles = 2 * math.pi * turns
    return (torch.cat([angles.cos(), angles.sin()]) * hann).float().unsqueeze(1).to(device, non_blocking=True)


@cached(8)
def mel_filters(num_mels: int, num_bins: int, low: float, device: torch.device) -> Tensor:
    """Triangular filters (num_bins, num_mels) from ``low`` Hz to half the sample rate, each with area 1 (Slaney).

    Bit-identical to torchaudio's melscale_fbanks(norm="slaney"), without its warning, which reads tensor values.
    """
    frequencies = torch.linspace(0, SAMPLE_RATE // 2, num_bins)
    mels = torch.linspace(_mel_of(low), _mel_of(SAMPLE_RATE / 2), num_mels + 2)
    points = 700.0 * (10.0 ** (mels / 2595.0) - 1.0)
    slopes = points.unsqueeze(0) - frequencies.unsqueeze(1)
    widths = points.diff()
    rising = -slopes[:, :-2] / widths[:-1]
    falling = slopes[:, 2:] / widths[1:]
    filters = torch.minimum(rising, falling).clamp_min(0.0)
    heights = 2.0 / (points[2:] - points[:-2])
    return (filters * heights).to(device, non_blocking=True)


def _mel_of(hertz: float) -> float:
    return 2595.0 * math.log10(1.0 + hertz / 700.0)


class MelStem(nn.Module):
    """A log-mel spectrogram and three 3x3 / 2 convolutions, for small datasets: no filter bank has to be learned.

    Windows of 25 ms every 10 ms, a token per 80 ms. In training, two bands of frequency and two of time are zeroed at
    random (SpecAugment); ``mask_mels`` and ``mask_frames`` are their maximum widths.
    """

    window = 400
    step = 160

    def __init__(
        self, dim: int, num_mels: Count = 64, width: Count = 32, mask_mels: Natural = 0, mask_frames: Natural = 0
    ):
        super().__init__()
        widths = [1, width, 2 * width, 4 * width]
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1) for before, after in pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for channels in widths[1:])
        self.num_mels = num_mels
        self.mask_mels = mask_mels
        self.mask_frames = mask_frames
        self.norm = nn.LayerNorm(widths[-1] * (num_mels // 8))
        self.proj = nn.Linear(widths[-1] * (num_mels // 8), dim)
        self.hop = 8 * self.step
        self.receptive_field = self.window

    def spectrogram(self, waveform: Tensor) -> Tensor:
        """Log-mel spectrogram (B, frames, mels), float32, roughly zero mean and unit deviation for normalised sound."""
        with without_autocast(waveform.device.type):
            power = power_spectrum(waveform.float(), self.window, self.step, 257)
            mel = power.transpose(1, 2) @ mel_filters(self.num_mels, 257, 50.0, waveform.device)
            return ((mel + 1e-5).log() + 4.0) / 4.0

    def forward(self, waveform: Tensor, lengths: Tensor | None, shortest: int) -> Tensor:
        """(B, N) samples, lengths (B,) or None if all are N, and the shortest length -> (B, T, D)."""
        # torch.stft centres the window of 400 in frames of 512: pad by the samples that it multiplies by zero.
        mel = self.spectrogram(F.pad(waveform, (56, 56)))
        if self.training:
            mel = _blank(mel, dim=2, widest=self.mask_mels)
            mel = _blank(mel, dim=1, widest=self.mask_frames)
        frames = None if lengths is None else self._frames(lengths)
        fewest = self._frames(shortest)
        x = mel.unsqueeze(1).to(self.norm.weight.dtype)  # (B, 1, frames, mels)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            if frames is not None:  # zeros follow each item, as if it were alone
                if fewest < x.shape[2]:
                    x = x.masked_fill(padding(frames, x.shape[2])[:, None, :, None], 0.0)
                frames = (frames + 1) // 2
                fewest = (fewest + 1) // 2
            x = F.gelu(norm(conv(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return self.proj(self.norm(x.permute(0, 2, 3, 1).flatten(2)))

    def _frames(self, samples: Number) -> Number:
        return (samples - self.window) // self.step + 1

    def token_lengths(self, samples: Number) -> Number:
        return (self._frames(samples) + 7) // 8


def _blank(x: Tensor, dim: int, widest: int, bands: int = 2) -> Tensor:
    """Set ``bands`` random bands of each item along ``dim`` to 0, the mean."""
    if not widest:
        return x
    size = x.shape[dim]
    shape_of_positions = [1] * x.ndim
    shape_of_positions[dim] = size
    positions = torch.arange(size, device=x.device).view(shape_of_positions)
    shape_of_items = [len(x)] + [1] * (x.ndim - 1)
    for _ in range(bands):
        width = torch.randint(0, widest + 1, shape_of_items, device=x.device)
        last_start = (size - width).clamp_min(1)
        start = (torch.rand(shape_of_items, device=x.device) * last_start).long()
        x = x.masked_fill((positions >= start) & (positions < start + width), 0.0)
    return x
