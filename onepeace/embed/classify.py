"""Zero-shot classification: a class is represented by the embedding of its name in one or several prompts.

The recipe is that of CLIP (arXiv 2103.00020, section 3.1.4): the prototype of a class is the mean of the unit vectors
of its sentences, renormalised; an item belongs to the class whose prototype has the largest dot product with it.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from onepeace.errors import UsageError, UserError
from onepeace.files.walk import FoundFile

TEMPLATE = {"image": "a photo of a {}", "audio": "the sound of a {}"}
"""Prompt template by modality, for labels typed by a user; that of others is "{}"."""
TEMPLATES = {
    "image": ("{a}", "a photo of {a}", "a picture of {a}", "a small photo of {a}", "a photo of the {}"),
    "audio": ("{}", "the sound of {}", "a recording of {}", "this is a sound of {}"),
}
"""Prompt templates by modality whose embeddings are averaged, for the class names of a benchmark."""


def prototypes(
    encode_text: Callable[[list[str]], Any], labels: Iterable[object], templates: str | Sequence[str]
) -> Tensor:
    """(number of labels, E) unit vectors, one prototype for each label.

    Args:
        encode_text: takes sentences, returns their unit vectors (n, E) in the same order, as a tensor or an array.
        templates: sentences with {} for the label, or {a} for the label with its article.

    Raises:
        UserError: no label, an empty label, no template, or a template without {} or {a}.
    """
    names = [str(label) for label in labels]
    templates = [templates] if isinstance(templates, str) else list(templates)
    _check(names, templates)
    sentences = [fill(template, name) for name in names for template in templates]
    vectors = torch.as_tensor(encode_text(sentences)).float()
    vectors_by_label = vectors.view(len(names), len(templates), -1)
    return F.normalize(vectors_by_label.mean(dim=1), dim=-1)


def check_choice(labels: Sequence[str], template: str | Sequence[str] | None) -> None:
    """Raise UserError if there is nothing to choose from, or `prototypes` would refuse these arguments."""
    if len(set(labels)) < 2:
        raise UsageError(f"labels: {', '.join(labels) or 'none'}; give at least two, as one is right for every file")
    if template is None:
        template = "{}"
    _check(labels, [template] if isinstance(template, str) else template)


def _check(names: Sequence[str], templates: Sequence[str]) -> None:
    if not names or not templates or not all(name.strip() for name in names):
        raise UserError("classification needs at least one label and one template, and no label may be empty")
    for template in templates:
        if "{}" not in template and "{a}" not in template:
            raise UserError(f"template {template!r} has no {{}} for the label to go in")


def fill(template: str, label: str) -> str:
    """The template with the label in place of {}, and the label with its article in place of {a}."""
    return re.sub(r"\{(a?)\}", lambda match: with_article(label) if match[1] else label, template)


def with_article(label: str) -> str:
    """The label after "a" or "an", or alone when it looks like a plural."""
    if label.endswith("s") and not label.endswith(("ss", "us", "is")):
        return label
    starts_with_vowel = label[:1].lower() in "aeiou"
    return f"an {label}" if starts_with_vowel else f"a {label}"


class ClassifiedFiles(NamedTuple):
    """The result of one file, or of several that a head reads together."""

    paths: list[Path]
    result: dict[str, Any] | None
    """Fields as in onepeace/embed/predict.py; None if it failed."""
    reason: str = ""
    """Why it failed, without the name of the file."""


def classify_by_labels(
    classify: Callable[..., Any],
    files: Sequence[FoundFile],
    labels: Sequence[str],
    *,
    template: str | None = None,
    top: int = 1,
    batch_size: int = 32,
) -> Iterator[ClassifiedFiles]:
    """Yield the ``top`` labels of each file with their probabilities; see `Embedder.classify`, which is `classify`."""
    items = [{file.modality: file.path} for file in files]
    probabilities, failures = classify(items, labels, template=template, batch_size=batch_size, on_error="skip")
    reason_by_index = {failure.index: str(failure.reason) for failure in failures}
    rows = iter(probabilities)
    for index, file in enumerate(files):
        if index in reason_by_index:
            yield ClassifiedFiles([file.path], None, reason_by_index[index])
            continue
        scores, numbers = next(rows).sort(descending=True, stable=True)
        best = []
        for score, number in zip(scores.tolist()[:top], numbers.tolist()[:top], strict=True):
            best.append({"label": labels[number], "score": round(score, 6)})
        yield ClassifiedFiles([file.path], {"labels": best})
