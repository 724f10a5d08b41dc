"""Zero-shot classification: labelled items against all class names of the set, in sentences (embed/zero_shot.py)."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onepeace.embed.zero_shot import TEMPLATES, prototypes
from onepeace.errors import UserError
from onepeace.evaluate.metrics import Figure, accuracy_at, chance_recall
from onepeace.evaluate.protocols.protocol import EvaluationProtocol, check_at, encode


@dataclass(frozen=True, kw_only=True)
class ZeroShot(EvaluationProtocol):
    """Top-k accuracy: an item gets the class whose prototype is the most similar to it."""

    at: tuple[int, ...] = (1, 5)
    """The k of the accuracies."""
    classes: str | None = None
    """File below the root: a JSON list of class names, or of objects with a "name". Default: the shards' labels."""
    templates: tuple[str, ...] = ()
    """Sentences with {} for the name or {a} for the name with its article; by default the modality's TEMPLATES."""

    def __post_init__(self) -> None:
        check_at(self.at)
        if not self.templates and self.modality not in TEMPLATES:
            raise UserError(f"no default templates for {self.modality}; give templates (known: {', '.join(TEMPLATES)})")
        if lacking := [t for t in self.templates if "{}" not in t and "{a}" not in t]:
            raise UserError(f"template {lacking[0]!r} has no {{}} for the class name")

    def run(self, embedder: Any, root: Path) -> list[Figure]:
        samples = self.read_labelled(root)
        names = _class_names(root / self.classes) if self.classes else sorted({sample.label for sample in samples})
        numbers = {name: i for i, name in enumerate(names)}
        for sample in samples:
            if sample.label not in numbers:
                raise UserError(f"{sample.source}: {sample.key}: label {sample.label!r} is not in {self.classes}")
        targets = [numbers[sample.label] for sample in samples]
        templates = self.templates or TEMPLATES[self.modality]
        classes = prototypes(lambda texts: encode(embedder, "text", texts), names, templates).numpy()
        scores = self.encode(embedder, samples) @ classes.T
        return [
            Figure(f"top-{k} of {len(names)}", value, chance_recall(targets, np.arange(len(names)), k), len(samples))
            for k, value in accuracy_at(scores, targets, self.at).items()
        ]


def _class_names(path: Path) -> list[str]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        names = [entry["name"] if isinstance(entry, dict) else entry for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a JSON list of class names ({error!r})") from error
    strange = [name for name in names if not isinstance(name, str) or names.count(name) > 1]
    if strange or not names:
        raise UserError(f"{path}: class names must be distinct texts; found {strange[0] if strange else 'none'!r}")
    return names
