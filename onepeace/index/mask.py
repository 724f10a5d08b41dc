"""Which rows of the matrix may be hits: filters by kind, by a condition on the files, and by folder; without the files
of the query, and without what it cannot be compared with. And the functions of Python that SQLite calls for conditions.
"""

import json
import math
import os
import sqlite3
import unicodedata
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from onepeace.errors import UserError
from onepeace.hub.towers.config import names_towers
from onepeace.index.database import Store, sql_below
from onepeace.index.filters import Condition, compile_globs, kind_of
from onepeace.index.vectors import Matrix

LOOKED_AT = 16
"""Vectors of a modality that are looked at: all are zero in the same blocks, and few are zero altogether."""
EARTH_RADIUS = 6_371_009.0
"""Mean radius in metres."""


def kinds_of(only: str | Iterable[str], modalities: Collection[str]) -> tuple[str, ...]:
    """Kinds of file by their names; a modality of the model needs no built-in name.

    Raises:
        UsageError: a name is unknown.
    """
    names = [only] if isinstance(only, str) else only
    return tuple(name if name in modalities else kind_of(name) for name in names)


def paths_of(below: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> tuple[str, ...]:
    """One path or several as a tuple of strings."""
    paths = [below] if isinstance(below, (str, os.PathLike)) else below
    return tuple(os.fspath(path) for path in paths)


def rows_of_files(matrix: Matrix, ids: Iterable[int]) -> np.ndarray:
    """(n,) bool: rows of the files with these ids."""
    file_ids, file_of_row = matrix.files
    return np.isin(file_ids, np.fromiter(ids, np.int64))[file_of_row]


def rows_of(
    store: Store,
    matrix: Matrix,
    sql: str,
    parameters: Sequence[Any] = (),
) -> np.ndarray:
    """(n,) bool: rows of the files that satisfy a condition."""
    return rows_of_files(matrix, store.ids(sql, parameters))


def mask_of(
    store: Store,
    matrix: Matrix,
    kinds: Collection[str],
    where: Condition | None,
    below: Collection[str],
) -> np.ndarray | None:
    """(n,) bool: rows that pass the filters; None = all.

    Args:
        kinds: kinds of files; empty = all.
        below: paths of files, and of the folders, tables and shards that files lie in; empty = all.
    """
    masks = []
    if where is not None:
        masks.append(rows_of(store, matrix, where.sql, where.params))
    if kinds:
        masks.append(rows_of(store, matrix, f"modality IN ({_placeholders(kinds)})", [*kinds]))
    if below:
        masks.append(rows_of_files(matrix, _ids_below(store, below)))
    return np.logical_and.reduce(masks) if masks else None


def without_files(
    store: Store, matrix: Matrix, allowed: np.ndarray | None, paths: Sequence[bytes]
) -> np.ndarray | None:
    """A mask of rows, (n,) bool or None for all, without the rows of some files."""
    if not paths:
        return allowed
    remaining = ~rows_of(store, matrix, f"path IN ({_placeholders(paths)})", paths)
    return remaining if allowed is None else allowed & remaining


def _placeholders(values: Collection[object]) -> str:
    return ", ".join("?" for _ in values)


def _ids_below(store: Store, paths: Collection[str]) -> set[int]:
    """Ids of the files at or below paths, which may be relative, or links."""
    absolute = map(os.path.abspath, paths)
    real = map(os.path.realpath, paths)
    return set(store.ids(sql_below({*absolute, *real})))


def without_other_spaces(
    store: Store, matrix: Matrix, allowed: np.ndarray | None, vector: np.ndarray
) -> np.ndarray | None:
    """(n,) bool: the allowed rows of modalities that have dimensions in common with a query; None = all.

    In a space joined from those of several models (onepeace/hub/towers), a picture and a sound may have none.

    Args:
        allowed: (n,) bool, the rows that may be hits; None = all.
        vector: (E,) unit vector of the query.

    Raises:
        UserError: there are allowed rows, and none of them can be compared with the query.
    """
    if vector.all() or not names_towers(store.meta["model"]):  # there is one space
        return allowed
    codes_of_other_spaces = []
    for code in range(len(store.modalities)):
        rows = np.flatnonzero(matrix.modality == code)
        some_vectors = matrix.vectors_of(rows[:: len(rows) // LOOKED_AT + 1])
        if some_vectors.any() and not some_vectors[:, vector != 0].any():
            codes_of_other_spaces.append(code)
    if not codes_of_other_spaces:
        return allowed
    comparable = ~np.isin(matrix.modality, codes_of_other_spaces)
    if allowed is not None:
        comparable &= allowed
    if not comparable.any() and (allowed is None or allowed.any()):
        modalities = " or ".join(store.modalities[code] for code in codes_of_other_spaces)
        raise UserError(
            f"this query has no space in common with {modalities} in the model {store.meta['model']}; search by words, "
            "which all its parts read"
        )
    return comparable


def register(connection: sqlite3.Connection, roots: Iterable[str] = ()) -> None:
    """Register the functions with a connection.

    Args:
        roots: indexed folders; patterns match paths relative to them, and whole paths.
    """
    folders = [_composed(root.rstrip(os.sep) + os.sep) for root in roots]

    def path_fits(path: bytes, pattern: str) -> bool:
        name = _composed(os.fsdecode(path))
        globs = compile_globs(_composed(pattern))
        forms = [name.lstrip(os.sep)]
        for folder in folders:
            if name.startswith(folder):
                forms.append(name.removeprefix(folder))
        return any(globs.matches(form.replace(os.sep, "/")) for form in forms)

    def add(function: Callable[..., Any], num_arguments: int) -> None:
        connection.create_function(function.__name__, num_arguments, function, deterministic=True)

    add(path_fits, 2)
    add(contains, 2)
    add(is_same, 2)
    add(has_same, 2)
    add(has_containing, 2)
    add(number, 1)
    add(distance, 4)


def contains(text: object, part: str) -> bool | None:
    """Whether a text, or a path in bytes, contains a part, without regard to case."""
    if not isinstance(text, (str, bytes)):  # a number in the metadata contains no text
        return None
    return _folded(part) in _folded(os.fsdecode(text))


def is_same(text: object, other: str) -> bool | None:
    """Whether two texts are the same, without regard to case."""
    if not isinstance(text, str):
        return None
    return _folded(text) == _folded(other)


def has_same(texts: str | None, other: str) -> bool | None:
    """Whether a text is in a list in JSON, without regard to case."""
    if texts is None:
        return None
    return any(is_same(text, other) for text in json.loads(texts))


def has_containing(texts: str | None, part: str) -> bool | None:
    """Whether a text of a list in JSON contains a part, without regard to case."""
    if texts is None:
        return None
    return any(contains(text, part) for text in json.loads(texts))


def number(value: Any) -> float | None:
    """A number, or the number that a text is, as in a cell of a .csv file."""
    with suppress(ValueError, TypeError):
        return value if isinstance(value, int) else float(value)
    return None


def distance(
    latitude: float | None,
    longitude: float | None,
    latitude2: float,
    longitude2: float,
) -> float | None:
    """Metres between two positions in degrees, on a sphere (haversine formula)."""
    if latitude is None or longitude is None:
        return None
    phi = math.radians(latitude)
    phi2 = math.radians(latitude2)
    north = math.sin((phi2 - phi) / 2)
    east = math.sin(math.radians(longitude2 - longitude) / 2)
    square = north**2 + math.cos(phi) * math.cos(phi2) * east**2
    return 2 * EARTH_RADIUS * math.asin(min(1.0, math.sqrt(square)))


def _composed(text: str) -> str:
    """Compose letters with their accents into single characters; macOS decomposes them in file names."""
    return unicodedata.normalize("NFC", text)


def _folded(text: str) -> str:
    return _composed(text).casefold()
