"""The files of an index and their vectors in one SQLite database: the source of truth.

A batch of files and vectors is one transaction (WAL, synchronous=FULL), so SQLite is the crash model. SQLite has no
checksums of its own pages: a vector's row carries a CRC-32 over its file, times and numbers, a file's row one over its
fields and the checksums of its vectors, the table `meta` one over itself. So each row says whether it is what was
written, and `check` (verify.py) can tell which files are not.
"""

import json
import os
import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from onepeace.errors import UserError
from onepeace.files.atomic import make_folder, sync
from onepeace.index.database import Damaged, failing, reader, write_database, writer

DATABASE = "index.sqlite"
FORMAT = 2
"""Version of what is on the disk; an index of another one is refused by name."""
MODALITIES = ("image", "audio", "text")
VECTOR = np.dtype("<f4")
PAGE = 16384
"""Bytes of a page: 15 vectors of 256 numbers fit in one."""

SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE roots (path BLOB PRIMARY KEY, options TEXT NOT NULL, crc INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE blobs (name TEXT PRIMARY KEY, content BLOB NOT NULL, crc INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE files (
    id INTEGER PRIMARY KEY AUTOINCREMENT, path BLOB NOT NULL UNIQUE, modality TEXT NOT NULL, size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL, hash BLOB, date REAL, width INTEGER, height INTEGER, duration REAL, caption TEXT,
    metadata TEXT, problem TEXT, note TEXT, crc INTEGER NOT NULL
);
CREATE INDEX files_hash ON files (hash);
CREATE TABLE vectors (
    id INTEGER PRIMARY KEY AUTOINCREMENT, file INTEGER NOT NULL REFERENCES files ON DELETE CASCADE,
    modality INTEGER NOT NULL, "start" REAL, "end" REAL, vector BLOB NOT NULL, crc INTEGER NOT NULL
);
CREATE INDEX vectors_file ON vectors (file);
"""
COLUMNS = (
    "path", "modality", "size", "mtime_ns", "hash", "date", "width", "height", "duration", "caption", "metadata",
    "problem", "note",
)  # fmt: skip
VECTOR_COLUMNS = ("file", "modality", '"start"', '"end"', "vector", "crc")


@dataclass(frozen=True)
class Item:
    """A file of an index, as it was when it was embedded."""

    path: str
    """Absolute; "SHARD::KEY" for a sample of a shard, possibly an address for a table's row. Bytes of a name that are
    not UTF-8 are surrogates, as everywhere in Python."""
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
        """Values in the order of COLUMNS, each as SQLite gives it back."""
        metadata = json.dumps(self.metadata, sort_keys=True) if self.metadata else None
        numbers = (self.width, self.height)
        return (
            os.fsencode(self.path), self.modality, int(self.size), int(self.mtime_ns), self.hash, _real(self.date),
            *(None if number is None else int(number) for number in numbers), _real(self.duration),
            _text(self.caption), metadata, _text(self.problem), _text(self.note),
        )  # fmt: skip

    @classmethod
    def from_row(cls, id_: int, row: Sequence[Any]) -> "Item":
        """Item of values in the order of COLUMNS."""
        values = dict(zip(COLUMNS, row, strict=True))
        metadata = json.loads(values["metadata"]) if values["metadata"] else {}
        return cls(**{**values, "path": os.fsdecode(values["path"]), "metadata": metadata}, id=id_)

    def to_dict(self) -> dict[str, Any]:
        """Fields as JSON takes them, `kind` for the modality of the file; without hash, id and problem."""
        known = asdict(self)
        path = self.path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        names = ("caption", "date", "width", "height", "duration", "size", "metadata")
        return {"path": path, "kind": self.modality, **{name: known[name] for name in names}}


@dataclass(frozen=True)
class Span:
    """Part of a file that a vector stands for: all of it, or the seconds from start to end."""

    modality: str
    start: float | None = None
    end: float | None = None


class Store:
    """An index folder, open for reading, or for writing inside `transaction`.

    A reader sees the state of the moment in which it was opened, whatever is written meanwhile.

    Args:
        folder: of the index.
        write: open it for writing; the caller holds the lock of writers.

    Raises:
        UserError: no index there, one of another format, or one that cannot be read; Damaged.
    """

    def __init__(self, folder: Path, write: bool = False) -> None:
        self.folder = folder
        path = folder / DATABASE
        if not path.is_file():
            raise UserError(f"{folder}: no index there; make one with: onepeace index build {folder} FILES")
        with failing(folder, "opened"):
            self.connection = writer(path) if write else reader(path)
        try:
            with failing(folder, "read"):
                if not write:
                    self.connection.execute("BEGIN")  # all that is read from here on is of one state
                self.meta = self._checked_meta()
        except BaseException:
            self.close()
            raise
        self.embed_dim = int(self.meta["embed_dim"])
        more = [key for key in self.meta.get("modalities", "").split() if key not in MODALITIES]
        self.kinds = (*MODALITIES, *more)
        """Modalities by their codes; those of the model that are not built in come last."""

    @classmethod
    def create(cls, folder: Path, embed_dim: int, about: dict[str, str]) -> "Store":
        """New, empty index, open for writing.

        Args:
            about: goes into its meta table: the model and how files are cut into vectors.

        Raises:
            UserError: the disk is full or not writable.
        """
        meta = {
            "format_version": str(FORMAT),
            "embed_dim": str(embed_dim),
            "generation": "0",
            "removed": "0",
            "store": "local",
        }
        meta |= {"created": datetime.now(timezone.utc).isoformat(timespec="seconds"), **about}
        with failing(folder, "written"):
            make_folder(folder)
            sync(folder)
            with write_database(folder / DATABASE) as connection:
                create_tables(connection, meta)
        return cls(folder, write=True)

    def close(self) -> None:
        self.connection.close()

    @property
    def generation(self) -> str:
        """Number of the state that is read; never used twice."""
        return self.meta["generation"]

    def is_current(self) -> bool:
        """Whether nothing was written since this reader was opened."""
        with failing(self.folder, "read"), closing(reader(self.folder / DATABASE)) as connection:
            return read_meta(connection)["generation"] == self.generation

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Block of which everything is kept, on the disk when it ends, or nothing.

        Raises:
            UserError: the disk is full or not writable; Damaged.
        """
        with failing(self.folder, "written"):
            self.connection.execute("BEGIN IMMEDIATE")
            before = self.connection.total_changes
            meta = dict(self.meta)
            try:
                yield self.connection
                if self.connection.total_changes != before:
                    self._seal()
                self.connection.commit()
            except BaseException:
                self.meta = meta
                self.connection.rollback()
                raise

    def add(self, items: Sequence[tuple[Item, Sequence[Span]]], vectors: np.ndarray) -> list[int]:
        """Keep items with their vectors in the place of older ones of the same path; call it in a transaction.

        Args:
            items: each with what its vectors stand for; one with a problem has none.
            vectors: (n, E) finite unit rows, in the order of the spans.

        Returns:
            The ids of the items.
        """
        spans = [span for _, own in items for span in own]
        if vectors.shape != (len(spans), self.embed_dim) or not np.isfinite(vectors).all():
            raise ValueError(f"vectors of shape {vectors.shape} for {len(spans)} x {self.embed_dim}, or not finite")
        content = [row.tobytes() for row in np.ascontiguousarray(vectors, VECTOR)]
        marks = ", ".join("?" * (len(COLUMNS) + 1))
        insert = f"INSERT INTO files ({', '.join(COLUMNS)}, crc) VALUES ({marks})"  # noqa: S608 (fixed names)
        ids, done = [], 0
        for item, own in items:
            values = item.to_row()
            self._delete("path = ?", (values[0],))
            id_ = self.connection.execute(insert, (*values, 0)).lastrowid or 0
            rows = []
            for span, blob in zip(own, content[done : done + len(own)], strict=True):
                place = (id_, self.kinds.index(span.modality), _real(span.start), _real(span.end))
                rows.append((*place, blob, checksum_of_vector(place, blob)))
            names = ", ".join(VECTOR_COLUMNS)
            self.connection.executemany(f"INSERT INTO vectors ({names}) VALUES (?, ?, ?, ?, ?, ?)", rows)  # noqa: S608
            crc = checksum([id_, *values, *(row[-1] for row in rows)])
            self.connection.execute("UPDATE files SET crc = ? WHERE id = ?", (crc, id_))
            ids.append(id_)
            done += len(own)
        return ids

    def change(self, changed: Iterable[Item]) -> None:
        """Write new fields of files that are there, by their ids; their vectors stay. Call it in a transaction.

        Raises:
            Damaged: what is there is not what was written.
        """
        names = ", ".join(f"{name} = ?" for name in (*COLUMNS, "crc"))
        for item in changed:
            values, crcs = item.to_row(), self._checksums_of_vectors(item.id or 0)
            self._delete("path = ? AND id != ?", (values[0], item.id))  # the path of another file that has moved away
            sql = f"UPDATE files SET {names} WHERE id = ?"  # noqa: S608 (fixed names)
            self.connection.execute(sql, (*values, checksum([item.id, *values, *crcs]), item.id))

    def remove(self, ids: Iterable[int]) -> None:
        """Forget files and their vectors; call it in a transaction."""
        for id_ in ids:
            self._delete("id = ?", (id_,))

    def count(self, where: str = "1") -> int:
        """Number of files that an SQL condition selects."""
        return self.select(f"SELECT count(*) FROM files WHERE {where}")[0][0]  # noqa: S608 (from our own code)

    def items(self, where: str = "1", parameters: Sequence[Any] = ()) -> Iterator[Item]:
        """Files that an SQL condition with "?" for parameters selects, by id."""
        sql = f"SELECT id, {', '.join(COLUMNS)} FROM files WHERE {where} ORDER BY id"  # noqa: S608 (from our own code)
        with failing(self.folder, "read"):
            for id_, *row in self.connection.execute(sql, parameters):
                try:
                    item = Item.from_row(id_, row)
                except (ValueError, TypeError) as error:
                    raise Damaged(self.folder, error) from error
                yield item

    def ids(self, where: str, parameters: Sequence[Any] = ()) -> np.ndarray:
        """(n,) int64 ids of the files that a condition selects, rising."""
        sql = f"SELECT id FROM files WHERE {where} ORDER BY id"  # noqa: S608 (from our own code)
        return np.array([id_ for (id_,) in self.select(sql, parameters)], np.int64)

    def intact(self, ids: Sequence[int]) -> dict[int, tuple[Item, list[Span], np.ndarray]]:
        """Files, the spans and (n, E) float32 rows of their vectors, all as they were written.

        Args:
            ids: of the files; those that are not there are left out.

        Raises:
            Damaged: a row is not what was written.
        """
        wanted, chosen = (json.dumps([*ids]),), "(SELECT value FROM json_each(?))"  # as many as there may be
        rows = self.select(f"SELECT id, crc, {', '.join(COLUMNS)} FROM files WHERE id IN {chosen}", wanted)  # noqa: S608
        sql = f"SELECT {', '.join(VECTOR_COLUMNS)} FROM vectors WHERE file IN {chosen} ORDER BY id"  # noqa: S608
        own: dict[int, list[tuple[Any, ...]]] = {id_: [] for id_ in ids}
        for vector in self.select(sql, wanted):
            own[vector[0]].append(vector)
        found = {}
        for id_, crc, *values in rows:
            vectors = own[id_]
            if crc != checksum([id_, *values, *(vector[-1] for vector in vectors)]):
                raise Damaged(self.folder, f"the row of file {id_}")
            if any(checksum_of_vector(vector[:4], vector[4]) != vector[5] for vector in vectors):
                raise Damaged(self.folder, f"a vector of file {id_}")
            spans = [Span(self.kinds[code], start, end) for _, code, start, end, _, _ in vectors]
            blob = b"".join(vector[4] for vector in vectors)
            found[id_] = Item.from_row(id_, values), spans, np.frombuffer(blob, VECTOR).reshape(-1, self.embed_dim)
        return found

    def roots(self) -> dict[str, dict[str, Any]]:
        """Paths that the index was made of, with the options of each.

        Raises:
            Damaged: a row is not what was written.
        """
        found = {}
        for path, options, crc in self.select("SELECT path, options, crc FROM roots ORDER BY path"):
            if checksum([path, options]) != crc:
                raise Damaged(self.folder, "its table roots")
            found[os.fsdecode(path)] = json.loads(options)
        return found

    def keep_roots(self, roots: dict[str, dict[str, Any] | None]) -> None:
        """Write the options of roots, or forget those of None; call it in a transaction."""
        for name, options in roots.items():
            path, text = os.fsencode(name), json.dumps(options)
            if options is None:
                self.connection.execute("DELETE FROM roots WHERE path = ?", (path,))
            else:
                row = (path, text, checksum([path, text]))
                self.connection.execute("INSERT OR REPLACE INTO roots VALUES (?, ?, ?)", row)

    def blob(self, name: str) -> bytes | None:
        """Something that is kept beside the files, such as the calibration; None if it is not there.

        Raises:
            Damaged: it is not what was written.
        """
        for content, crc in self.select("SELECT content, crc FROM blobs WHERE name = ?", (name,)):
            if zlib.crc32(content) != crc:
                raise Damaged(self.folder, f"what it keeps as {name}")
            return content
        return None

    def keep_blob(self, name: str, content: bytes) -> None:
        """Keep something beside the files; call it in a transaction."""
        self.connection.execute("INSERT OR REPLACE INTO blobs VALUES (?, ?, ?)", (name, content, zlib.crc32(content)))

    def set_meta(self, **values: str) -> None:
        """Write rows of the table `meta`; call it in a transaction."""
        self.connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values.items())
        self.meta |= values

    def select(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Rows of a query.

        Raises:
            UserError: the database cannot be read; Damaged.
        """
        with failing(self.folder, "read"):
            return self.connection.execute(sql, parameters).fetchall()

    def _delete(self, where: str, parameters: Sequence[Any]) -> None:
        sql = f"SELECT count(*) FROM vectors WHERE file IN (SELECT id FROM files WHERE {where})"  # noqa: S608
        (removed,) = self.connection.execute(sql, parameters).fetchone()
        if self.connection.execute(f"DELETE FROM files WHERE {where}", parameters).rowcount and removed:  # noqa: S608
            self.set_meta(removed=str(int(self.meta["removed"]) + removed))

    def _seal(self) -> None:
        """Give the state a new number, and the table `meta` its checksum."""
        self.meta["generation"] = str(max(int(self.generation) + 1, time.time_ns()))
        self.meta["crc"] = checksum_of_meta(self.meta)
        self.connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", self.meta.items())

    def _checked_meta(self) -> dict[str, str]:
        meta = read_meta(self.connection)
        if (version := meta.get("format_version", "")) == "1":
            raise UserError(
                f"{self.folder}: made by an earlier version ({meta.get('made_by', 'unknown')}): build it again"
            )
        if meta.get("crc") != checksum_of_meta(meta):
            raise Damaged(self.folder, "its table meta is not what was written")
        if version != str(FORMAT):
            raise UserError(f"{self.folder}: an index of format {version}, and this version reads {FORMAT}; made by "
                            f"{meta.get('made_by')}")  # fmt: skip
        return meta

    def _checksums_of_vectors(self, id_: int) -> list[int]:
        """Checksums of a file's vectors, if its row is what was written."""
        crcs = [crc for (crc,) in self.select("SELECT crc FROM vectors WHERE file = ? ORDER BY id", (id_,))]
        for crc, *row in self.select(f"SELECT crc, {', '.join(COLUMNS)} FROM files WHERE id = ?", (id_,)):  # noqa: S608
            if crc != checksum([id_, *row, *crcs]):
                raise Damaged(self.folder, f"the row of file {id_}")
        return crcs


def create_tables(connection: sqlite3.Connection, meta: dict[str, str]) -> None:
    """Tables of an empty index in a database that is just being made."""
    connection.execute(f"PRAGMA page_size = {PAGE}")
    connection.executescript(f"BEGIN; {SCHEMA}")
    meta = {**meta, "crc": checksum_of_meta(meta)}
    connection.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
    connection.commit()
    connection.execute("PRAGMA journal_mode = WAL")


def read_meta(connection: sqlite3.Connection) -> dict[str, str]:
    """What is known of the index as a whole."""
    return dict(connection.execute("SELECT key, value FROM meta"))


def checksum(values: Sequence[Any]) -> int:
    """CRC-32 of plain values (bytes, texts, numbers, None), the same under every version of Python.

    Not of their repr: which characters that escapes depends on the Unicode tables of the interpreter.
    """
    return zlib.crc32(json.dumps(values, default=bytes.hex).encode())


def checksum_of_vector(place: Sequence[Any], blob: bytes) -> int:
    """CRC-32 of a vector: file, modality, start, end, and the numbers."""
    return zlib.crc32(blob, checksum(place))


def checksum_of_meta(meta: dict[str, str]) -> str:
    return str(checksum(sorted(item for item in meta.items() if item[0] != "crc")))


def _real(number: float | None) -> float | None:
    """As SQLite gives it back; NaN is NULL there."""
    return None if number is None or number != number else float(number)


def _text(value: str | None) -> str | None:
    """As SQLite can keep it: halves of a pair of UTF-16 become escapes."""
    return None if value is None else value.encode("utf-8", "backslashreplace").decode()
