"""Which rows of the matrix may be hits: filters by kind, by a condition on the files, and by folder."""

import os
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np

from onepeace.index.fields import Condition, kind_of
from onepeace.index.matrix import Matrix
from onepeace.index.part import sql_below
from onepeace.index.store import Store


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
        kinds: kinds of files, by the modalities of their vectors; "video" for all vectors of videos. Empty = all.
        below: paths of files, and of the folders, tables and shards that files lie in; empty = all.
    """
    masks = []
    if store.is_restricted:
        masks.append(rows_of(store, matrix, "1"))
    if where is not None:
        masks.append(rows_of(store, matrix, where.sql, where.params))
    if kinds:
        masks.append(_rows_of_kinds(store, matrix, kinds))
    if below:
        masks.append(rows_of_files(matrix, _ids_below(store, below)))
    return np.logical_and.reduce(masks) if masks else None


def without_files(
    store: Store, matrix: Matrix, allowed: np.ndarray | None, paths: Sequence[bytes]
) -> np.ndarray | None:
    """A mask of rows, (n,) bool or None for all, without the rows of some files."""
    if not paths:
        return allowed
    placeholders = ", ".join("?" for _ in paths)
    remaining = ~rows_of(store, matrix, f"path IN ({placeholders})", paths)
    return remaining if allowed is None else allowed & remaining


def _rows_of_kinds(store: Store, matrix: Matrix, kinds: Collection[str]) -> np.ndarray:
    codes = [code for code, modality in enumerate(store.modalities) if modality in kinds]
    mask = np.isin(matrix.modality, codes)
    if "video" in kinds:
        mask |= rows_of(store, matrix, "modality = 'video'")
    return mask


def _ids_below(store: Store, paths: Collection[str]) -> set[int]:
    """Ids of the files at or below paths, which may be relative, or links."""
    absolute = map(os.path.abspath, paths)
    real = map(os.path.realpath, paths)
    return set(store.ids(sql_below({*absolute, *real})))
