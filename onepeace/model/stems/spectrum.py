"""Power spectrum of a waveform."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from onepeace.layers.cache import cached


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
