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
        half, quarter = dim // 2, dim // 4
        up = nn.ConvTranspose2d(dim, half, 2, 2)
        twice = nn.ConvTranspose2d(half, quarter, 2, 2)
        scales: list[tuple[nn.Module, int]] = [
            (nn.Sequential(up, LayerNorm2d(half), nn.GELU(), twice), quarter),
            (nn.ConvTranspose2d(dim, half, 2, 2), half),
            (nn.Identity(), dim),
            (nn.MaxPool2d(2), dim),
        ]
        self.levels = nn.ModuleList(
            nn.Sequential(
                scale,
                nn.Conv2d(width, out_dim, 1, bias=False),
                LayerNorm2d(out_dim),
                nn.Conv2d(out_dim, out_dim, 3, padding=1, bias=False),
                LayerNorm2d(out_dim),
            )
            for scale, width in scales
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, D, rows, columns) -> (B, out_dim, ...) with 4, 2, 1 and 1/2 times the rows and columns."""
        return [level(x) for level in self.levels]


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels at each position: (B, C, rows, columns)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
