"""The items of an index in SQLite: the source of truth. README.md in this folder has the crash model."""

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from onepeace.errors import UserError
from onepeace.files.atomic import make_folder, sync
from onepeace.index import checksums
from onepeace.index.calibration import MODALITIES
from onepeace.index.database import Damaged, failing, reader, write_database, writer
from onepeace.index.vectors import ROW_TYPE, VectorFile

DATABASE, BACKUP, VECTORS = "index.sqlite", "index.backup.sqlite", "vectors-{:06d}.f32"
FORMAT = 1
"""Version of what is on the disk; an index of another one is refused by name."""

SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE roots (path BLOB PRIMARY KEY, options TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE files (
    id INTEGER PRIMARY KEY AUTOINCREMENT, path BLOB NOT NULL UNIQUE, modality TEXT NOT NULL, size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL, hash BLOB, date REAL, width INTEGER, height INTEGER, duration REAL, caption TEXT,
    metadata TEXT, problem TEXT, note TEXT, crc INTEGER NOT NULL
);
CREATE INDEX files_hash ON files (hash);
CREATE TABLE vectors (
    row INTEGER PRIMARY KEY, file INTEGER NOT NULL REFERENCES files ON DELETE CASCADE, modality INTEGER NOT NULL,
    "start" REAL, "end" REAL, crc INTEGER NOT NULL
);
CREATE INDEX vectors_file ON vectors (file);
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
        """In the order of COLUMNS, each value as SQLite gives it back."""
        metadata = json.dumps(self.metadata, sort_keys=True) if self.metadata else None
        numbers = (self.width, self.height)
        return (
            os.fsencode(self.path), self.modality, int(self.size), int(self.mtime_ns), self.hash, _real(self.date),
            *(None if number is None else int(number) for number in numbers), _real(self.duration),
            _text(self.caption), metadata, _text(self.problem), _text(self.note),
        )  # fmt: skip

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
    """(n,) int8: place in `Store.kinds`."""
    start: np.ndarray
    """(n,) float64 seconds; NaN for the whole file."""
    end: np.ndarray


class Store:
    """An index folder, open for reading, or for writing inside `transaction`.

    A reader sees the state of the moment in which it was opened, rows and vectors, whatever is written meanwhile; the
    log of the writer (index.sqlite-wal) is not emptied before it is closed.

    Args:
        folder: of the index.
        write: changes are meant; the caller holds the lock of writers.

    Raises:
        UserError: no index there, one of another format, or one that cannot be read; Damaged.
    """

    def __init__(self, folder: Path, write: bool = False) -> None:
        self.folder = folder
        path = folder / DATABASE
        if not path.is_file():
            if (folder / BACKUP).is_file():
                raise Damaged(folder, f"{DATABASE} is missing, its backup is there")
            raise UserError(f"{folder}: no index there; make one with: onepeace index build FILES --index {folder}")
        self._held: VectorFile | None = None
        gone = None
        while (missing := self._open(path, write)) not in (None, gone):
            self.close()  # another process has replaced the state that was read
            gone = missing

    @classmethod
    def create(cls, folder: Path, embed_dim: int, about: dict[str, str]) -> "Store":
        """A new, empty index; ``about`` goes into its meta table.

        Raises:
            UserError: the disk is full or not writable; Damaged: a backup is there, but not its index.
        """
        if (folder / BACKUP).is_file():
            raise Damaged(folder, f"{DATABASE} is missing, its backup is there")
        name = VECTORS.format(1)
        made = {"format_version": str(FORMAT), "embed_dim": str(embed_dim), "vectors": name, "rows": "0"}
        made |= {"created": datetime.now(timezone.utc).isoformat(timespec="seconds"), **about}
        with failing(folder, "written"):
            make_folder(folder)
            sync(folder)  # the lock is there before anything else: a folder with other things in it is left alone
            VectorFile(folder / name, embed_dim).create()
            with write_database(folder / DATABASE) as connection:
                connection.executescript(f"BEGIN; {SCHEMA}")
                connection.executemany("INSERT INTO meta VALUES (?, ?)", made.items())
                checksums.seal(connection)
                connection.commit()
                connection.execute("PRAGMA journal_mode = WAL")
        store = cls(folder, write=True)
        store.backup()  # so that there always is one that knows the model
        return store

    def close(self) -> None:
        self.connection.close()
        if self._held is not None:
            self._held.close()

    @property
    def meta(self) -> dict[str, str]:
        """What is known of the index as a whole."""
        with failing(self.folder, "read"):
            return checksums.read_meta(self.connection)

    def is_current(self) -> bool:
        """Whether nothing was written since this reader was opened."""
        with failing(self.folder, "read"), closing(reader(self.folder / DATABASE)) as connection:
            return checksums.read_meta(connection)["generation"] == self.meta["generation"]

    @property
    def vector_file(self) -> VectorFile:
        return self._held or VectorFile(self.folder / self.meta["vectors"], self.embed_dim)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Everything in the block is kept, or nothing of it; on the disk when the block ends.

        Raises:
            UserError: the disk is full or not writable; Damaged.
        """
        with failing(self.folder, "written"):
            self.connection.execute("BEGIN IMMEDIATE")
            before = self.connection.total_changes
            try:
                yield self.connection
                if self.connection.total_changes != before:
                    checksums.seal(self.connection)
                self.connection.commit()
            except BaseException:
                self.connection.rollback()
                raise

    def next_row(self) -> int:
        """The row where the next vectors go. No row before it is ever written again."""
        return int(self.meta["rows"])

    def add(self, items: Sequence[tuple[Item, Sequence[Span]]], vectors: np.ndarray) -> list[int]:
        """Keep items with their vectors, in the place of older ones of the same path; gives their ids.

        Args:
            items: each with what its vectors stand for; one with a problem has none.
            vectors: (n, E) finite unit rows, in the order of the spans.

        Raises:
            UserError: the disk is full or not writable; Damaged.
        """
        places = [(self.kinds.index(span.modality), _real(span.start), _real(span.end)) for _, s in items for span in s]
        if vectors.shape != (len(places), self.embed_dim) or not np.isfinite(vectors).all():
            raise ValueError(f"vectors of shape {vectors.shape} for {len(places)} x {self.embed_dim}, or not finite")
        vectors = np.ascontiguousarray(vectors, ROW_TYPE)
        crcs = checksums.of_vectors(places, vectors)
        row = self.next_row()
        if len(vectors):
            self.vector_file.append(vectors, row)
        ids = []
        names = ", ".join((*COLUMNS, "crc"))
        marks = ", ".join("?" * (len(COLUMNS) + 1))
        insert = f"INSERT INTO files ({names}) VALUES ({marks})"  # noqa: S608 (fixed names)
        done = 0
        with self.transaction() as connection:
            for item, spans in items:
                values = item.to_row()
                own = slice(done, done + len(spans))
                connection.execute("DELETE FROM files WHERE path = ?", (values[0],))
                cursor = connection.execute(insert, (*values, checksums.of_file(values, crcs[own])))
                ids.append(cursor.lastrowid or 0)
                for i in range(own.start, own.stop):
                    vector = (row + i, ids[-1], *places[i], crcs[i])
                    connection.execute("INSERT INTO vectors VALUES (?, ?, ?, ?, ?, ?)", vector)
                done = own.stop
            if done:
                connection.execute("UPDATE meta SET value = ? WHERE key = 'rows'", (str(row + done),))
        return ids

    def change(self, changed: Iterable[Item]) -> None:
        """Write new fields of files that are there, by their ids; their vectors stay.

        Raises:
            UserError: the disk is full or not writable; Damaged: what is there is not what was written.
        """
        names = ", ".join(f"{name} = ?" for name in (*COLUMNS, "crc"))
        with self.transaction() as connection:
            for item in changed:
                values, crcs = item.to_row(), self._vectors_of(item.id or 0)
                # The old row of a path that another file has moved to.
                connection.execute("DELETE FROM files WHERE path = ? AND id != ?", (values[0], item.id))
                sql = f"UPDATE files SET {names} WHERE id = ?"  # noqa: S608 (fixed names)
                connection.execute(sql, (*values, checksums.of_file(values, crcs), item.id))

    def remove(self, ids: Iterable[int]) -> None:
        """Forget files and their vectors; the rows in the vector file stay until `compact`."""
        with self.transaction() as connection:
            connection.executemany("DELETE FROM files WHERE id = ?", ((id_,) for id_ in ids))

    def count(self, where: str = "1") -> int:
        """Files that an SQL condition selects."""
        return self._select(f"SELECT count(*) FROM files WHERE {where}")[0][0]  # noqa: S608 (from our own code)

    def items(self, where: str = "1", parameters: Sequence[Any] = ()) -> Iterator[Item]:
        """The files that an SQL condition with "?" for parameters selects, by id."""
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
        return np.array([id_ for (id_,) in self._select(sql, parameters)], np.int64)

    def roots(self) -> dict[str, dict[str, Any]]:
        """The folders that the index was made of, and the options of each."""
        found = self._select("SELECT path, options FROM roots ORDER BY path")
        return {os.fsdecode(path): json.loads(options) for path, options in found}

    def spans(self, id_: int) -> list[tuple[int, Span]]:
        """(row, what it stands for) of a file's vectors."""
        found = self._select('SELECT row, modality, "start", "end" FROM vectors WHERE file = ? ORDER BY row', (id_,))
        try:
            return [(row, Span(self.kinds[code], start, end)) for row, code, start, end in found]
        except (IndexError, TypeError) as error:
            raise Damaged(self.folder, f"vectors of file {id_}") from error

    def vectors(self, id_: int) -> np.ndarray:
        """(n, E) float32: a file's vectors, their checksums right.

        Raises:
            Damaged: they are not what was written.
        """
        crcs = self._vectors_of(id_)
        found = self._select('SELECT row, modality, "start", "end" FROM vectors WHERE file = ? ORDER BY row', (id_,))
        rows = [row for row, *_ in found]
        vectors = np.array(self.vector_file.read(max(rows, default=-1) + 1)[rows])
        if checksums.of_vectors([place for _, *place in found], vectors) != crcs:  # type: ignore[misc]
            raise Damaged(self.folder, f"vectors of file {id_}")
        return vectors

    def rows(self) -> Rows:
        """All vectors that count."""
        found = self._select('SELECT row, file, modality, "start", "end" FROM vectors ORDER BY row')
        kinds = (np.int64, np.int64, np.int8, np.float64, np.float64)
        columns = list(zip(*found, strict=True)) or [()] * len(kinds)
        try:
            arrays = [np.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
        except (ValueError, TypeError, OverflowError) as error:
            raise Damaged(self.folder, error) from error
        count = int(arrays[0][-1]) + 1 if found else 0
        return Rows(self.vector_file.read(count), *arrays)

    def backup(self, anew: bool = False) -> None:
        """A checked copy of the database beside it, for a repair when the database itself is damaged; then, remove what
        runs that were stopped have left.

        Args:
            anew: also when there is a copy of this state.

        Raises:
            UserError: the disk is full or not writable; Damaged: the database. The older copy stays.
        """
        if anew or not self._has_backup():
            with failing(self.folder, "written"), write_database(self.folder / BACKUP) as copy:
                self.connection.backup(copy)
                if copy.execute("PRAGMA journal_mode = DELETE").fetchone() != ("delete",):
                    raise sqlite3.OperationalError("disk I/O error")  # SQLite does not say it itself
                if faults := database_faults(copy):
                    raise Damaged(self.folder, faults[0])
                if wrong := checksums.wrong_files(copy, COLUMNS):
                    raise Damaged(self.folder, f"rows of {len(wrong)} files")
        self._remove_leftovers()

    def compact(self) -> int:
        """Leave the rows of forgotten files out of the vector file; gives how many there were.

        Raises:
            UserError: the disk is full or not writable; Damaged.
        """
        rows = self.rows()
        dropped = self.next_row() - len(rows.row)
        if not dropped:
            return 0
        number = max(int(path.stem.rpartition("-")[2]) for path in self._vector_files())
        new = VectorFile(self.folder / VECTORS.format(number + 1), self.embed_dim)
        try:
            new.create()
            for first in range(0, len(rows.row), COPIED):
                new.append(rows.vectors[rows.row[first : first + COPIED]], first)
        except BaseException:
            new.path.unlink(missing_ok=True)
            raise
        # From here on the new file stays: a transaction that is reported as failed may be on the disk all the same.
        with self.transaction() as connection:
            moved = [(i, int(row)) for i, row in enumerate(rows.row)]  # rising: no row is taken before it is free
            connection.executemany("UPDATE vectors SET row = ? WHERE row = ?", moved)
            about = (("vectors", new.path.name), ("rows", str(len(rows.row))))
            connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", about)
        self.backup()
        return dropped

    def _open(self, path: Path, write: bool) -> str | None:
        """Connect, and hold the file of vectors that is meant; gives its name if it is not there."""
        with failing(self.folder, "opened"):
            self.connection = writer(path) if write else reader(path)
        try:
            with failing(self.folder, "read"):
                if not write:
                    self.connection.execute("BEGIN")  # all that is read from here on is of one state
                meta = self._checked_meta()
                self.embed_dim = int(meta["embed_dim"])
                more = [key for key in meta.get("modalities", "").split() if key not in MODALITIES]
                self.kinds = (*MODALITIES, *more)
                if write:
                    return None
                self._held = VectorFile(self.folder / meta["vectors"], self.embed_dim)
                return None if self._held.hold() else meta["vectors"]
        except BaseException:
            self.close()
            raise

    def _checked_meta(self) -> dict[str, str]:
        meta = checksums.read_meta(self.connection)
        if not checksums.is_sealed(meta):
            raise Damaged(self.folder, "its table meta is not what was written")
        if (version := meta["format_version"]) != str(FORMAT):
            raise UserError(
                f"{self.folder}: an index of format {version}; this version reads format {FORMAT}. Build it anew, or "
                f"use the version of onepeace that made it ({meta.get('made_by', 'unknown')})"
            )
        if not checksums.has_its_roots(self.connection, meta):
            raise Damaged(self.folder, "its table roots is not what was written")
        return meta

    def _select(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with failing(self.folder, "read"):
            return self.connection.execute(sql, parameters).fetchall()

    def _vectors_of(self, id_: int) -> list[int]:
        """The checksums of a file's vectors, if they and its row are what was written."""
        crcs = [crc for (crc,) in self._select("SELECT crc FROM vectors WHERE file = ? ORDER BY row", (id_,))]
        sql = f"SELECT crc, {', '.join(COLUMNS)} FROM files WHERE id = ?"  # noqa: S608 (fixed names)
        if any(crc != checksums.of_file(row, crcs) for crc, *row in self._select(sql, (id_,))):
            raise Damaged(self.folder, f"row of file {id_}")
        return crcs

    def _has_backup(self) -> bool:
        path = self.folder / BACKUP
        try:
            with closing(reader(path)) as copy:
                return path.is_file() and checksums.read_meta(copy) == self.meta
        except sqlite3.Error:
            return False

    def _vector_files(self) -> list[Path]:
        return list(self.folder.glob("vectors-*.f32"))

    def _remove_leftovers(self) -> None:
        """The vectors of before a compaction, or of one that was stopped; half a database."""
        old = [path for path in self._vector_files() if path.name != self.meta["vectors"]]
        if old:
            # As long as the log alone says which vectors count, damage in it would lead back to the old ones.
            with failing(self.folder, "written"):
                self.connection.execute("PRAGMA busy_timeout = 0")  # readers may stay for days
                is_busy = self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
                self.connection.execute("PRAGMA busy_timeout = 60000")
            old = [] if is_busy else old
        for path in [*old, *self.folder.glob(".index.*sqlite.*.tmp*")]:
            with suppress(OSError):  # open elsewhere, under Windows
                path.unlink()
        with failing(self.folder, "written"):
            sync(self.folder)


COPIED = 1 << 14
"""Rows that `compact` copies at once."""


def database_faults(connection: sqlite3.Connection) -> list[str]:
    """What is wrong with a database, the rows of its files left aside; empty if nothing is.

    Raises:
        sqlite3.Error: it cannot be read.
    """
    found = [line for (line,) in connection.execute("PRAGMA integrity_check(20)") if line != "ok"]
    meta = checksums.read_meta(connection)
    if not checksums.is_sealed(meta):
        found.append("its table meta is not what was written")
    elif not checksums.has_its_roots(connection, meta):
        found.append("its table roots is not what was written")
    (orphans,) = connection.execute("SELECT count(*) FROM vectors WHERE file NOT IN (SELECT id FROM files)").fetchone()
    if orphans:
        found.append(f"{orphans} vectors of no file")
    return found


def _real(number: float | None) -> float | None:
    """As SQLite gives it back; NaN is NULL there."""
    return None if number is None or number != number else float(number)


def _text(value: str | None) -> str | None:
    """As SQLite can keep it: halves of a pair of UTF-16 become escapes."""
    return None if value is None else value.encode("utf-8", "backslashreplace").decode()
