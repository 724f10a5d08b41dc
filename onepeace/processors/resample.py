"""Band-limited resampling of sound, by a windowed sinc."""

import math
from fractions import Fraction
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROLLOFF = 0.99
"""Cut-off frequency as a share of the lower of the two Nyquist frequencies."""
ZERO_CROSSINGS = 6
"""Zero crossings of the sinc on each side; the Hann window ends there."""
KERNEL_LIMIT = 1 << 21
"""Numbers of a kernel above which the ratio of the rates is replaced by a simpler one."""


class Resample(nn.Module):
    """Resamples from the rate ``old`` to the rate ``new``: (..., n) to (..., ceil(n * new / old)).

    Rates are whole numbers and should be in lowest terms: the kernel holds ``new`` filters of about
    ``2 * ZERO_CROSSINGS * max(old / new, 1) + old`` taps. The method is that of J. O. Smith, "Digital Audio
    Resampling", with the defaults of torchaudio: outputs equal those of its ``Resample``.
    """

    kernel: Tensor

    def __init__(self, old: int, new: int) -> None:
        super().__init__()
        self.old = old
        self.new = new
        cutoff = min(old, new) * ROLLOFF
        self.width = math.ceil(ZERO_CROSSINGS * old / cutoff)
        phases = torch.arange(new)[:, None] / new  # float32, as in torchaudio: vectors of indexes stay valid
        taps = torch.arange(-self.width, self.width + old, dtype=torch.float64) / old
        time = ((taps - phases) * cutoff).clamp(-ZERO_CROSSINGS, ZERO_CROSSINGS)
        window = torch.cos(time * math.pi / (2 * ZERO_CROSSINGS)) ** 2
        kernel = torch.sinc(time) * window * (cutoff / old)
        self.register_buffer("kernel", kernel[:, None].float(), persistent=False)

    def forward(self, samples: Tensor) -> Tensor:
        *leading, num_samples = samples.shape
        rows = samples.reshape(-1, 1, num_samples)
        padded = F.pad(rows, (self.width, self.width + self.old))
        phases = F.conv1d(padded, self.kernel, stride=self.old)  # (rows, new, frames)
        resampled = phases.transpose(1, 2).flatten(1)
        length = math.ceil(self.new * num_samples / self.old)
        return resampled[:, :length].reshape(*leading, length)


@lru_cache(maxsize=16)
def resampler(rate: int, target: int) -> Resample:
    """Band-limited resampler between two rates, cached.

    The kernel has (rate * target / gcd^2) numbers. Odd rates such as 44,101 Hz would need gigabytes; they are replaced
    by a ratio of smaller numbers, which changes the pitch by less than 0.1 %.
    """
    ratio = Fraction(rate, target)
    if ratio.numerator * ratio.denominator > KERNEL_LIMIT:
        ratio = ratio.limit_denominator(math.isqrt(KERNEL_LIMIT * target // rate))
    return Resample(ratio.numerator, ratio.denominator)
