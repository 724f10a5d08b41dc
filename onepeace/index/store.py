"""The items of an index in SQLite: the source of truth. README.md in this folder has the crash model."""

import json
import os
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from onepeace.errors import UserError
from onepeace.files.atomic import sync, write_atomic
from onepeace.index.calibration import MODALITIES
from onepeace.index.vectors import Block, VectorFile

DATABASE, BACKUP = "index.sqlite", "index.backup.sqlite"
FORMAT = 1
"""Version of what is on the disk; an index of another one is refused by name."""

SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE roots (path BLOB PRIMARY KEY, options TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE files (
    id INTEGER PRIMARY KEY, path BLOB NOT NULL UNIQUE, modality TEXT NOT NULL, size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL, hash BLOB, date REAL, width INTEGER, height INTEGER, duration REAL, caption TEXT,
    metadata TEXT, problem TEXT, note TEXT, crc INTEGER NOT NULL
);
CREATE INDEX files_hash ON files (hash);
CREATE TABLE vectors (
    row INTEGER PRIMARY KEY, file INTEGER NOT NULL REFERENCES files ON DELETE CASCADE, modality INTEGER NOT NULL,
    "start" REAL, "end" REAL
);
CREATE INDEX vectors_file ON vectors (file);
CREATE TABLE blocks (first INTEGER PRIMARY KEY, count INTEGER NOT NULL, crc INTEGER NOT NULL);
"""
COLUMNS = (
    "path", "modality", "size", "mtime_ns", "hash", "date", "width", "height", "duration", "caption", "metadata",
    "problem", "note",
)  # fmt: skip


@dataclass(frozen=True)
class Item:
    """A file of an index, as it was when it was embedded."""

    path: str
    """Absolute; of a sample of a shard "SHARD::KEY", of a table's row possibly an address. Bytes of a name that are not
    UTF-8 are surrogates, as everywhere in Python."""
    modality: str
    """image, audio, text or video."""
    size: int = 0
    """Bytes."""
    mtime_ns: int = 0
    hash: bytes | None = None
    """blake2b of the content, 16 bytes."""
    date: float | None = None
    """Seconds since 1970: when it was taken, by its own metadata, else when it was changed."""
    width: int | None = None
    height: int | None = None
    duration: float | None = None
    """Seconds."""
    caption: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    """Further columns of a table, or fields of a sample."""
    problem: str | None = None
    """Why it could not be embedded."""
    note: str | None = None
    """What is odd about it, though it was embedded."""
    id: int | None = None
    """Number in its index."""

    def to_row(self) -> tuple[Any, ...]:
        """In the order of COLUMNS."""
        values = {name: getattr(self, name) for name in COLUMNS}
        metadata = json.dumps(self.metadata, ensure_ascii=False, sort_keys=True) if self.metadata else None
        return tuple({**values, "path": os.fsencode(self.path), "metadata": metadata}.values())

    @classmethod
    def from_row(cls, id_: int, row: Sequence[Any]) -> "Item":
        values = dict(zip(COLUMNS, row, strict=True))
        metadata = json.loads(values["metadata"]) if values["metadata"] else {}
        return cls(**{**values, "path": os.fsdecode(values["path"]), "metadata": metadata}, id=id_)


@dataclass(frozen=True)
class Span:
    """What a vector stands for: all of a file, or the seconds from start to end of it."""

    modality: str
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True)
class Rows:
    """The vectors of an index and what they belong to; n of them, of files that are there."""

    vectors: np.ndarray
    """(rows in the file, E) float32, mapped; `row` selects."""
    row: np.ndarray
    """(n,) int64, rising."""
    file: np.ndarray
    """(n,) int64: the id of the file."""
    modality: np.ndarray
    """(n,) int8: place in MODALITIES."""
    start: np.ndarray
    """(n,) float64 seconds; NaN for the whole file."""
    end: np.ndarray


class Store:
    """An index folder, open for reading, or for writing inside `transaction`.

    Args:
        folder: of the index.
        write: changes are meant; the caller holds the lock of writers.

    Raises:
        UserError: no index there, a damaged one, or one of another format.
    """

    def __init__(self, folder: Path, write: bool = False) -> None:
        self.folder = folder
        path = folder / DATABASE
        if not path.is_file():
            raise UserError(f"{folder}: no index there; make one with: onepeace index build FILES --index {folder}")
        self.connection = _connect(path, write)
        try:
            self.meta: dict[str, str] = dict(self.connection.execute("SELECT key, value FROM meta"))
        except sqlite3.DatabaseError as error:
            self.connection.close()
            raise damaged(folder, error) from error
        version = self.meta.get("format_version")
        if version != str(FORMAT):
            self.connection.close()
            raise UserError(
                f"{folder}: an index of format {version}; this version reads format {FORMAT}. Build it anew, or use the "
                f"version of onepeace that made it ({self.meta.get('made_by', 'unknown')})"
            )
        self.embed_dim = int(self.meta["embed_dim"])
        self.vector_file = VectorFile(folder / self.meta["vectors"], self.embed_dim)

    @classmethod
    def create(cls, folder: Path, embed_dim: int, about: dict[str, str]) -> "Store":
        """A new, empty index; ``about`` goes into its meta table."""
        folder.mkdir(parents=True, exist_ok=True)
        name = "vectors-000001.f32"
        VectorFile(folder / name, embed_dim).create()
        made = {"format_version": str(FORMAT), "embed_dim": str(embed_dim), "vectors": name, "generation": "0"}
        made |= {"created": datetime.now(timezone.utc).isoformat(timespec="seconds"), **about}
        with write_atomic(folder / DATABASE) as temporary, closing(sqlite3.connect(temporary)) as connection:
            connection.executescript(SCHEMA)
            connection.executemany("INSERT INTO meta VALUES (?, ?)", made.items())
            connection.commit()
        return cls(folder, write=True)

    def close(self) -> None:
        self.connection.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Everything in the block is kept, or nothing of it; on the disk when the block ends.

        Raises:
            UserError: the disk is full or not writable.
        """
        try:
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield self.connection
            except BaseException:
                self.connection.rollback()
                raise
            generation = str(int(self.meta["generation"]) + 1)
            self.connection.execute("UPDATE meta SET value = ? WHERE key = 'generation'", (generation,))
            self.connection.commit()
            self.meta["generation"] = generation
        except sqlite3.Error as error:
            if self.connection.in_transaction:
                self.connection.rollback()
            raise UserError(f"{self.folder}: cannot be written ({error})") from error

    def next_row(self) -> int:
        """The row where the next vectors go."""
        (row,) = self.connection.execute("SELECT max(first + count) FROM blocks").fetchone()
        return row or 0

    def add(self, items: Sequence[tuple[Item, Sequence[Span]]], vectors: np.ndarray) -> list[int]:
        """Keep items with their vectors, in the place of older ones of the same path; gives their ids.

        Args:
            items: each with what its vectors stand for; one with a problem has none.
            vectors: (n, E) unit rows, in the order of the spans.
        """
        first = self.next_row()
        block = self.vector_file.append(vectors, first) if len(vectors) else None
        ids = []
        with self.transaction() as connection:
            if block is not None:
                connection.execute("INSERT INTO blocks VALUES (?, ?, ?)", block)
            row = first
            for item, spans in items:
                values = item.to_row()
                connection.execute("DELETE FROM files WHERE path = ?", (values[0],))
                names = ", ".join((*COLUMNS, "crc"))
                marks = ", ".join("?" * (len(COLUMNS) + 1))
                cursor = connection.execute(
                    f"INSERT INTO files ({names}) VALUES ({marks})",  # noqa: S608 (fixed names)
                    (*values, checksum(values)),
                )
                ids.append(cursor.lastrowid or 0)
                for span in spans:
                    place = (row, ids[-1], MODALITIES.index(span.modality), span.start, span.end)
                    connection.execute("INSERT INTO vectors VALUES (?, ?, ?, ?, ?)", place)
                    row += 1
        return ids

    def change(self, changed: Iterable[Item]) -> None:
        """Write new fields of files that are there, by their ids; their vectors stay."""
        names = ", ".join(f"{name} = ?" for name in (*COLUMNS, "crc"))
        with self.transaction() as connection:
            for item in changed:
                values = item.to_row()
                # The old row of a path that another file has moved to.
                connection.execute("DELETE FROM files WHERE path = ? AND id != ?", (values[0], item.id))
                sql = f"UPDATE files SET {names} WHERE id = ?"  # noqa: S608 (fixed names)
                connection.execute(sql, (*values, checksum(values), item.id))

    def remove(self, ids: Iterable[int]) -> None:
        """Forget files and their vectors; the rows in the vector file stay until `compact`."""
        with self.transaction() as connection:
            connection.executemany("DELETE FROM files WHERE id = ?", ((id_,) for id_ in ids))

    def items(self, where: str = "1", parameters: Sequence[Any] = ()) -> Iterator[Item]:
        """The files that an SQL condition with "?" for parameters selects, by id."""
        sql = f"SELECT id, {', '.join(COLUMNS)} FROM files WHERE {where} ORDER BY id"  # noqa: S608 (from our own code)
        for id_, *row in self.connection.execute(sql, parameters):
            yield Item.from_row(id_, row)

    def ids(self, where: str, parameters: Sequence[Any] = ()) -> np.ndarray:
        """(n,) int64 ids of the files that a condition selects, rising."""
        sql = f"SELECT id FROM files WHERE {where} ORDER BY id"  # noqa: S608 (from our own code)
        return np.fromiter((id_ for (id_,) in self.connection.execute(sql, parameters)), np.int64)

    def spans(self, id_: int) -> list[tuple[int, Span]]:
        """(row, what it stands for) of a file's vectors."""
        found = self.connection.execute(
            'SELECT row, modality, "start", "end" FROM vectors WHERE file = ? ORDER BY row', (id_,)
        )
        return [(row, Span(MODALITIES[code], start, end)) for row, code, start, end in found]

    def rows(self) -> Rows:
        """All vectors that count."""
        sql = 'SELECT row, file, modality, "start", "end" FROM vectors ORDER BY row'
        found = self.connection.execute(sql).fetchall()
        kinds = (np.int64, np.int64, np.int8, np.float64, np.float64)
        columns = list(zip(*found, strict=True)) or [()] * len(kinds)
        arrays = [np.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
        count = int(arrays[0][-1]) + 1 if found else 0
        return Rows(self.vector_file.read(count), *arrays)

    def blocks(self) -> list[Block]:
        return [Block(*row) for row in self.connection.execute("SELECT first, count, crc FROM blocks ORDER BY first")]

    def backup(self) -> None:
        """A copy of the database beside it, for a repair when the database itself is damaged."""
        with write_atomic(self.folder / BACKUP) as temporary, closing(sqlite3.connect(temporary)) as copy:
            self.connection.backup(copy)

    def compact(self) -> int:
        """Leave the rows of forgotten files out of the vector file; gives how many there were."""
        rows = self.rows()
        dropped = self.next_row() - len(rows.row)
        if not dropped:
            return 0
        old = self.vector_file
        number = int(old.path.stem.rpartition("-")[2]) + 1
        new = VectorFile(self.folder / f"vectors-{number:06d}.f32", self.embed_dim)
        new.create()
        blocks = []
        for first in range(0, len(rows.row), COPIED):
            blocks.append(new.append(rows.vectors[rows.row[first : first + COPIED]], first))
        with self.transaction() as connection:
            moved = [(i, int(row)) for i, row in enumerate(rows.row)]  # rising: no row is taken before it is free
            connection.executemany("UPDATE vectors SET row = ? WHERE row = ?", moved)
            connection.execute("DELETE FROM blocks")
            connection.executemany("INSERT INTO blocks VALUES (?, ?, ?)", blocks)
            connection.execute("UPDATE meta SET value = ? WHERE key = 'vectors'", (new.path.name,))
        self.meta["vectors"], self.vector_file = new.path.name, new
        old.path.unlink(missing_ok=True)
        sync(self.folder)
        return dropped


COPIED = 1 << 14
"""Rows that `compact` copies at once."""


def checksum(row: Sequence[Any]) -> int:
    """Of a file's row without its id: SQLite has no checksums of its own."""
    return zlib.crc32(repr(tuple(row)).encode("utf-8", "backslashreplace"))


def damaged(folder: Path, error: object) -> UserError:
    return UserError(f"{folder}: the index is damaged ({error}); run onepeace index repair {folder}")


def _connect(path: Path, write: bool) -> sqlite3.Connection:
    """In WAL mode: readers see the last state that is complete, while one process writes."""
    place = path.absolute().as_uri()
    try:
        if write:
            connection = sqlite3.connect(f"{place}?mode=rw", uri=True, isolation_level=None, timeout=60)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
        else:
            # A reader takes part in the locks of a writer through the -shm file; on a read-only disk nobody writes.
            only = "mode=ro" if os.access(path.parent, os.W_OK) else "mode=ro&immutable=1"
            connection = sqlite3.connect(f"{place}?{only}", uri=True, isolation_level=None, check_same_thread=False)
            connection.execute("PRAGMA query_only = ON")
        return connection
    except sqlite3.DatabaseError as error:
        raise damaged(path.parent, error) from error
