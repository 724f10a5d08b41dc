"""Masks of tokens for the masked passes, with the exact counts of the paper's released code.

Every rule has the same two steps: score the tokens, mask the ``count`` tokens of lowest score. CLS is not counted, and
the end of a text is never masked. Each row draws from a generator of its own, as many numbers as it has tokens, so that
its mask depends neither on the other rows nor on the process that draws it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from onepeace.config.reader import Range
from onepeace.data.batch import Lengths, Mask, make_mask
from onepeace.errors import UserError

Unit = Literal["word", "patch", "span"]
"""Unit that is masked as a whole: word for text (its last token, EOS, stays), patch for image, span for audio."""
Masked = Annotated[float, Range("between 0 and 1; null = none", lambda share: 0 < share < 1)]
SPAN = 5
"""Frames masked around each centre of the unit "span"."""
Generators = Sequence[np.random.Generator]
"""A random generator for each row. Rows of one item may share a generator, from which they draw one after the other."""


@dataclass(frozen=True)
class MaskRates:
    """Shares of one modality's tokens that are masked; null = no such pass.

    The joint pass prefers tokens that the unimodal pass left visible; in a text it masks single tokens. For audio, both
    are drawn independently.
    """

    unit: Unit
    unimodal: Masked | None = None
    """Share masked when the modality is encoded alone."""
    joint: Masked | None = None
    """Share masked when it is encoded jointly with the other modality of its pair."""


def check_unit(modality: str, unit: Unit) -> None:
    """UserError for a unit of another modality: words are masked in texts, patches and spans in all others."""
    units = ["word"] if modality == "text" else ["patch", "span"]
    if unit not in units:
        raise UserError(f"mask.{modality}.unit {unit!r} is not for {modality}; known: {', '.join(units)}")


def word_table(pieces: Sequence[str]) -> Tensor:
    """(V, 2) bool for the pieces of a vocabulary in the order of their ids: begins a word, ends a word.

    Byte-level pieces mark a preceding space by "Ġ", SentencePiece's by "▁"; CLIP's mark the end of a word by "</w>";
    WordPiece's mark by "##" that they go on with one. The mark that most pieces have is the vocabulary's. Specials and
    fillers ("madeupword0000") begin a word, as in the released code.
    """
    special: tuple[str, ...] = ("<s>", "<pad>", "</s>", "<unk>", "<mask>", "madeupword")
    ends = [piece.endswith("</w>") for piece in pieces]
    counts = {"</w>": sum(ends)}
    for mark in ("Ġ", "▁", "##"):
        counts[mark] = sum(piece.startswith(mark) for piece in pieces)
    mark = max(counts, key=counts.__getitem__)
    if mark in ("Ġ", "▁"):
        special = (mark, *special)
    begins = [piece.startswith(special) for piece in pieces]
    if mark == "##":
        begins = [not piece.startswith(mark) for piece in pieces]
    return torch.tensor([begins, ends]).T.contiguous()


def word_starts(ids: Tensor, table: Tensor) -> Tensor:
    """(B, L) bool: the ids (B, L) that begin a word; the first always does."""
    begins, ends = table[ids].unbind(-1)
    starts = begins.clone()
    starts[:, 1:] |= ends[:, :-1]
    starts[:, 0] = True
    return starts


def draw_masks(
    rates: MaskRates | None, dropout: float, lengths: Lengths, generators: Generators, starts: Tensor | None = None
) -> dict[str, Mask]:
    """The masks of one modality by pass, for each pass with a share.

    A text too short for its share has no masked token, which the losses allow.

    Args:
        rates: shares and unit of the passes "unimodal" and "joint"; None = no such pass.
        dropout: share of the tokens that are dropped in the pass "contrastive", drawn uniformly.
        lengths: (B,) number of tokens without CLS, including the end of a text.
        generators: a generator for each row.
        starts: (B, L) bool, see `word_starts`; for a text, whose end is neither masked nor counted.
    """
    maskable = torch.from_numpy(lengths)
    if starts is not None:
        maskable = maskable - 1
    hidden: dict[str, Tensor] = {}
    if dropout:
        hidden["contrastive"] = mask_tokens(maskable, dropout, generators)
    if rates is not None and rates.unimodal is not None:
        hidden["unimodal"] = _mask_units(rates.unit, rates.unimodal, maskable, generators, starts)
    if rates is not None and rates.joint is not None:
        if rates.unit != "span" and "unimodal" in hidden:  # single tokens, those that the unimodal pass left visible
            hidden["joint"] = mask_tokens(maskable, rates.joint, generators, avoid=hidden["unimodal"])
        else:
            hidden["joint"] = _mask_units(rates.unit, rates.joint, maskable, generators, starts)
    longest = int(lengths.max(initial=0))
    padded = {name: torch.nn.functional.pad(tokens, (0, longest - tokens.shape[1])) for name, tokens in hidden.items()}
    return {name: make_mask(tokens, lengths) for name, tokens in padded.items()}


def _mask_units(unit: Unit, ratio: float, lengths: Tensor, generators: Generators, starts: Tensor | None) -> Tensor:
    """(B, L) bool: the tokens that are masked in units, of which ``ratio`` is masked."""
    if unit == "span":
        return mask_spans(lengths, ratio, generators)
    if starts is not None:
        return mask_words(lengths, ratio, generators, starts)
    return mask_tokens(lengths, ratio, generators)


def mask_tokens(lengths: Tensor, ratio: float, generators: Generators, avoid: Tensor | None = None) -> Tensor:
    """Mask int(n * ratio) of each row's n tokens uniformly; those in ``avoid`` (B, L) only if others run out."""
    score = _uniform(lengths, generators)
    if avoid is not None:
        score = score + avoid
    return lowest(score, _share(lengths, ratio), lengths)


def mask_words(lengths: Tensor, ratio: float, generators: Generators, starts: Tensor) -> Tensor:
    """Mask ceil(words * ratio) whole words of each row; the tokens in ``starts`` (B, L) begin a word."""
    starts = starts[:, : int(lengths.max())]
    inside = torch.arange(starts.shape[1]) < lengths[:, None]
    words = (starts & inside).sum(1)
    score = _uniform(words, generators)
    chosen = lowest(score, (words.double() * ratio).ceil().long(), words)  # (B, words)
    word_id = (starts.cumsum(1) - 1).clamp(min=0, max=max(chosen.shape[1] - 1, 0))
    return chosen.gather(1, word_id) & inside


def mask_spans(lengths: Tensor, ratio: float, generators: Generators) -> Tensor:
    """Mask int(n * ratio) of each row's n frames in spans: int(n * (ratio + 0.1) / 5) centres mask 5 frames each.

    Spans may overlap; frames are then unmasked or masked at random until the count is exact.
    """
    rows = len(lengths)
    longest = int(lengths.max())
    centres = (lengths.double() * (ratio + 0.1) / SPAN).floor().long()
    middles = (_uniform(centres, generators) * lengths[:, None]).long()
    around = torch.arange(SPAN) - SPAN // 2
    last_frame = (lengths[:, None, None] - 1).clamp(min=0)
    frames = (middles[:, :, None] + around).clamp(min=0).minimum(last_frame)  # (B, centres, SPAN)
    is_centre = torch.arange(middles.shape[1]) < centres[:, None]
    frames = torch.where(is_centre[:, :, None], frames, longest)  # others go to an extra column
    covered = torch.zeros(rows, longest + 1, dtype=torch.bool)
    covered = covered.scatter(1, frames.flatten(1), True)[:, :longest]
    score = _uniform(lengths, generators) + ~covered
    return lowest(score, _share(lengths, ratio), lengths)


def lowest(score: Tensor, count: Tensor, lengths: Tensor) -> Tensor:
    """(B, L) bool: the ``count`` entries of lowest score among the first ``lengths`` of each row."""
    outside = torch.arange(score.shape[1]) >= lengths[:, None]
    rank = score.masked_fill(outside, torch.inf).argsort(1).argsort(1)
    return rank < count[:, None]


def _share(lengths: Tensor, ratio: float) -> Tensor:
    return (lengths.double() * ratio).floor().long()  # as Python's int(n * ratio); in float32 some counts differ by one


def _uniform(counts: Tensor, generators: Generators) -> Tensor:
    """(B, longest) float32 from 0 to 1: ``counts`` numbers from the generator of each row, then zeros."""
    numbers = np.zeros((len(counts), int(counts.max())), dtype=np.float32)
    for row, (count, generator) in enumerate(zip(counts.tolist(), generators, strict=True)):
        numbers[row, :count] = generator.random(count, dtype=np.float32)
    return torch.from_numpy(numbers)
