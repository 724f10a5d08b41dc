"""The vectors of an index: one append-only file of float32 rows.

Which rows count, and what they are by their checksums, is said in SQLite (store.py): a row is first on the disk, then
in the transaction. What a crash leaves behind the last row that counts is written over by the next append.
"""

import os
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from onepeace.errors import UserError
from onepeace.files.atomic import sync
from onepeace.index.database import Damaged

ROW_TYPE = np.dtype("<f4")
READ = 1 << 12
"""Rows that are read at once to be checked."""


class VectorFile:
    """Rows of ``embed_dim`` numbers in a file.

    Args:
        path: of the file; `create` makes it.
        embed_dim: E.
    """

    def __init__(self, path: Path, embed_dim: int) -> None:
        self.path, self.embed_dim = path, embed_dim
        self._row_bytes = embed_dim * ROW_TYPE.itemsize
        self._held: BinaryIO | None = None

    def create(self) -> None:
        """An empty file, its name safe on the disk.

        Raises:
            UserError: the disk is full or not writable.
        """
        try:
            self.path.open("wb").close()
            sync(self.path)
            sync(self.path.parent)
        except OSError as error:
            raise self._unwritten(error) from error

    def hold(self) -> bool:
        """Keep it open until `close`, so that it can be read after its name is gone; False if it is gone now."""
        try:
            self._held = open(self.path, "rb")
        except FileNotFoundError:
            return False
        return True

    def close(self) -> None:
        if self._held is not None:
            self._held.close()

    def append(self, vectors: np.ndarray, first: int) -> None:
        """Write (n, E) rows of ROW_TYPE from row ``first`` on; they are on the disk when it returns.

        Raises:
            UserError: the disk is full or not writable; Damaged: rows before ``first`` are missing.
        """
        self._want(first)
        try:
            with open(self.path, "r+b") as file:
                file.seek(first * self._row_bytes)
                file.write(vectors.tobytes())
                file.truncate()
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise self._unwritten(error) from error

    def count(self) -> int:
        """Rows that are wholly there."""
        try:
            size = os.fstat(self._held.fileno()).st_size if self._held else self.path.stat().st_size
        except FileNotFoundError:
            size = 0
        return size // self._row_bytes

    def read(self, count: int) -> np.ndarray:
        """(count, E) float32, the file mapped into memory.

        Raises:
            Damaged: the file is missing, or shorter than that.
        """
        self._want(count)
        if not count:
            return np.empty((0, self.embed_dim), ROW_TYPE)
        return np.memmap(self._held or self.path, ROW_TYPE, "r", shape=(count, self.embed_dim))

    def checksums(self, rows: np.ndarray) -> list[int | None]:
        """CRC-32 of the numbers of each of these rows, None for one that cannot be read. It reads, and maps nothing: a
        disk that fails ends a process that has mapped the file.

        Args:
            rows: (n,) rising.
        """
        found: list[int | None] = [None] * len(rows)
        there = slice(*np.searchsorted(rows, [0, self.count()]))
        groups = rows[there] // READ
        for group in np.unique(groups):
            first, last = np.searchsorted(groups, [group, group + 1]) + there.start
            content = self._read_bytes(int(group) * READ, int(rows[last - 1]) + 1)
            for i in range(first, last):
                start = (int(rows[i]) - int(group) * READ) * self._row_bytes
                if len(content) >= start + self._row_bytes:
                    found[i] = zlib.crc32(content[start : start + self._row_bytes])
        return found

    def _read_bytes(self, first: int, end: int) -> memoryview:
        """Of the rows from ``first`` to ``end``, as far as they can be read."""
        try:
            with open(self._held.fileno() if self._held else self.path, "rb", closefd=self._held is None) as file:
                file.seek(first * self._row_bytes)
                return memoryview(file.read((end - first) * self._row_bytes))
        except OSError:
            return memoryview(b"")

    def _want(self, count: int) -> None:
        if self.count() < count:
            raise Damaged(self.path.parent, f"{self.path.name} has {self.count()} of {count} vectors")

    def _unwritten(self, error: OSError) -> UserError:
        return UserError(f"{self.path}: cannot be written ({error.strerror or error})")
