"""Text infilling: masked texts from which a model learns to write the whole text (BART, arXiv 1910.13461)."""

import math

import torch

MASK = "<mask>"
MEAN_LENGTH = 3.0
"""Mean length of a span in words (Poisson). An empty span inserts a `<mask>` between two words."""


def mask_words(text: str, share: float) -> str:
    """Replace random spans of words with one `<mask>` each (fairseq's rules), drawn by torch's random generator.

    Args:
        share: share of the words to mask; less where spans overlap.
    """
    words = text.split()
    lengths = _span_lengths(math.ceil(share * len(words)))
    spans = [length for length in lengths if length > 0]
    starts = torch.randperm(len(words))[: len(spans)].tolist()
    deleted: set[int] = set()  # words of a span after the first one, which becomes the mask
    for start, length in zip(starts, spans, strict=True):
        deleted.update(range(start + 1, start + length))
    first_words = set(starts)
    masked = []
    for position, word in enumerate(words):
        if position not in deleted:
            masked.append(MASK if position in first_words else word)
    num_insertions = len(lengths) - len(spans)
    for _ in range(num_insertions):
        masked.insert(int(torch.randint(len(masked) + 1, ())), MASK)
    return " ".join(masked)


def _span_lengths(num_words: int) -> list[int]:
    """Random lengths of spans, 0 included, with this sum."""
    lengths: list[int] = []
    remaining = num_words
    while remaining > 0:
        length = min(int(torch.poisson(torch.tensor(MEAN_LENGTH))), remaining)
        lengths.append(length)
        remaining -= length
    return lengths
