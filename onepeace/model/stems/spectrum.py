"""Power spectrum of a waveform."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from onepeace.layers.cache import cached


def power_spectrum(waveform: Tensor, window: int, step: int, num_bins: int) -> Tensor:
    """(B, N) float32 -> (B, num_bins, frames), of Hann windows each ``step``; no window reaches over the ends.

    Args:
        num_bins: from 0 to half the sample rate; windows shorter than 2 (num_bins - 1) are padded on both sides.
    """
    length = 2 * (num_bins - 1)
    if torch.compiler.is_exporting():
        # torch.stft fixes the samples to a multiple of the step, and onnxruntime's transform sums less exactly.
        kernels = fourier_kernels(window, num_bins, waveform.device)
        real, imaginary = F.conv1d(waveform.unsqueeze(1), kernels, stride=step).chunk(2, dim=1)
        return real.square() + imaginary.square()
    hann = torch.hann_window(window, device=waveform.device)
    spectrum = torch.stft(waveform, length, step, window, hann, center=False, return_complex=True)
    return torch.view_as_real(spectrum).square().sum(-1)  # abs() of complex numbers is many times slower


@cached(4)
def fourier_kernels(window: int, num_bins: int, device: torch.device) -> Tensor:
    """(2 num_bins, 1, 2 (num_bins - 1)): cosines, then sines, under the window."""
    length = 2 * (num_bins - 1)
    before = (length - window) // 2
    hann = F.pad(torch.hann_window(window, dtype=torch.float64), (before, length - window - before))
    turns = torch.outer(torch.arange(num_bins), torch.arange(length)).remainder(length).double() / length
    angles = 2 * math.pi * turns
    return (torch.cat([angles.cos(), angles.sin()]) * hann).float().unsqueeze(1).to(device)
