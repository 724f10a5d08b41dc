"""Positions: learned absolute positions, relative-position buckets, and the resizing of both.

A bucket matrix holds, for each pair (query i, key j), the row index into a table (rows, heads) of attention biases.
The last three rows of every table are for the CLS token: as query, as key, and with itself (released code). Matrices
are computed for the current length and not saved.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cache import cached

_MAX_DISTANCE = 1024  # end of the logarithmic buckets; larger distances share the last one


def sequence_table_rows(num_buckets: int) -> int:
    """Rows of the bias table of a sequence modality."""
    return 2 * num_buckets - 1 + 3


def grid_table_rows(side: int) -> int:
    """Rows of the bias table of a grid of side x side patches."""
    return (2 * side - 1) ** 2 + 3


def _with_cls(buckets: Tensor, rows: int) -> Tensor:
    """Overwrite row and column 0 with the three special rows of a table of ``rows`` rows."""
    buckets[0, :] = rows - 3
    buckets[:, 0] = rows - 2
    buckets[0, 0] = rows - 1
    return buckets.unsqueeze(0).int()


@cached(8)
def distance_buckets(num_buckets: int, device: torch.device) -> Tensor:
    """Bucket (2 * 1023 + 1,) of each distance between -1023 and 1023, to which larger ones are clamped.

    Distances up to num_buckets // 2 have their own buckets, larger ones share logarithmic buckets (released code). The
    logarithm is float32, and computed on the CPU, so that bucket edges are those with which the released tables were
    trained.
    """
    middle = num_buckets // 2
    farthest = _MAX_DISTANCE - 1
    distance = torch.arange(-farthest, farthest + 1)
    far = distance.abs().clamp(min=max(middle, 1)).float()
    # With one or two buckets on a side there is no logarithmic range to spread.
    steps = torch.log(far / middle) / math.log(farthest / middle) * (middle - 1) if middle else far * 0
    log_bucket = (middle + torch.ceil(steps)).long() * distance.sign()
    buckets = torch.where(distance.abs() <= middle, distance, log_bucket) + num_buckets - 1
    return buckets.to(device, non_blocking=True)


@cached(4)  # a minute of audio is 36 MB
def sequence_buckets(length: int, num_buckets: int, device: torch.device) -> Tensor:
    """Bucket matrix (1, length, length) of a sequence whose position 0 is CLS; see `distance_buckets`.

    Only the buckets of all distances are copied to the device, once: lengths change with every batch.
    """
    positions = torch.arange(length, device=device)
    farthest = _MAX_DISTANCE - 1
    distance = (positions[:, None] - positions[None, :]).clamp(-farthest, farthest)
    buckets = distance_buckets(num_buckets, device)[distance + farthest]
    return _with_cls(buckets, sequence_table_rows(num_buckets))


@cached(16)
def grid_buckets(rows: int, columns: int, device: torch.device, side: int | None = None) -> Tensor:
    """Bucket matrix (1, 1 + rows * columns, same) of a grid of patches after CLS, row-major.

    Its table has (2 rows - 1) x (2 columns - 1) offsets, row offset first, plus the three CLS rows. With ``side``, the
    table is that of a square of ``side`` patches, which contains the grid.
    """
    tall, wide = (rows, columns) if side is None else (side, side)
    patches = torch.arange(rows * columns, device=device)
    row = patches // columns
    column = patches % columns
    down = row[:, None] - row[None, :] + tall - 1
    right = column[:, None] - column[None, :] + wide - 1
    buckets = F.pad(down * (2 * wide - 1) + right, (1, 0, 1, 0))
    return _with_cls(buckets, (2 * tall - 1) * (2 * wide - 1) + 3)


def stretch_grid_table(table: Tensor, side: int, rows: int, columns: int) -> Tensor:
    """Stretch the bias table (rows, H) of a ``side`` x ``side`` grid to an image of rows x columns patches.

    An image of another shape fills the same learned square, as its positions do (bicubic, corners aligned). This is for
    use on the fly; ``resize_bias_table`` is more accurate, for a permanent change of the image size.
    """
    if (rows, columns) == (side, side):
        return table
    heads = table.shape[1]
    square = table[:-3].float().T.reshape(1, heads, 2 * side - 1, 2 * side - 1)
    # With one row, interpolation with aligned corners would read the first offset; offset 0 is in the middle.
    square = square[:, :, side - 1 : side] if rows == 1 else square
    square = square[..., side - 1 : side] if columns == 1 else square
    size = (2 * rows - 1, 2 * columns - 1)
    stretched = F.interpolate(square, size=size, mode="bicubic", align_corners=True)
    return torch.cat([stretched.reshape(heads, -1).T.to(table.dtype), table[-3:]])


def resize_bias_table(table: Tensor, side: int) -> Tensor:
    """Resample a grid's bias table (rows, H) to a grid of ``side`` x ``side`` patches, larger or smaller.

    As in BEiT and the released loader: source offsets are placed at geometrically growing distances, so that near
    neighbours keep their fine resolution, and a cubic spline is evaluated at the new integer offsets. Returns float32.
    """
    old = math.isqrt(table.shape[0] - 3)
    new = 2 * side - 1
    if old == new:
        return table.float()
    half = old // 2
    target_half = new // 2
    if half < 2:
        raise ValueError(f"a bias table of {table.shape[0]} rows is too small to resample")
    low = 1.01
    high = 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (1 - ratio**half) / (1 - ratio) > target_half:
            high = ratio
        else:
            low = ratio
    distances = torch.tensor([ratio**i for i in range(half)], dtype=torch.float64).cumsum(0)
    source = torch.cat([-distances.flip(0), torch.zeros(1, dtype=torch.float64), distances])
    target = torch.arange(-target_half, target_half + 1, dtype=torch.float64).clamp(source[0], source[-1])
    resample = spline_matrix(source, target)
    heads = table[:-3].double().cpu().T.reshape(-1, old, old)
    resized = (resample @ heads @ resample.T).flatten(1).T.float()
    return torch.cat([resized, table[-3:].float().cpu()]).to(table.device)


def spline_matrix(source: Tensor, target: Tensor) -> Tensor:
    """Matrix (T, S) that maps values at ``source`` to their interpolating cubic spline at ``target``, both float64.

    B-splines by the recursion of Cox and de Boor; "not-a-knot" ends, as in scipy.interpolate.RectBivariateSpline.
    """
    knots = torch.cat([source[:1].expand(4), source[2:-2], source[-1:].expand(4)])

    def basis(x: Tensor) -> Tensor:
        x = x.unsqueeze(1).clamp_max(torch.nextafter(source[-1], source[0]))  # the last interval is closed
        b = ((knots[:-1] <= x) & (x < knots[1:])).double()
        for degree in (1, 2, 3):
            # Intervals between equal knots are empty: their term is 0.
            rise = (x - knots[: -degree - 1]) / (knots[degree:-1] - knots[: -degree - 1])
            fall = (knots[degree + 1 :] - x) / (knots[degree + 1 :] - knots[1:-degree])
            b = (rise * b[:, :-1]).nan_to_num(0, 0, 0) + (fall * b[:, 1:]).nan_to_num(0, 0, 0)
        return b

    return torch.linalg.solve(basis(source), basis(target), left=False)


class SequencePositions(nn.Module):
    """Learned position embeddings of a sequence; position 0 is CLS."""

    def __init__(self, dim: int, num_positions: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_positions, dim))

    def reset_parameters(self) -> None:
        trunc_normal(self.weight)

    def forward(self, grid: tuple[int, ...]) -> Tensor:
        """(1, L + 1, D) for a grid of (L,)."""
        length = grid[0] + 1
        if length > len(self.weight):
            raise ValueError(f"{length} tokens (CLS included) exceed the {len(self.weight)} positions of this model")
        return self.weight[:length].unsqueeze(0)


class GridPositions(nn.Module):
    """Learned position embeddings of CLS and a square grid, resized to any rows x columns (bicubic, in float32)."""

    def __init__(self, dim: int, grid: int):
        super().__init__()
        self.side = grid
        self.weight = nn.Parameter(torch.empty(grid * grid + 1, dim))

    def reset_parameters(self) -> None:
        trunc_normal(self.weight)

    def forward(self, grid: tuple[int, ...]) -> Tensor:
        """(1, 1 + rows * columns, D)."""
        if tuple(grid) == (self.side, self.side):
            return self.weight.unsqueeze(0)
        square = self.weight[1:].float().T.reshape(1, -1, self.side, self.side)
        stretched = F.interpolate(square, size=tuple(grid), mode="bicubic", align_corners=False)
        patches = stretched.flatten(2).transpose(1, 2).to(self.weight.dtype)
        return torch.cat([self.weight[None, :1], patches], dim=1)


def trunc_normal(tensor: Tensor, std: float = 0.02) -> None:
    """Initialise from a normal distribution truncated at one standard deviation (released code)."""
    nn.init.trunc_normal_(tensor, std=std, a=-std, b=std)
