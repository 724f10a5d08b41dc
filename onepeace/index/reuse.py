"""Vectors of files that other indexes have, so that they need not be computed again."""

import os
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
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
    """Other indexes whose vectors are made as those of an index; opened when they are first asked, then closed by
    `close`.

    Args:
        folders: of indexes; those of other models, and damaged ones, are left out.
    """

    def __init__(self, store: Store, folders: Sequence[Path]) -> None:
        self._store = store
        self._folders = [folder for folder in folders if folder != store.folder]

    def same_file(self, item: Item) -> Known | None:
        """A file with this path, size, time and kind."""
        condition = "path = ? AND size = ? AND mtime_ns = ? AND modality = ?"
        return self._find(condition, (os.fsencode(item.path), item.size, item.mtime_ns, item.modality))

    def same_content(self, item: Item) -> Known | None:
        """A file with this content and kind."""
        return self._find("hash = ? AND modality = ?", (item.hash, item.modality))

    def close(self) -> None:
        for store in self.__dict__.get("_stores", ()):
            store.close()

    def _find(self, condition: str, parameters: Sequence[Any]) -> Known | None:
        for store in self._stores:
            for item in store.items(f"problem IS NULL AND {condition}", parameters):
                spans, vectors = store.vectors_of(item.id)
                words = store.words([item.id])
                if spans and words:  # else it was removed just now
                    return Known(item, spans, vectors, words[item.id].text)
        return None

    @cached_property
    def _stores(self) -> list[Store]:
        stores = []
        for folder in self._folders:
            with suppress(UserError):
                other = Store(folder)
                if all(other.meta[key] == self._store.meta[key] for key in SAME_VECTORS):
                    stores.append(other)
                else:
                    other.close()
        return stores
