"""What is asked of an index: texts, pictures, sounds and files of it, combined by weights into one vector; which rows
of the matrix may be hits; and the options of a search."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from onepeace.errors import UsageError, UserError
from onepeace.hub.towers.config import names_towers
from onepeace.index.database import Store
from onepeace.index.filters import Condition
from onepeace.index.vectors import Matrix

if TYPE_CHECKING:
    from onepeace.index.state import State

FIELDS = ("text", "image", "audio", "like", "without", "vector")
"""Fields of a query that have values to search by."""
WITHOUT = 0.5
"""Default weight of texts to move away from."""
SHORT = 3
"""Maximum number of words of a text that is treated as a name rather than a sentence."""
CANCELLED = 1e-3
"""Length of a sum of unit vectors below which the parts cancel out."""
LOOKED_AT = 16
"""Vectors of a modality that are looked at: all are zero in the same blocks, and few are zero altogether."""
TEXT_BRANCH_FROM = 1000
"""Number of files from which the model's text branch is exported in 10 s; without it a text query takes 3 s."""
SORTS = ("match", "date", "path")
"""Orders of hits."""


@dataclass(frozen=True)
class Query:
    """A query of one or more parts. Each field is one value or a list; the query vector is the weighted sum of all.

    ``Query(text="a beach", without="people")``, ``Query(image="dog.jpg", text="in the snow", weights={"image": 0.7})``.

    Raises:
        UsageError: the query is empty, or a weight is not from 0 to 1e6, or names an unknown or empty field.
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

    parts: "tuple[QueryPart, ...]" = field(init=False, repr=False, compare=False)
    """What the fields say, part by part; the weight of `without` is below 0."""

    def __post_init__(self) -> None:
        self._check_weights()
        parts = []
        for name in FIELDS:
            values = self._values(name)
            if not values and name in self.weights:
                raise UsageError(f"weights has {name}, but the query has no {name}")
            sign, kind, default = (-1, "text", WITHOUT) if name == "without" else (1, name, 1.0)
            for value in values:
                if kind == "text" and not (isinstance(value, str) and value.strip()):
                    raise UsageError(f"{name} is {value!r:.40}; give words, or a list of them")
                parts.append(QueryPart(kind, value, sign * self.weights.get(name, default)))
        if not any(part.weight > 0 for part in parts):
            raise UsageError("nothing to search for; give words, a picture, a sound or a file of the index")
        object.__setattr__(self, "parts", tuple(parts))

    @property
    def inputs(self) -> list[dict[str, Any]]:
        """The parts that a model encodes, {modality: value} each."""
        return [{part.field: part.value} for part in self.parts if part.field not in ("like", "vector")]

    @property
    def paths(self) -> list[bytes]:
        """Paths of the files in the query, which are excluded from its hits."""
        paths = []
        for part in self.parts:
            may_be_path = part.field in ("image", "audio", "like")
            if may_be_path and isinstance(part.value, (str, os.PathLike)):
                paths += [os.path.realpath(part.value), os.path.abspath(part.value)]
        return [os.fsencode(path) for path in paths]

    @property
    def texts(self) -> list[str]:
        """The texts that hits should fit, whatever the other parts are."""
        return [part.value for part in self.parts if part.field == "text" and part.weight > 0]

    @property
    def is_text(self) -> bool:
        """Whether hits should fit texts alone, not a picture, a sound, a file or a vector too."""
        return all(part.field == "text" for part in self.parts if part.weight > 0)

    def _check_weights(self) -> None:
        for name, weight in self.weights.items():
            is_number = isinstance(weight, (int, float))
            if name not in FIELDS or not is_number or not 0 <= weight <= 1e6:  # also rejects nan and huge ints
                raise UsageError(f"the weight of {name} is {weight!r}; {', '.join(FIELDS)} can have one from 0 to 1e6")

    def _values(self, name: str) -> list[Any]:
        """Values of a field, which may hold one or a list."""
        value = getattr(self, name)
        if name == "vector":
            return [] if value is None else [value]
        is_sound = isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], Real)  # (samples, rate)
        if isinstance(value, (list, tuple)) and not is_sound:
            return list(value)
        return [value]


@dataclass(kw_only=True)
class SearchOptions:
    """Which hits to show, and in which order; see `Index.search`.

    Raises:
        UserError: a value is out of its range.
    """

    top: int
    offset: int
    sort: str
    min_match: float | None
    collapse: bool

    def __post_init__(self) -> None:
        are_whole = isinstance(self.top, Integral) and isinstance(self.offset, Integral)
        if not are_whole or self.top < 1 or self.offset < 0:
            raise UserError(f"top is {self.top} and offset {self.offset}; give whole numbers from 1 and from 0")
        self.top = int(self.top)
        self.offset = int(self.offset)
        if self.min_match is not None and not 0 <= self.min_match <= 1:
            raise UserError(f"min_match is {self.min_match}; give a number from 0 to 1")
        if self.sort not in SORTS:
            raise UserError(f"sort is {self.sort!r}; it can be {', '.join(SORTS)}")


class QueryPart(NamedTuple):
    """One part of a query."""

    field: str
    """text, image, audio, like or vector."""
    value: Any
    weight: float


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
    length: float
    """Length of the weighted sum; 1 if there is one part, whose weight changes nothing."""

    @classmethod
    def of(cls, parts: Sequence[EncodedPart]) -> "QueryVector":
        """Weighted sum of the parts.

        Raises:
            UserError: the parts cancel out.
        """
        weighted = [part.weight * part.vector.astype(np.float64) for part in parts]
        total = np.sum(weighted, axis=0)
        vector = _unit(total, "the parts of the query cancel out; change their weights")
        return cls(vector, tuple(parts), float(np.linalg.norm(total)) if len(parts) > 1 else 1.0)


def vector_of(query: Query, encoded: Iterable[np.ndarray], state: "State") -> QueryVector:
    """A query as one vector.

    Args:
        encoded: vectors (E,) of its `Query.inputs`.

    Raises:
        UserError: a file is not in the index, a vector is none, or the parts cancel out.
    """
    vectors = iter(encoded)
    encoded_parts = []
    for part in query.parts:
        if part.field == "like":
            encoded_parts += _of_index(os.fspath(part.value), part.weight, state)
        elif part.field == "vector":
            vector = _checked(part.value, state.embed_dim)
            encoded_parts.append(EncodedPart(bank="sentence", vector=vector, weight=part.weight))
        else:
            bank = bank_of_text(part.value) if part.field == "text" else part.field
            encoded_parts.append(EncodedPart(bank=bank, vector=next(vectors), weight=part.weight))
    return QueryVector.of(encoded_parts)


def uses_text_branch(store: Store) -> bool:
    """Whether texts are encoded by an exported text branch, whose vectors differ from the model's by 1e-7.

    The number of files alone decides, so that an answer does not depend on what the cache has of other indexes.
    """
    has_many = store.select("SELECT 1 FROM files WHERE problem IS NULL LIMIT 1 OFFSET ?", (TEXT_BRANCH_FROM - 1,))
    return bool(has_many)


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


def _of_index(path: str, weight: float, state: "State") -> list[EncodedPart]:
    """The mean vector of a file; for a video, one of its frames and one of its audio track."""
    item = state.item(path) or state.item(os.path.abspath(path))
    if item is None:
        raise UsageError(f"not in the index {state.folder}; give it as a picture or sound, or add it first", where=path)
    matrix = state.matrix
    rows = np.flatnonzero(matrix.file == item.id)
    codes = matrix.modality[rows]
    parts = []
    for code in dict.fromkeys(codes.tolist()):
        modality = state.modalities[code]
        mean = matrix.vectors[rows[codes == code]].mean(axis=0, dtype=np.float64)
        vector = _unit(mean, f"{path}: its vectors cancel out; search for a part of it")
        bank = bank_of_text(item.caption or path) if modality == "text" else modality
        parts.append(EncodedPart(bank=bank, vector=vector, weight=weight))
    return parts


class Allowed(NamedTuple):
    """Rows of the matrix that may be hits."""

    rows: np.ndarray | None
    """(n,) bool; None = all."""
    num_files: int
    """Number of files with such a row."""

    def only(self, matrix: Matrix, rows: np.ndarray) -> "Allowed":
        """Rows that are also among others, (n,) bool; to count their files takes 3 ms for a million rows."""
        both = rows if self.rows is None else self.rows & rows
        _, file_of_row = matrix.files
        return Allowed(both, int(np.count_nonzero(np.bincount(file_of_row[both]))))


def rows_of_files(matrix: Matrix, ids: Iterable[int]) -> np.ndarray:
    """(n,) bool: rows of the files with these ids, which may be of files without rows."""
    file_ids, file_of_row = matrix.files
    wanted = np.fromiter(ids, np.int64)
    places = np.searchsorted(file_ids, wanted)  # faster by far than np.isin
    is_inside = places < len(file_ids)
    places = places[is_inside]
    is_wanted = np.zeros(len(file_ids), bool)
    is_wanted[places[file_ids[places] == wanted[is_inside]]] = True
    return is_wanted[file_of_row]


def mask_of(store: Store, matrix: Matrix, condition: Condition | None) -> Allowed:
    """Rows of the files that satisfy a condition; None = all."""
    everything = Allowed(None, matrix.num_files)
    if condition is None:
        return everything
    return everything.only(matrix, rows_of_files(matrix, store.ids(condition.sql, condition.params)))


def without_files(state: "State", allowed: Allowed, paths: Sequence[bytes]) -> Allowed:
    """The rows without those of some files."""
    if not paths:
        return allowed
    ids = state.store.ids(f"path IN ({', '.join('?' for _ in paths)})", paths)
    return allowed.only(state.matrix, ~rows_of_files(state.matrix, ids))


def without_other_spaces(state: "State", allowed: Allowed, vector: np.ndarray) -> Allowed:
    """The rows of modalities that have dimensions in common with a query.

    In a space joined from those of several models (onepeace/hub/towers), a picture and a sound may have none.

    Args:
        vector: (E,) unit vector of the query.

    Raises:
        UserError: there are allowed rows, and none of them can be compared with the query.
    """
    if vector.all() or not names_towers(state.model):  # there is one space
        return allowed
    codes_of_other_spaces = []
    for code in range(len(state.modalities)):
        rows = np.flatnonzero(state.matrix.modality == code)
        some_vectors = state.matrix.vectors[rows[:: len(rows) // LOOKED_AT + 1]]
        if some_vectors.any() and not some_vectors[:, vector != 0].any():
            codes_of_other_spaces.append(code)
    if not codes_of_other_spaces:
        return allowed
    comparable = allowed.only(state.matrix, ~np.isin(state.matrix.modality, codes_of_other_spaces))
    if allowed.num_files and not comparable.num_files:
        modalities = " or ".join(state.modalities[code] for code in codes_of_other_spaces)
        raise UserError(
            f"this query has no space in common with {modalities} in the model {state.model}; search by words, "
            "which all its parts read"
        )
    return comparable
