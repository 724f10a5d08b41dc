"""Zero-shot classification: the share of items whose class is among the k nearest class prototypes."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from onepeace.embed.zero_shot import TEMPLATES, prototypes
from onepeace.evaluate.metrics import Figure, accuracy_at, chance_recall
from onepeace.evaluate.retrieval import encode


def zero_shot(
    embedder: Any,
    items: Sequence[Any],
    targets: Sequence[int],
    names: Sequence[str],
    *,
    templates: Sequence[str] = (),
    modality: str = "image",
    at: Sequence[int] = (1, 5),
) -> list[Figure]:
    """Top-k accuracy of items whose class numbers are `targets`, among all `names`; templates default to TEMPLATES."""
    classes = prototypes(partial(encode, embedder, "text"), names, templates or TEMPLATES[modality]).numpy()
    scores = encode(embedder, modality, items) @ classes.T
    numbers = np.arange(len(names))
    return [
        Figure(f"top-{k} of {len(names)}", value, chance_recall(targets, numbers, k), len(items))
        for k, value in accuracy_at(scores, targets, at).items()
    ]
