"""Kinds of tokens in OFA, words and patches of a picture, and BERT's initialisation of their weights."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onepeace.errors import UserError
from onepeace.layers.position import grid_buckets, grid_table_rows, sequence_buckets

STD = 0.02


def normal_init(root: nn.Module) -> None:
    """Initialise Linear and Embedding weights from a normal distribution, and biases and the padding row to 0.

    Classes with further parameters initialise them in ``reset_parameters``.
    """
    for module in root.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=STD)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                nn.init.zeros_(module.weight[module.padding_idx])
        elif module is not root and not type(module).__module__.startswith("torch."):
            getattr(module, "reset_parameters", lambda: None)()


class PositionBias(nn.Module):
    """Attention bias from absolute positions, added to the logits of every block.

    Positions are never added to tokens (untied positions, as in TUPE, arXiv 2006.15595). The logits of tokens and of
    positions are summed, so each has half the usual variance: hence the factor 2.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.scale = (2 * dim // num_heads) ** -0.5
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Normalised positions (1 or B, T, D) and (1 or B, S, D) -> bias (1 or B, H, T, S)."""
        q = self._heads(self.q(queries) * self.scale)
        k = self._heads(self.k(keys))
        return q @ k.transpose(-2, -1)

    def _heads(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, H, L, head_dim)."""
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


class TokenKind(nn.Module):
    """Embedding norm, positions, and a table of relative positions for each block, of one kind of tokens.

    Args:
        num_positions, table_rows: rows of the positions (rows, D) and of each table (rows, H).
    """

    def __init__(self, dim: int, num_heads: int, depth: int, num_positions: int, table_rows: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.pos_embed = nn.Parameter(torch.empty(num_positions, dim))
        self.pos_norm = nn.LayerNorm(dim)
        self.bias_tables = nn.ParameterList(torch.empty(table_rows, num_heads) for _ in range(depth))

    def reset_parameters(self) -> None:
        for parameter in (self.pos_embed, *self.bias_tables):
            nn.init.normal_(parameter, std=STD)

    def relative_bias(self, block: int, buckets: Tensor) -> Tensor:
        """Bias (1 or B, H, T, S) of the logits of one block, from buckets of distances (1 or B, T, S)."""
        return F.embedding(buckets, self.bias_tables[block]).permute(0, 3, 1, 2)


class SequenceTokens(TokenKind):
    """Words: positions 0, 1, ...; distances beyond half of ``num_buckets`` share logarithmic buckets."""

    def __init__(self, dim: int, num_heads: int, depth: int, num_positions: int, num_buckets: int):
        super().__init__(dim, num_heads, depth, num_positions, 2 * num_buckets - 1)
        self.num_buckets = num_buckets

    def positions(self, length: int) -> Tensor:
        """Normalised positions (1, L, D). UserError for more tokens than there are positions."""
        if length > len(self.pos_embed):
            raise UserError(f"{length} tokens are more than the {len(self.pos_embed)} positions this model has")
        return self.pos_norm(self.pos_embed[:length]).unsqueeze(0)

    def buckets(self, length: int) -> Tensor:
        """Buckets (1, L, L) of distances; row and column of CLS, which is not used here, are dropped."""
        return sequence_buckets(length + 1, self.num_buckets, self.pos_embed.device)[:, 1:, 1:]


class GridTokens(TokenKind):
    """Patches on a grid, after a start token (not used here: generated pictures have it in the released code).

    Args:
        side: rows and columns of the square of positions that contains the grid.
        stretched_grid: side of the corner of the square that is interpolated (bilinear) for larger grids, an option of
            the released code; None = each cell of the square has its own position.
    """

    def __init__(self, dim: int, num_heads: int, depth: int, side: int, stretched_grid: int | None = None):
        super().__init__(dim, num_heads, depth, side * side + 1, grid_table_rows(side))
        self.side = side
        self.stretched_grid = stretched_grid

    def positions(self, rows: int, columns: int) -> Tensor:
        """Normalised positions (1, 1 + rows * columns, D)."""
        square = self.pos_embed[1:].unflatten(0, (self.side, self.side))
        corner = self.stretched_grid
        if corner is None or rows * columns <= corner**2:
            grid = square[:rows, :columns]
        else:
            learned = square[:corner, :corner].permute(2, 0, 1).unsqueeze(0).float()
            stretched = F.interpolate(learned, size=(rows, columns), mode="bilinear", align_corners=False)
            grid = stretched[0].permute(1, 2, 0).to(square.dtype)
        positions = torch.cat([self.pos_embed[:1], grid.flatten(0, 1)])
        return self.pos_norm(positions).unsqueeze(0)

    def buckets(self, rows: int, columns: int) -> Tensor:
        """Buckets (1, 1 + rows * columns, same) of distances."""
        return grid_buckets(rows, columns, self.pos_embed.device, self.side)
