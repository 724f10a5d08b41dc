"""Vectors of files that other indexes have, so that they need not be computed again."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from onepeace.errors import UserError
from onepeace.index.database import Store
from onepeace.index.items import Item, Span

SAME_VECTORS = ("model_hash", "preprocessing", "modalities")
"""Metadata that two indexes must have in common for equal files to have equal vectors in them."""


class Known(NamedTuple):
    """A file with its vectors in another index."""

    item: Item
    spans: Sequence[Span]
    vectors: np.ndarray
    """(len(spans), E) float32."""
    text: str
    """Beginning of a text file, for the words that find it."""


class Elsewhere:
    """Other indexes whose vectors are made as those of an index.

    Args:
        stores: these indexes, open for reading.
    """

    def __init__(self, stores: Sequence[Store] = ()) -> None:
        self._stores = stores

    def same_file(self, item: Item) -> Known | None:
        """A file with this path, size, time and kind."""
        condition = "path = ? AND size = ? AND mtime_ns = ? AND modality = ?"
        return self._find(condition, (os.fsencode(item.path), item.size, item.mtime_ns, item.modality))

    def same_content(self, item: Item) -> Known | None:
        """A file with this content and kind."""
        return self._find("hash = ? AND modality = ?", (item.hash, item.modality))

    def _find(self, condition: str, parameters: Sequence[Any]) -> Known | None:
        for store in self._stores:
            with store.snapshot():
                for item in store.items(f"problem IS NULL AND {condition}", parameters):
                    spans, vectors = store.vectors_of(item.id)
                    return Known(item, spans, vectors, store.words([item.id])[item.id].text)
        return None


@contextmanager
def opened_elsewhere(store: Store, folders: Iterable[Path]) -> Iterator[Elsewhere]:
    """Context of those of some indexes whose vectors are made as those of ``store``; damaged ones are left out."""
    stores = []
    try:
        for folder in folders:
            if folder == store.folder:
                continue
            try:
                other = Store(folder)
            except UserError:
                continue
            stores.append(other)
        yield Elsewhere([other for other in stores if _has_same_vectors(store, other)])
    finally:
        for other in stores:
            other.close()


def _has_same_vectors(store: Store, other: Store) -> bool:
    return all(store.meta[key] == other.meta[key] for key in SAME_VECTORS)
