"""Masks of tokens for the masked passes, with the exact counts of the paper's released code.

Every rule has the same two steps: score the tokens, mask the ``count`` tokens of lowest score. CLS is not counted, and
the end of a text is never masked. Whole batches are drawn at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from onepeace.config.limits import Range
from onepeace.data.batch import Mask

Unit = Literal["word", "patch", "span"]
"""Unit that is masked as a whole: word for text (its last token, EOS, stays), patch for image, span for audio."""
Masked = Annotated[float, Range("between 0 and 1; null = none", lambda share: 0 < share < 1)]
SPAN = 5
"""Frames masked around each centre of the unit "span"."""


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


def word_table(pieces: Sequence[str]) -> Tensor:
    """(V, 2) bool for the pieces of a vocabulary in the order of their ids: begins a word, ends a word.

    Byte-level pieces mark a preceding space by "Ġ"; CLIP's mark the end of a word by "</w>". Specials and fillers
    ("madeupword0000") begin a word, as in the released code.
    """
    special = ("<s>", "<pad>", "</s>", "<unk>", "madeupword")
    begins = [piece.startswith("Ġ") or piece.startswith(special) for piece in pieces]
    return torch.tensor([begins, [piece.endswith("</w>") for piece in pieces]]).T.contiguous()


def word_starts(ids: Tensor, table: Tensor) -> Tensor:
    """(B, L) bool: the ids (B, L) that begin a word; the first always does."""
    begins, ends = table[ids].unbind(-1)
    starts = begins.clone()
    starts[:, 1:] |= ends[:, :-1]
    starts[:, 0] = True
    return starts


def lowest(score: Tensor, count: Tensor, lengths: Tensor) -> Tensor:
    """(B, L) bool: the ``count`` entries of lowest score among the first ``lengths`` of each row."""
    outside = torch.arange(score.shape[1]) >= lengths[:, None]
    rank = score.masked_fill(outside, torch.inf).argsort(1).argsort(1)
    return rank < count[:, None]


def _share(lengths: Tensor, ratio: float) -> Tensor:
    return (lengths.double() * ratio).floor().long()  # as Python's int(n * ratio); in float32 some counts differ by one


def mask_tokens(lengths: Tensor, ratio: float, generator: torch.Generator, avoid: Tensor | None = None) -> Tensor:
    """Mask int(n * ratio) of each row's n tokens uniformly; those in ``avoid`` (B, L) only if others run out."""
    score = torch.rand(len(lengths), int(lengths.max()), generator=generator)
    return lowest(score if avoid is None else score + avoid, _share(lengths, ratio), lengths)


def mask_words(lengths: Tensor, ratio: float, generator: torch.Generator, starts: Tensor) -> Tensor:
    """Mask ceil(words * ratio) whole words of each row; the tokens in ``starts`` (B, L) begin a word."""
    starts = starts[:, : int(lengths.max())]
    inside = torch.arange(starts.shape[1]) < lengths[:, None]
    words = (starts & inside).sum(1)
    score = torch.rand(starts.shape, generator=generator)
    chosen = lowest(score, (words.double() * ratio).ceil().long(), words)  # (B, words)
    word_id = (starts.cumsum(1) - 1).clamp(min=0)
    return chosen.gather(1, word_id) & inside


def mask_spans(lengths: Tensor, ratio: float, generator: torch.Generator) -> Tensor:
    """Mask int(n * ratio) of each row's n frames in spans: int(n * (ratio + 0.1) / 5) centres mask 5 frames each.

    Spans may overlap; frames are then unmasked or masked at random until the count is exact.
    """
    rows, longest = len(lengths), int(lengths.max())
    centres = (lengths.double() * (ratio + 0.1) / SPAN).floor().long()
    draw = torch.rand(rows, max(int(centres.max()), 1), generator=generator)
    place = (draw * lengths[:, None]).long()
    around = torch.arange(SPAN) - SPAN // 2
    last = (lengths[:, None, None] - 1).clamp(min=0)
    frames = (place[:, :, None] + around).clamp(min=0).minimum(last)  # (B, centres, SPAN)
    real = torch.arange(draw.shape[1]) < centres[:, None]
    covered = torch.zeros(rows, longest + 1, dtype=torch.bool)
    frames = torch.where(real[:, :, None], frames, longest)  # padding goes to an extra column
    covered = covered.scatter(1, frames.flatten(1), True)[:, :longest]
    score = torch.rand(rows, longest, generator=generator) + ~covered
    return lowest(score, _share(lengths, ratio), lengths)


def draw_masks(
    rates: MaskRates | None, dropout: float, lengths: Tensor, generator: torch.Generator, starts: Tensor | None = None
) -> dict[str, Mask]:
    """The masks of one modality by pass, for each pass with a share.

    A text too short for its share has no masked token, which the losses allow.

    Args:
        rates: shares and unit of the passes "unimodal" and "joint".
        dropout: share of the tokens that are dropped in the pass "contrastive", drawn uniformly.
        lengths: (B,) number of tokens without CLS, including the end of a text.
        starts: (B, L) bool, see `word_starts`; for a text, whose end is neither masked nor counted.
    """
    maskable = lengths if starts is None else lengths - 1
    rates = rates or MaskRates("patch")
    drawn: dict[str, Tensor] = {}
    if dropout:
        drawn["contrastive"] = mask_tokens(maskable, dropout, generator)
    for name, rate in {"unimodal": rates.unimodal, "joint": rates.joint}.items():
        if rate is None:
            continue
        if rates.unit == "span":
            drawn[name] = mask_spans(maskable, rate, generator)
        elif starts is not None and "unimodal" not in drawn:
            drawn[name] = mask_words(maskable, rate, generator, starts)
        else:  # if there is a unimodal pass, the joint one masks single tokens of a text
            drawn[name] = mask_tokens(maskable, rate, generator, drawn.get("unimodal"))
    return {name: _mask(tokens, lengths) for name, tokens in drawn.items()}


def _mask(tokens: Tensor, lengths: Tensor) -> Mask:
    """The mask for rows of ``lengths`` tokens without CLS, where ``tokens`` (B, at most L) are masked."""
    masked = torch.nn.functional.pad(tokens, (1, int(lengths.max()) - tokens.shape[1]))
    stays = ~masked & (torch.arange(masked.shape[1]) <= lengths[:, None])
    counts = stays.sum(1)
    # False sorts before True, and a stable sort leaves the positions in order.
    order = (~stays).long().argsort(dim=1, stable=True)[:, : int(counts.max())]
    return Mask(order.masked_fill(torch.arange(order.shape[1]) >= counts[:, None], -1), masked)
