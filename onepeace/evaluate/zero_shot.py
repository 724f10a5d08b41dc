"""Classification by text: each class is the mean vector of its name in several sentences. Next: benchmarks.py.

The recipe is that of CLIP (arXiv 2103.00020, section 3.1.4): unit vectors of all sentences of a class, their mean, made
unit again; an item gets the class with the largest dot product.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onepeace.evaluate.metrics import Figure, accuracy_at, chance_recall
from onepeace.evaluate.retrieval import encode

TEMPLATES = {
    "image": ("{a}", "a photo of {a}", "a picture of {a}", "a small photo of {a}", "a photo of the {}"),
    "audio": ("{}", "the sound of {}", "a recording of {}", "this is a sound of {}"),
}
"""Sentences around a class name: {} is the name, {a} the name with its article."""


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
    classes = class_vectors(embedder, names, templates or TEMPLATES[modality])
    scores = encode(embedder, modality, items) @ classes.T
    numbers = np.arange(len(names))
    return [
        Figure(f"top-{k} of {len(names)}", value, chance_recall(targets, numbers, k), len(items))
        for k, value in accuracy_at(scores, targets, at).items()
    ]


def class_vectors(embedder: Any, names: Sequence[str], templates: Sequence[str]) -> NDArray:
    """One unit vector per class name, (C, E): the normalised mean over the templates."""
    sentences = [fill(template, name) for name in names for template in templates]
    vectors = encode(embedder, "text", sentences).reshape(len(names), len(templates), -1).mean(axis=1)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def fill(template: str, name: str) -> str:
    """The template with a class name in place of {}, and the name with its article in place of {a}."""
    return template.replace("{a}", with_article(name)).replace("{}", name)


def with_article(name: str) -> str:
    """The name behind "a" or "an", or alone when it looks like a plural."""
    if name.endswith("s") and not name.endswith(("ss", "us", "is")):
        return name
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
