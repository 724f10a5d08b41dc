"""The files of an index and their vectors in one SQLite database: the source of truth.

A batch of files and vectors is one transaction (WAL, synchronous=FULL), so SQLite is the crash model. SQLite has no
checksums of its own pages: a file's row has a CRC-32 over its fields and vectors, and each blob in `kept` has one.
`check` (verify.py) reads all of them, a search those of the hits it shows.
"""

import json
import os
import secrets
import sqlite3
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import numpy as np

from onepeace.errors import UserError
from onepeace.files.atomic import make_folder, sync, write_atomic

DATABASE = "index.sqlite"
FORMAT = "5"
"""Version of what is on the disk; an index of another one is refused by name."""
VECTOR = np.dtype("<f4")
PAGE = 16384
"""Bytes of a page: 15 vectors of 256 numbers fit in one."""
BESIDE = ("-wal", "-shm", "-journal")
"""Endings of the files that SQLite keeps beside a database."""
ELSEWHERE = (
    "access permission denied",
    "attempt to write a readonly database",
    "database is locked",
    "database or disk is full",
    "database table is locked",
    "disk I/O error",
    "interrupted",
    "locking protocol",
    "unable to open database file",
)
"""Messages of SQLite for faults outside of its file, which a repair would not mend and could make worse."""

SCHEMA = """
CREATE TABLE kept (name TEXT PRIMARY KEY, content BLOB NOT NULL, crc INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE files (
    id INTEGER PRIMARY KEY AUTOINCREMENT, path BLOB NOT NULL UNIQUE, modality TEXT NOT NULL, size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL, hash BLOB, date REAL, width INTEGER, height INTEGER, duration REAL, caption TEXT,
    metadata TEXT, problem TEXT, note TEXT, crc INTEGER NOT NULL
);
CREATE INDEX files_hash ON files (hash);
CREATE TABLE vectors (
    id INTEGER PRIMARY KEY AUTOINCREMENT, file INTEGER NOT NULL REFERENCES files ON DELETE CASCADE,
    modality INTEGER NOT NULL, "start" REAL, "end" REAL, vector BLOB NOT NULL
);
CREATE INDEX vectors_file ON vectors (file);
"""
COLUMNS = (
    "path", "modality", "size", "mtime_ns", "hash", "date", "width", "height", "duration", "caption", "metadata",
    "problem", "note",
)  # fmt: skip
VECTOR_COLUMNS = ("file", "modality", '"start"', '"end"', "vector")


class Damaged(UserError):
    """An index that is not what was written; `onepeace index check --repair` is the remedy.

    Args:
        folder: of the index.
        reason: what is wrong.
    """

    def __init__(self, folder: Path, reason: object) -> None:
        self.reason = str(reason)
        super().__init__(f"{folder}: the index is damaged ({reason}); run: onepeace index check {folder} --repair")


@dataclass(frozen=True)
class Item:
    """A file of an index, as it was when it was embedded."""

    path: str
    """Absolute; "SHARD::KEY.ENDING" for a sample of a shard, "TABLE::LINE" for a row's text. Bytes of a name that are
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
    id: int = 0
    """Number in its index, from 1; 0 if it is in none."""

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


@dataclass(frozen=True)
class Root:
    """A path that an index was made of, or that was taken out of it; `update` goes over them."""

    path: str
    """Absolute."""
    kind: Literal["folder", "file", "table", "shard", "removed"]
    exclude: tuple[str, ...] = ()
    """Patterns as in a .gitignore file, of a folder."""
    follow_links: bool = False
    """Whether links that lead out of a folder are followed."""
    state: tuple[int, int] | None = None
    """Size and mtime_ns of a shard when it was read to its end."""


class Store:
    """An index folder, open for reading, or for writing inside `transaction`.

    A reader sees a snapshot: the state when it was opened, whatever is written meanwhile.

    Args:
        write: open it for writing; the caller holds the lock of writers.

    Attributes:
        meta: the model, counters, and a random name of the state; kept by `transaction`.
        kinds: modalities of the model; a vector has the place of its own among them.

    Raises:
        UserError: no index there, one of another format, or one that cannot be read; Damaged.
    """

    def __init__(self, folder: Path, write: bool = False) -> None:
        self.folder = folder
        path = folder / DATABASE
        if not path.is_file():
            raise UserError(f"{folder}: no index there; make one with: onepeace index build {folder} FILES")
        with failing(folder, "read"):
            self.connection = _writer(path) if write else _reader(path)
            try:
                if not write:
                    self.connection.execute("BEGIN")  # all that is read from here on is of one state
                self.meta = self._known()
            except BaseException:
                self.close()
                raise
        self.embed_dim = int(self.meta["embed_dim"])
        self.kinds = tuple(self.meta["modalities"].split())

    @classmethod
    def create(cls, folder: Path, embed_dim: int, about: dict[str, str]) -> "Store":
        """New, empty index, open for writing.

        Args:
            about: further entries of its meta, which name the model.

        Raises:
            UserError: the disk is full or not writable.
        """
        meta = {"format_version": FORMAT, "embed_dim": str(embed_dim), "generation": "", "removed": "0"}
        meta |= {"store": "local", "created": datetime.now(timezone.utc).isoformat(timespec="seconds"), **about}
        with failing(folder, "written"):
            make_folder(folder)
            sync(folder)
            with write_database(folder / DATABASE) as connection:
                keep(connection, "meta", json.dumps(meta).encode())
        return cls(folder, write=True)

    def close(self) -> None:
        self.connection.close()

    def is_current(self) -> bool:
        """Whether nothing was written since this reader was opened."""
        with closing(Store(self.folder)) as now:
            return now.meta == self.meta

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Context of one transaction: durable when it ends, or rolled back.

        Raises:
            UserError: the disk is full or not writable, or the folder was moved; Damaged.
        """
        with failing(self.folder, "written"):
            self.connection.execute("BEGIN IMMEDIATE")
            before, meta = self.connection.total_changes, dict(self.meta)
            try:
                yield
                if self.connection.total_changes != before or self.meta != meta:
                    self.meta["generation"] = secrets.token_hex(8)
                    self.keep_blob("meta", json.dumps(self.meta).encode())
                self.connection.commit()
            except BaseException:
                self.meta = meta
                self.connection.rollback()
                raise
        if not (self.folder / DATABASE).exists():  # it was written to nevertheless, as its files are open
            raise UserError(
                f"{self.folder}: the index was moved or deleted meanwhile; all that is done moved with it, and the "
                "same command goes on with it there"
            )

    def add(self, items: Sequence[tuple[Item, Sequence[Span]]], vectors: np.ndarray) -> None:
        """Keep items with their vectors in the place of older ones of the same path; call it in a transaction.

        Args:
            items: each with what its vectors stand for; one with a problem has none.
            vectors: (n, E) finite unit rows, in the order of the spans.
        """
        spans = [span for _, own in items for span in own]
        if vectors.shape != (len(spans), self.embed_dim) or not np.isfinite(vectors).all():
            raise ValueError(f"vectors of shape {vectors.shape} for {len(spans)} x {self.embed_dim}, or not finite")
        content = iter([row.tobytes() for row in np.ascontiguousarray(vectors, VECTOR)])
        for item, own in items:
            values = item.to_row()
            self._delete("path = ?", (values[0],))
            id_ = insert(self.connection, "files", (*COLUMNS, "crc"), [(*values, 0)])
            rows = [
                (id_, self.kinds.index(one.modality), _real(one.start), _real(one.end), next(content)) for one in own
            ]
            insert(self.connection, "vectors", VECTOR_COLUMNS, rows)
            self.connection.execute("UPDATE files SET crc = ? WHERE id = ?", (checksum([id_, *values], rows), id_))

    def remove(self, ids: Iterable[int]) -> None:
        for id_ in ids:
            self._delete("id = ?", (id_,))

    def count(self, where: str = "1", parameters: Sequence[Any] = ()) -> int:
        """Number of files that an SQL condition with "?" for parameters selects."""
        return self.select(f"SELECT count(*) FROM files WHERE {where}", parameters)[0][0]  # noqa: S608 (our own code)

    def items(self, where: str = "1", parameters: Sequence[Any] = (), order: str = "id") -> Iterator[Item]:
        """Files that an SQL condition with "?" for parameters selects."""
        sql = f"SELECT id, {', '.join(COLUMNS)} FROM files WHERE {where} ORDER BY {order}"  # noqa: S608 (our own code)
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
        own = defaultdict(list)
        for vector in self.select(sql, wanted):
            own[vector[0]].append(vector)
        found = {}
        for row in rows:
            id_, _, *values = row
            vectors = own[id_]
            if not is_sound(row, vectors):
                raise Damaged(self.folder, f"file {id_}")
            spans = [Span(self.kinds[code], start, end) for _, code, start, end, _ in vectors]
            blob = b"".join(vector[-1] for vector in vectors)
            found[id_] = Item.from_row(id_, values), spans, np.frombuffer(blob, VECTOR).reshape(-1, self.embed_dim)
        return found

    def roots(self) -> dict[str, Root]:
        """Paths that the index was made of, and those that were taken out of it, each with its `Root`.

        Raises:
            Damaged: it is not what was written.
        """
        known = {}
        for about in json.loads(self.blob("roots") or b"[]"):
            state = None if about["state"] is None else tuple(about["state"])
            known[about["path"]] = Root(**{**about, "exclude": tuple(about["exclude"]), "state": state})
        return known

    def keep_roots(self, roots: Iterable[Root], gone: Collection[str] = ()) -> None:
        """Keep roots, and forget those of the paths ``gone``; call it in a transaction."""
        known = {**self.roots(), **{root.path: root for root in roots}}
        kept = [asdict(root) for path, root in sorted(known.items()) if path not in gone]
        self.keep_blob("roots", json.dumps(kept).encode())

    def blob(self, name: str) -> bytes | None:
        """Blob of the table `kept`, such as the calibration; None if it is not there.

        Raises:
            Damaged: it is not what was written.
        """
        for content, crc in self.select("SELECT content, crc FROM kept WHERE name = ?", (name,)):
            if zlib.crc32(content) != crc:
                raise Damaged(self.folder, f"what it keeps as {name}")
            return content
        return None

    def keep_blob(self, name: str, content: bytes) -> None:
        keep(self.connection, name, content)

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
            self.meta["removed"] = str(int(self.meta["removed"]) + removed)

    def _known(self) -> dict[str, str]:
        """What is known of the index as a whole."""
        if self.connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'meta'").fetchone():
            raise UserError(f"{self.folder}: made by an earlier version; build it again")
        content = self.blob("meta")
        if content is None:
            raise Damaged(self.folder, "it does not say of which model it is")
        meta: dict[str, str] = json.loads(content)
        if meta["format_version"] != FORMAT:
            made = f"format {meta['format_version']} by {meta.get('made_by')}"
            raise UserError(f"{self.folder}: made in {made}, and this version reads {FORMAT}; build it again")
        return meta


@contextmanager
def failing(folder: Path, doing: str) -> Iterator[None]:
    """Context in which errors of SQLite and of the disk become a `UserError`.

    Args:
        folder: of the index.
        doing: what cannot be done with it: read, written.

    Raises:
        UserError: the disk is full, not readable or not writable, or the database locked; Damaged: it is not what was
            written.
    """
    try:
        yield
    except sqlite3.ProgrammingError:
        raise
    except sqlite3.Error as error:
        if str(error) in ELSEWHERE:
            raise UserError(f"{folder}: cannot be {doing} ({error})") from error
        raise Damaged(folder, error) from error
    except OSError as error:
        raise UserError(f"{folder}: cannot be {doing} ({error.strerror or error})") from error


def _writer(path: Path) -> sqlite3.Connection:
    """For the one process that writes: what is committed is on the disk, and readers do not wait."""
    connection = _connect(path, "mode=rw", timeout=60)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


def _reader(path: Path) -> sqlite3.Connection:
    """Connection for any number of processes that read; it may be used by several threads.

    SQLite shares a file beside the database with a writer (-shm). Where that cannot be made (a folder that is not
    writable, a full disk), the database is read as one that nobody changes, unless a writer has left a log.
    """
    connection = _connect(path, "mode=ro", check_same_thread=False)
    try:
        connection.execute("PRAGMA query_only = ON")
        connection.execute("SELECT 1 FROM sqlite_schema").fetchone()  # opens it
        return connection
    except sqlite3.Error as error:
        connection.close()
        if not path.is_file() or str(error) not in ELSEWHERE:
            raise
        if any(os.path.exists(f"{path}{ending}") and os.path.getsize(f"{path}{ending}") for ending in BESIDE):
            remedy = "its last writer was stopped; read it where it can be written, or make it writable"
            raise UserError(f"{path}: cannot be opened ({error}), and {remedy}") from error
    return _connect(path, "mode=ro&immutable=1", check_same_thread=False)


def _connect(path: Path, how: str, **options: object) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True, isolation_level=None, **options)  # type: ignore[call-overload]


@contextmanager
def write_database(path: Path) -> Iterator[sqlite3.Connection]:
    """A new database with empty tables that takes the place of the one at ``path`` when the block ends.

    What SQLite kept beside the old one is lost before: its log would be applied to the new one.

    Raises:
        OSError, sqlite3.Error: the disk is full or not writable; ``path`` is as it was, but for that log.
    """
    with write_atomic(path) as temporary:
        with closing(sqlite3.connect(temporary, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous = OFF")  # write_atomic waits for the disk at the end
            connection.execute(f"PRAGMA page_size = {PAGE}")
            connection.execute("PRAGMA journal_mode = MEMORY")
            connection.executescript(f"BEGIN; {SCHEMA}")
            yield connection
            connection.commit()
            connection.execute("PRAGMA journal_mode = WAL")  # now: a writer stopped in doing so would lock readers out
        for ending in BESIDE:
            Path(f"{path}{ending}").unlink(missing_ok=True)
        sync(path.parent)


def insert(connection: sqlite3.Connection, table: str, names: Sequence[str], rows: Iterable[Sequence[Any]]) -> int:
    """Insert rows; gives the id of the last one."""
    sql = f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"  # noqa: S608 (fixed names)
    cursor = connection.cursor()
    for row in rows:
        cursor.execute(sql, row)
    return cursor.lastrowid or 0


def keep(connection: sqlite3.Connection, name: str, content: bytes) -> None:
    """Write something that `Store.blob` gives."""
    connection.execute("INSERT OR REPLACE INTO kept VALUES (?, ?, ?)", (name, content, zlib.crc32(content)))


def checksum(file: Sequence[Any], vectors: Iterable[Sequence[Any]]) -> int:
    """CRC-32 of the id and COLUMNS of a file and the VECTOR_COLUMNS of its vectors, the same under every Python.

    Over JSON, not repr: which characters that escapes depends on the Unicode tables of the interpreter.
    """
    crc = zlib.crc32(json.dumps(file, default=bytes.hex).encode())
    for *place, blob in vectors:
        crc = zlib.crc32(blob, zlib.crc32(json.dumps(place).encode(), crc))
    return crc


def is_sound(row: Sequence[Any], vectors: Sequence[Sequence[Any]]) -> bool:
    """Whether a row (id, crc, *COLUMNS) of a file and the rows of its vectors are what was written."""
    id_, crc, *values = row
    try:
        return crc == checksum([id_, *values], vectors)
    except TypeError:  # a damaged value is of another type
        return False


def _real(number: float | None) -> float | None:
    """As SQLite gives it back; NaN is NULL there."""
    return None if number is None or number != number else float(number)


def _text(value: str | None) -> str | None:
    """As SQLite can keep it: halves of a pair of UTF-16 become escapes."""
    return None if value is None else value.encode("utf-8", "backslashreplace").decode()
