"""Whether pixels are those of the original."""

import PIL
import torch
from torch import Tensor

SMALLEST_STD = 0.26
"""Of the three colours, by which pixels are divided (CLIP's)."""


def assert_original_pixels(ours: Tensor, original: Tensor, what: str = "") -> None:
    """Bit for bit from Pillow 13 on. Versions before it make some of them a little lighter or darker: of noise, 7 % are
    up to 9 of 255 levels apart."""
    assert ours.shape == original.shape, what
    if int(PIL.__version__.partition(".")[0]) >= 13:
        assert torch.equal(ours, original), what
    levels = 255 * SMALLEST_STD * (ours - original).abs()
    assert levels.max() < 10, what
    assert (levels < 0.01).float().mean() > 0.93, what
