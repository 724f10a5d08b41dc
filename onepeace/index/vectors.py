"""The vectors of an index: one append-only file of float32 rows, and a checksum of every block that was appended.

Which rows count is said in SQLite (store.py): a row is first on the disk, then in the transaction. What a crash leaves
behind the last row that counts is written over by the next append.
"""

import os
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from onepeace.errors import UserError
from onepeace.files.atomic import sync

ROW_TYPE = np.dtype("<f4")


class Block(NamedTuple):
    """Rows that were appended together."""

    first: int
    count: int
    crc: int
    """zlib.crc32 of their bytes."""


class VectorFile:
    """Rows of ``embed_dim`` numbers in a file.

    Args:
        path: of the file; `create` makes it.
        embed_dim: E.
    """

    def __init__(self, path: Path, embed_dim: int) -> None:
        self.path, self.embed_dim = path, embed_dim
        self._row_bytes = embed_dim * ROW_TYPE.itemsize

    def create(self) -> None:
        """An empty file, its name safe on the disk."""
        self.path.open("wb").close()
        sync(self.path)
        sync(self.path.parent)

    def append(self, vectors: np.ndarray, first: int) -> Block:
        """Write (n, E) rows from row ``first`` on; they are on the disk when it returns.

        Raises:
            UserError: the disk is full, or the file is not there.
        """
        content = np.ascontiguousarray(vectors, ROW_TYPE).tobytes()
        try:
            with open(self.path, "r+b") as file:
                file.seek(first * self._row_bytes)
                file.write(content)
                file.truncate()
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror or error})") from error
        return Block(first, len(vectors), zlib.crc32(content))

    def read(self, count: int) -> np.ndarray:
        """(count, E) float32, the file mapped into memory.

        Raises:
            UserError: the file is missing, or shorter than that.
        """
        if not count:
            return np.empty((0, self.embed_dim), ROW_TYPE)
        size = self.path.stat().st_size if self.path.is_file() else 0
        if size < count * self._row_bytes:
            raise UserError(
                f"{self.path}: {size} bytes, but the index has {count} vectors of {self._row_bytes} bytes in it; run "
                f"onepeace index repair {self.path.parent}"
            )
        return np.memmap(self.path, ROW_TYPE, "r", shape=(count, self.embed_dim))

    def is_intact(self, block: Block) -> bool:
        """Whether the rows of a block are what was written."""
        try:
            with open(self.path, "rb") as file:
                file.seek(block.first * self._row_bytes)
                content = file.read(block.count * self._row_bytes)
        except OSError:
            return False
        return len(content) == block.count * self._row_bytes and zlib.crc32(content) == block.crc
