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
    budget = math.ceil(share * len(words))
    lengths: list[int] = []
    while sum(lengths) < budget:
        lengths.append(min(int(torch.poisson(torch.tensor(MEAN_LENGTH))), budget - sum(lengths)))
    spans = [length for length in lengths if length]
    starts = torch.randperm(len(words))[: len(spans)].tolist()
    begins = set(starts)
    inside = {start + i for start, length in zip(starts, spans, strict=True) for i in range(1, length)}
    found = [MASK if i in begins else word for i, word in enumerate(words) if i not in inside]
    for _ in range(len(lengths) - len(spans)):
        found.insert(int(torch.randint(len(found) + 1, ())), MASK)
    return " ".join(found)
