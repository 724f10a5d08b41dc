"""Sets whose items belong to named classes, and the vectors of the classes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from onepeace.embed.zero_shot import TEMPLATES, prototypes
from onepeace.errors import UserError
from onepeace.evaluate.protocols.protocol import EvaluationProtocol, encode


@dataclass(frozen=True, kw_only=True)
class ClassNames(EvaluationProtocol):
    """The options of a protocol that puts class names into sentences."""

    classes: str | None = None
    """File below the root: a JSON list of class names, or of objects with a "name". Default: the shards' labels."""
    templates: tuple[str, ...] = ()
    """Sentences with {} for the name or {a} for the name with its article; by default the modality's TEMPLATES."""

    def __post_init__(self) -> None:
        if not self.templates and self.modality not in TEMPLATES:
            raise UserError(f"no default templates for {self.modality}; give templates (known: {', '.join(TEMPLATES)})")
        for template in self.templates:
            if "{}" not in template and "{a}" not in template:
                raise UserError(f"template {template!r} has no {{}} for the class name")

    @property
    def prompts(self) -> tuple[str, ...]:
        return self.templates or TEMPLATES[self.modality]

    def listed_names(self, root: Path) -> list[str] | None:
        """The names in the file of classes, in the order of their numbers; None without a file."""
        if not self.classes:
            return None
        return read_class_names(root / self.classes)

    def class_vectors(self, embedder: Any, names: Sequence[str]) -> NDArray:
        """The prototypes of the classes, (C, E)."""

        def encode_texts(texts: Sequence[str]) -> NDArray:
            return encode(embedder, "text", texts)

        return prototypes(encode_texts, names, self.prompts).numpy()


def read_class_names(path: Path) -> list[str]:
    """Read a JSON list of names, or of objects with a "name"; UserError if the names are not distinct texts."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        names = []
        for entry in entries:
            names.append(entry["name"] if isinstance(entry, dict) else entry)
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", where=path) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'not a JSON list of class names, or of objects with a "name" ({error})', where=path) from error
    if not names:
        raise UserError("class names must be distinct texts; found 'none'", where=path)
    for name in names:
        if not isinstance(name, str) or names.count(name) > 1:
            raise UserError(f"class names must be distinct texts; found {name!r}", where=path)
    return names
