"""Zero-shot classification: a class is represented by the embedding of its name in one or several prompts.

The recipe is that of CLIP (arXiv 2103.00020, section 3.1.4): the prototype of a class is the mean of the unit vectors
of its sentences, renormalised; an item belongs to the class whose prototype has the largest dot product with it.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onepeace.errors import UsageError, UserError

DEFAULT = "text"
"""The modality whose templates are used for all that have none of their own."""
TEMPLATE = {"image": "a photo of a {}", "audio": "the sound of a {}", DEFAULT: "{}"}
"""Prompt template by modality, for labels typed by a user."""
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
    templates = as_list(templates)
    _check(names, templates)
    sentences = [fill(template, name) for name in names for template in templates]
    vectors = torch.as_tensor(encode_text(sentences)).float()
    vectors_by_label = vectors.view(len(names), len(templates), -1)
    return F.normalize(vectors_by_label.mean(dim=1), dim=-1)


def as_list(templates: str | Sequence[str]) -> list[str]:
    return [templates] if isinstance(templates, str) else list(templates)


def _check(names: Sequence[str], templates: Sequence[str]) -> None:
    if not names or not templates or not all(name.strip() for name in names):
        raise UserError("classification needs at least one label and one template, and no label may be empty")
    for template in templates:
        if "{}" not in template and "{a}" not in template:
            raise UserError(f"template {template!r} has no {{}} for the label to go in")


class ZeroShotClassifier:
    """Probabilities of labels, for items of several modalities.

    Args:
        encode_text: as in `prototypes`.
        templates: templates by modality; those of `DEFAULT` are for all other modalities.
    """

    def __init__(
        self,
        encode_text: Callable[[list[str]], Any],
        labels: Sequence[str],
        templates: Mapping[str, str | Sequence[str]],
    ) -> None:
        if len(set(labels)) < 2:
            raise UsageError(
                f"labels: {', '.join(labels) or 'none'}; give at least two, as one is right for every file"
            )
        for sentences in templates.values():
            _check(labels, as_list(sentences))
        self.encode_text = encode_text
        self.labels = labels
        self.templates = templates

    def probabilities(self, vectors: Tensor, modalities: Sequence[str], scale_of: Callable[[str], float]) -> Tensor:
        """(n, number of labels); rows sum to 1.

        Args:
            vectors: (n, E) unit vectors.
            modalities: the modality of each.
            scale_of: returns the factor from cosines to logits for items of a modality.
        """
        logits = torch.empty(len(vectors), len(self.labels))
        for modality in set(modalities):
            rows = [row for row, modality_of_row in enumerate(modalities) if modality_of_row == modality]
            classes = prototypes(self.encode_text, self.labels, self.templates.get(modality, self.templates[DEFAULT]))
            logits[rows] = scale_of(modality) * (vectors[rows] @ classes.T)
        return logits.softmax(dim=1)


def fill(template: str, label: str) -> str:
    """The template with the label in place of {}, and the label with its article in place of {a}."""
    return re.sub(r"\{(a?)\}", lambda match: with_article(label) if match[1] else label, template)


def with_article(label: str) -> str:
    """The label after "a" or "an", or alone when it looks like a plural."""
    if label.endswith("s") and not label.endswith(("ss", "us", "is")):
        return label
    starts_with_vowel = label[:1].lower() in "aeiou"
    return f"an {label}" if starts_with_vowel else f"a {label}"
