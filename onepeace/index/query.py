"""Queries: texts, pictures, sounds and files of the index, combined by weights into one vector."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from onepeace.errors import UsageError, UserError
from onepeace.index.store import Store

if TYPE_CHECKING:
    from onepeace.embed.embedder import Embedder
    from onepeace.export.text_branch import TextBranch

WITHOUT = 0.5
"""Default weight of texts to move away from."""
SHORT = 3
"""Maximum number of words of a text that is treated as a name rather than a sentence."""
CANCELLED = 1e-3
"""Length of a sum of unit vectors below which the parts cancel out."""


@dataclass(frozen=True)
class Query:
    """A query of one or more parts. Each field is one value or a list; the query vector is the weighted sum of all.

    ``Query(text="a beach", without="people")``, ``Query(image="dog.jpg", text="in the snow", weights={"image": 0.7})``.
    """

    text: str | Sequence[str] = ()
    image: Any = ()
    """Path, URL, bytes or PIL image, as in `Embedder.encode_image`."""
    audio: Any = ()
    """Path, URL, bytes, or (samples, rate)."""
    like: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = ()
    """Paths of files of the index, whose stored vectors are used."""
    without: str | Sequence[str] = ()
    """Texts to move away from."""
    vector: Any = None
    """Vector (E,), given directly."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Weight of each field, at least 0; the default is 1, and 0.5 for `without`."""

    def parts(self) -> "list[tuple[str, Any, float]]":
        """(text, image, audio, like or vector; value; weight) of each part; the weight of `without` is below 0.

        Raises:
            UsageError: the query is empty, or a weight is not from 0 to 1e6, or names an unknown or empty field.
        """
        known = [one.name for one in fields(self) if one.name != "weights"]
        for name, weight in self.weights.items():
            if name not in known:
                raise UsageError(f"weights has {name!r}; it can have {', '.join(known)}")
            if not isinstance(weight, (int, float)) or not 0 <= weight <= 1e6:  # also rejects nan and huge ints
                raise UsageError(f"the weight of {name} is {weight!r}; give a number from 0 to 1e6")
        found = []
        for name in known:
            kind, usual = ("text", -WITHOUT) if name == "without" else (name, 1.0)
            weight = math.copysign(self.weights.get(name, usual), usual)
            value = getattr(self, name)
            is_sound = isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], Real)
            values = list(value) if isinstance(value, (list, tuple)) and not is_sound else [value]
            if name == "vector":
                values = [] if value is None else [value]
            if not values and name in self.weights:
                raise UsageError(f"weights has {name}, but the query has no {name}")
            for one in values:
                if kind == "text" and not isinstance(one, str):
                    raise UsageError(f"{name} is {type(one).__name__}; give words, or a list of them")
                if kind == "text" and not one.strip():
                    raise UsageError(f"{name} is empty; give words")
                found.append((kind, one, weight))
        if not any(weight > 0 for _, _, weight in found):
            raise UsageError("nothing to search for; give words, a picture, a sound or a file of the index")
        return found

    def paths(self) -> list[bytes]:
        """Paths of the files in the query, which are excluded from its hits."""
        named = [value for name, value, _ in self.parts() if name in ("image", "audio", "like")]
        paths = [value for value in named if isinstance(value, (str, os.PathLike))]
        return [os.fsencode(form(path)) for path in paths for form in (os.path.realpath, os.path.abspath)]


class EncodedPart(NamedTuple):
    """One part of a query, encoded."""

    bank: str
    """Bank of unrelated queries to compare with: word, sentence, image or audio."""
    vector: np.ndarray
    """(E,) float32, unit length."""
    weight: float


class QueryVector(NamedTuple):
    """A query as one vector."""

    vector: np.ndarray
    """(E,) float32, unit length."""
    parts: tuple[EncodedPart, ...]

    @classmethod
    def of(cls, parts: Sequence[EncodedPart]) -> "QueryVector":
        """Weighted sum of the parts.

        Raises:
            UserError: the parts cancel out.
        """
        total = np.sum([part.weight * part.vector.astype(np.float64) for part in parts], axis=0)
        return cls(_unit(total, "the parts of the query cancel out; change their weights"), tuple(parts))


def encode(
    query: Query, store: Store, load: "Callable[[], Embedder]", branch: "Callable[[], TextBranch | None]"
) -> QueryVector:
    """Encode a query.

    Args:
        store: store of the index, for `like`.
        load: returns the model of the index; called only if a part needs it.
        branch: returns the text branch, which encodes text without the model, if it exists.

    Raises:
        UserError: the query is empty, a part cannot be read, or the parts cancel out.
    """
    given = query.parts()
    read = [(name, value) for name, value, _ in given if name not in ("like", "vector")]
    words = branch() if read and all(name == "text" for name, _ in read) else None
    vectors: Any = []
    if words is not None:
        vectors = words.encode([value for _, value in read])
    elif read:
        vectors = load().encode([{name: value} for name, value in read], progress=False)
    encoded, parts = iter(np.asarray(vectors)), []
    for name, value, weight in given:
        if name == "like":
            parts += _of_index(os.fspath(value), weight, store)
        elif name == "vector":
            parts.append(EncodedPart("sentence", _checked(value, store.embed_dim), weight))
        else:
            parts.append(EncodedPart(bank_of_text(value) if name == "text" else name, next(encoded), weight))
    return QueryVector.of(parts)


def bank_of_text(text: str) -> str:
    """Bank of unrelated texts that a text is compared with."""
    return "word" if len(text.split()) <= SHORT else "sentence"


def _unit(vector: np.ndarray, problem: str) -> np.ndarray:
    """Normalise to (E,) float32 of length 1; UserError for a zero vector."""
    length = float(np.linalg.norm(vector))
    if not CANCELLED < length < math.inf:
        raise UserError(problem)
    return (vector / length).astype(np.float32)


def _checked(value: Any, embed_dim: int) -> np.ndarray:
    try:
        vector = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        vector = np.empty(0)
    problem = f"a vector to search for has {embed_dim} finite numbers, not all 0; got {vector.shape}"
    if vector.shape != (embed_dim,):
        raise UserError(problem)
    return _unit(vector, problem)


def _of_index(path: str, weight: float, store: Store) -> list[EncodedPart]:
    """The mean vector of a file; for a video, one of its frames and one of its audio track."""
    names = (os.fsencode(path), os.fsencode(os.path.abspath(path)))
    item = next(store.items("path IN (?, ?) AND problem IS NULL", names), None)
    if item is None:
        raise UserError(f"{path}: not in the index {store.folder}; give it as a picture or sound, or add it first")
    _, spans, vectors = store.intact([item.id])[item.id]
    kinds = [span.modality for span in spans]
    parts = []
    for modality in dict.fromkeys(kinds):
        mean = vectors[[kind == modality for kind in kinds]].mean(axis=0, dtype=np.float64)
        bank = bank_of_text(item.caption or path) if modality == "text" else modality
        parts.append(EncodedPart(bank, _unit(mean, f"{path}: its vectors cancel out; search for a part of it"), weight))
    return parts
