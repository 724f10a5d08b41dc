"""Token sequences, the interface between adapters and blocks."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class TokenSpan(NamedTuple):
    """Range ``start:stop`` of the tokens of modality ``key`` in a sequence; ``grid`` as in `Features`."""

    key: str
    start: int
    stop: int
    grid: tuple[int, ...] | None = None

    def moved(self, offset: int) -> "TokenSpan":
        """The span in a sequence with ``offset`` tokens before it."""
        return self._replace(start=self.start + offset, stop=self.stop + offset)


class StemOutput(NamedTuple):
    """Output of a stem, which does not depend on the mask.

    tokens: (B, L, D), without CLS and positions. padding_mask: (B, L) bool, True = padding, or None without padding.
    grid: the shape of the L positions, (L,), (rows, columns) or (frames, rows, columns). type_ids: (B,) type ids of
    the items, or None. pooled: (B, 2, D), terms added to CLS before the blocks and after the final norm, or None.
    """

    tokens: Tensor
    padding_mask: Tensor | None
    grid: tuple[int, ...]
    type_ids: Tensor | None = None
    pooled: Tensor | None = None

    def take(self, rows: Tensor, lengths: Sequence[int]) -> "StemOutput":
        """Select items, and trim unneeded padding.

        Args:
            rows: (R,) int64, the numbers of the items.
            lengths: (R,) the number of tokens of each of them, without CLS. On the CPU, so that no one waits for them.
        """
        tokens = self.tokens[rows]
        mask = None
        grid = self.grid
        if self.padding_mask is not None:
            # Only sequences are ever padded, and their grid is their length.
            longest = max(lengths)
            tokens = tokens[:, :longest]
            grid = (longest,)
            if min(lengths) < longest:
                mask = self.padding_mask[rows, :longest]
        return StemOutput(
            tokens=tokens,
            padding_mask=mask,
            grid=grid,
            type_ids=None if self.type_ids is None else self.type_ids[rows],
            pooled=None if self.pooled is None else self.pooled[rows],
        )


@dataclass(frozen=True)
class TokenSequence:
    """Tokens of one or more modalities, concatenated.

    Args:
        tokens: (B, L, D), positions added; rows of padding are zero. Rows of clips are frames: (B * frames, L, D).
        padding_mask: (B, L) bool, True = padding, or None when nothing is padding. CLS is never padding.
        spans: contiguous, ordered, covering 0..L; CLS is the first token of each.
        buckets: for each span, row numbers (1 or B, L_m, L_m) in its table of relative-position biases, or None for no
            bias. Across spans the bias is 0.
        tables: for each span its tables (rows, H): one for all blocks, one per block, or none.
    """

    tokens: Tensor
    padding_mask: Tensor | None
    spans: tuple[TokenSpan, ...]
    buckets: tuple[Tensor | None, ...]
    tables: tuple[list[Tensor], ...]

    def __post_init__(self) -> None:
        batch, length = self.tokens.shape[:2]
        if self.padding_mask is not None and self.padding_mask.shape != (batch, length):
            raise ValueError(f"padding_mask {tuple(self.padding_mask.shape)} does not fit tokens {(batch, length)}")
        starts = [span.start for span in self.spans]
        stops = [span.stop for span in self.spans]
        if [*starts, length] != [0, *stops]:
            raise ValueError(f"spans {self.spans} do not tile 0..{length}")
        if not len(self.buckets) == len(self.tables) == len(self.spans):
            raise ValueError(f"{len(self.buckets)} bucket matrices, {len(self.tables)} tables, {len(self.spans)} spans")
        for span, buckets in zip(self.spans, self.buckets, strict=True):
            size = span.stop - span.start
            fitting = [(1, size, size), (batch, size, size)]
            if buckets is not None and tuple(buckets.shape) not in fitting:
                raise ValueError(f"buckets {tuple(buckets.shape)} do not fit {batch} x {size} tokens of {span.key}")

    @staticmethod
    def concat(sequences: Iterable["TokenSequence"]) -> "TokenSequence":
        """Concatenate sequences of equal batch size."""
        sequences = list(sequences)
        if len(sequences) == 1:
            return sequences[0]
        spans: list[TokenSpan] = []
        buckets: list[Tensor | None] = []
        tables: list[list[Tensor]] = []
        offset = 0
        for sequence in sequences:
            spans += [span.moved(offset) for span in sequence.spans]
            buckets += sequence.buckets
            tables += sequence.tables
            offset += sequence.tokens.shape[1]
        mask = None
        if any(sequence.padding_mask is not None for sequence in sequences):
            mask = torch.cat([sequence.dense_mask() for sequence in sequences], dim=1)
        return TokenSequence(
            tokens=torch.cat([sequence.tokens for sequence in sequences], dim=1),
            padding_mask=mask,
            spans=tuple(spans),
            buckets=tuple(buckets),
            tables=tuple(tables),
        )

    def dense_mask(self) -> Tensor:
        """The padding mask (B, L), all False when nothing is padding."""
        if self.padding_mask is not None:
            return self.padding_mask
        return torch.zeros(self.tokens.shape[:2], dtype=torch.bool, device=self.tokens.device)

    def split(self, x: Tensor) -> dict[str, Tensor]:
        """Split (B, L, ...) by modality."""
        return {span.key: x[:, span.start : span.stop] for span in self.spans}


def padding(lengths: Tensor, longest: int) -> Tensor:
    """The padding mask (B, longest) for items of the given lengths."""
    return torch.arange(longest, device=lengths.device) >= lengths.unsqueeze(1)
