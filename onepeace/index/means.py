"""One vector for each file of an index: the mean of those of its windows, frames or sound."""

import numpy as np

from onepeace.errors import UserError
from onepeace.index.index import Index
from onepeace.index.store import Item

SHRUNK = 10
"""So many files of all kinds are counted to the mean of one kind, as the mean of two files says little about it."""


def file_means(index: Index) -> tuple[list[Item], np.ndarray]:
    """The files, by their numbers, and their vectors, (n, E) float32 of unit length.

    Raises:
        UserError: there are no files in the index.
    """
    rows = index.rows
    items = list(index.items())
    if not items:
        raise UserError(f"{index.store.folder}: no files in it; add some with: onepeace index add")
    order = np.argsort(rows.file, kind="stable")
    files, first = np.unique(rows.file[order], return_index=True)
    sums = np.add.reduceat(rows.vectors[rows.row[order]], first, axis=0)
    place = np.searchsorted(files, np.array([item.id for item in items]))
    return items, unit(sums[place])


def without_kind(vectors: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Unit vectors (n, E) without what is the same in all files of one kind, so that a picture of a dog lies near its
    barking: the means of pictures, sounds and texts are apart.

    Args:
        kinds: (n,) of any type.
    """
    everything = vectors.mean(axis=0)
    centred = np.array(vectors)
    for kind in np.unique(kinds):
        own = kinds == kind
        centred[own] -= (vectors[own].sum(axis=0) + SHRUNK * everything) / (own.sum() + SHRUNK)
    return unit(centred)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1; a row of zeros stays one."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
