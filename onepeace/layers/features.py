"""Token features: the output of an encoder and the input of heads."""

from typing import NamedTuple

from torch import Tensor


class Features(NamedTuple):
    """Token features of one modality in one pass.

    tokens: (B, L, D), CLS first; rows of padding are unspecified.
    padding_mask: (B, L), True = padding, or None when nothing is.
    grid: the shape of the L - 1 positions after CLS, (L - 1,), (rows, columns) or (frames, rows, columns); None where
    tokens were left out.
    intermediates: the features after the blocks in ``out_indices``, before the final norm.
    """

    tokens: Tensor
    padding_mask: Tensor | None
    grid: tuple[int, ...] | None = None
    intermediates: tuple["Features", ...] = ()

    @property
    def cls(self) -> Tensor:
        """(B, D)."""
        return self.tokens[:, 0]

    def rows(self, rows: slice) -> "Features":
        """The features of some items of the batch."""
        mask = None if self.padding_mask is None else self.padding_mask[rows]
        return Features(
            self.tokens[rows], mask, self.grid, tuple(features.rows(rows) for features in self.intermediates)
        )

    def feature_map(self) -> Tensor:
        """Tokens without CLS as a channels-first map on their grid: (B, D, rows, columns) for an image."""
        if self.grid is None:
            raise ValueError("these features have no grid: only some of the tokens were encoded")
        return self.tokens[:, 1:].transpose(1, 2).unflatten(2, self.grid)
