"""Feature pyramid from the single feature map of a plain Transformer."""

from torch import Tensor, nn


class Pyramid(nn.Module):
    """Maps of 1/4, 1/2, 1 and 2 times the stride of the given map (ViTDet, arXiv 2203.16527, section 3), each
    reduced to ``out_dim`` channels. Strides are 4, 8, 16 and 32 for patches of 16 pixels.

    Args:
        dim: channels of the given map.
        out_dim: channels of the pyramid.
    """

    def __init__(self, dim: int, out_dim: int = 256):
        super().__init__()
        half = dim // 2
        quarter = dim // 4
        four_times = nn.Sequential(
            nn.ConvTranspose2d(dim, half, 2, 2),
            LayerNorm2d(half),
            nn.GELU(),
            nn.ConvTranspose2d(half, quarter, 2, 2),
        )
        twice = nn.ConvTranspose2d(dim, half, 2, 2)
        self.levels = nn.ModuleList(
            [
                _level(four_times, quarter, out_dim),
                _level(twice, half, out_dim),
                _level(nn.Identity(), dim, out_dim),
                _level(nn.MaxPool2d(2), dim, out_dim),
            ]
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, D, rows, columns) -> (B, out_dim, ...) with 4, 2, 1 and 1/2 times the rows and columns."""
        return [level(x) for level in self.levels]


def _level(scale: nn.Module, width: int, out_dim: int) -> nn.Module:
    """A change of resolution, whose output has ``width`` channels, and two convolutions to ``out_dim`` channels."""
    return nn.Sequential(
        scale,
        nn.Conv2d(width, out_dim, 1, bias=False),
        LayerNorm2d(out_dim),
        nn.Conv2d(out_dim, out_dim, 3, padding=1, bias=False),
        LayerNorm2d(out_dim),
    )


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels at each position: (B, C, rows, columns)."""

    def forward(self, x: Tensor) -> Tensor:
        channels_last = x.permute(0, 2, 3, 1)
        return super().forward(channels_last).permute(0, 3, 1, 2)
