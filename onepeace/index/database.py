"""The SQLite database of an index, the source of truth: its tables and connections, and `Store`, which reads and writes
files, vectors, words and blobs.

A batch of files and vectors is one transaction (WAL, synchronous=FULL), so a kill or a full disk costs that batch.
"""

import json
import os
import re
import secrets
import shlex
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from onepeace.errors import UsageError, UserError
from onepeace.files.atomic import LOCK, locked, make_folder, sync, write_atomic
from onepeace.index.items import IN_LIST, NAMES, Item, Span, Words

DATABASE = "index.sqlite"
INDEX_FORMAT = "10"
"""Format version on disk; an index of another version is refused."""
LOCAL = "local"
"""Value of ``meta["store"]`` if no vector database is used."""
VECTOR = np.dtype("<f4")
PAGE = 16384
"""Bytes of a page: 15 vectors of 256 numbers fit in one."""
SETTINGS = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON"
"""Settings of the writing connection: commits are durable, and readers do not wait."""
SIDE_FILES = ("-wal", "-shm", "-journal")
"""Suffixes of the files that SQLite keeps next to a database."""
UNIQUE = "[0-9a-f]{16}"
LEFTOVER = re.compile(rf"\.({re.escape(DATABASE)}|vectors-{UNIQUE}\.bin)\.onepeace-[0-9a-f]{{8}}\.(new|tmp).*")
"""What a killed run left of a file in an index (`files.atomic.marked`), and SQLite's own files beside it."""
EXTERNAL = re.compile(
    "permission|readonly|locked|is full|I/O error|interrupted|locking protocol|unable to open|closed|no such module"
)
"""SQLite error messages for faults outside the file."""

SCHEMA = (
    "CREATE TABLE blobs (name TEXT PRIMARY KEY, content BLOB NOT NULL, digest BLOB NOT NULL)",
    """CREATE TABLE files (
    id INTEGER PRIMARY KEY AUTOINCREMENT, path BLOB NOT NULL UNIQUE, kind TEXT NOT NULL, size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL, "offset" INTEGER, hash BLOB, date REAL, width INTEGER, height INTEGER, duration REAL,
    caption TEXT, metadata TEXT NOT NULL, tags TEXT NOT NULL, problem TEXT, note TEXT, digest BLOB NOT NULL
)""",
    "CREATE INDEX files_hash ON files (hash)",
    """CREATE TABLE vectors (
    id INTEGER PRIMARY KEY AUTOINCREMENT, file INTEGER NOT NULL REFERENCES files ON DELETE CASCADE,
    modality INTEGER NOT NULL, "start" REAL, "end" REAL, vector BLOB NOT NULL
)""",
    "CREATE INDEX vectors_file ON vectors (file)",
    """CREATE TABLE words (
    file INTEGER PRIMARY KEY REFERENCES files ON DELETE CASCADE, name TEXT NOT NULL, ending TEXT NOT NULL,
    about TEXT NOT NULL, text TEXT NOT NULL
)""",
    """CREATE VIRTUAL TABLE word_index USING fts5 (
    name, ending, about, text, content = 'words', content_rowid = 'file', tokenize = 'unicode61 remove_diacritics 2'
)""",
    """CREATE TRIGGER words_added AFTER INSERT ON words BEGIN
    INSERT INTO word_index (rowid, name, ending, about, text)
    VALUES (new.file, new.name, new.ending, new.about, new.text);
END""",
    """CREATE TRIGGER words_removed AFTER DELETE ON words BEGIN
    INSERT INTO word_index (word_index, rowid, name, ending, about, text)
    VALUES ('delete', old.file, old.name, old.ending, old.about, old.text);
END""",
)
"""Statements that make the tables. `word_index` finds the rows of `words` by their words, and is derived from them."""
FILE_COLUMNS = ", ".join(f'"{name}"' for name in ("id", *NAMES))
INSERT_FILE = f"INSERT INTO files ({FILE_COLUMNS}, digest) VALUES ({', '.join('?' * (len(NAMES) + 2))})"  # noqa: S608
INSERT_VECTOR = 'INSERT INTO vectors (file, modality, "start", "end", vector) VALUES (?, ?, ?, ?, ?)'
INSERT_WORDS = "INSERT INTO words VALUES (?, ?, ?, ?, ?)"


def build_again(folder: Path) -> str:
    """What to type for an index that cannot be read."""
    return f"build it again: onepeace index build {shlex.quote(str(folder))} PATHS --force"


def update_again(folder: Path) -> str:
    """What to type for an index of which only a file that is derived from the database is damaged."""
    return f"write it again: onepeace index update {shlex.quote(str(folder))}"


class Damaged(UserError):
    """Error for an index that differs from what was written.

    Args:
        folder: folder of the index.
        reason: what is wrong.
    """

    def __init__(self, folder: Path, reason: object) -> None:
        super().__init__(f"the index is damaged ({reason}); {build_again(folder)}", where=folder)
        self.damage = str(reason)


class OtherVersion(UserError):
    """Error for an index in the format of another version."""


@contextmanager
def failing(folder: Path, doing: str) -> Iterator[None]:
    """Context in which errors of SQLite and of the disk become a `UserError`.

    Args:
        folder: folder of the index.
        doing: "read" or "written", for the message.

    Raises:
        UserError: the disk is full, not readable or not writable, or the database is locked; Damaged: the database is
            damaged.
    """
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError) as error:  # the second if a message quotes damaged text
        database = folder / DATABASE
        if _is_cut_off(database):  # which SQLite calls a disk I/O error
            raise Damaged(folder, "the database has been cut off") from error
        if EXTERNAL.search(str(error)):
            raise UserError(f"cannot be {doing} ({error})", where=folder) from error
        raise Damaged(folder, error) from error
    except OSError as error:
        raise UserError(f"cannot be {doing} ({error.strerror or error})", where=folder) from error


def _is_cut_off(database: Path) -> bool:
    """Whether a database ends within a page that its log does not have."""
    log = Path(f"{database}-wal")
    has_log = log.is_file() and log.stat().st_size > 0
    return database.is_file() and database.stat().st_size % PAGE > 0 and not has_log


def connect(path: Path, how: str) -> sqlite3.Connection:
    """Connection that several threads may use.

    Args:
        how: parameters of SQLite's URI, such as mode=ro.
    """
    address = f"{path.absolute().as_uri()}?{how}"
    connection = sqlite3.connect(address, timeout=60, isolation_level=None, check_same_thread=False, uri=True)
    connection.execute("PRAGMA temp_store = MEMORY")  # a reader needs no space on the disk
    return connection


def reader(path: Path) -> sqlite3.Connection:
    """Read-only connection; any number of processes may have one.

    SQLite shares a file next to the database with a writer (-shm). If it cannot be created (in a folder that is not
    writable, on a full disk), the database is opened as immutable, unless a writer has left a log.
    """
    connection = connect(path, "mode=ro")
    try:
        connection.execute("SELECT 1 FROM sqlite_schema").fetchone()  # opens it
    except sqlite3.OperationalError as error:
        connection.close()
        logs = [Path(f"{path}-wal"), Path(f"{path}-journal")]
        if any(log.exists() and log.stat().st_size for log in logs) or not EXTERNAL.search(str(error)):
            raise
        return connect(path, "mode=ro&immutable=1")
    return connection


def write_database(path: Path, meta: dict[str, str]) -> None:
    """Write a new database with empty tables.

    Raises:
        OSError, sqlite3.Error: the disk is full or not writable; there is then no database.
    """
    for ending in SIDE_FILES:  # of one that is gone: SQLite would apply its log to the new one
        Path(f"{path}{ending}").unlink(missing_ok=True)
    with write_atomic(path) as temporary:
        connection = connect(temporary, "mode=rwc")
        try:
            connection.execute(f"PRAGMA page_size = {PAGE}")
            connection.execute("BEGIN")
            for statement in SCHEMA:
                connection.execute(statement)
            _insert_blob(connection, "meta", json.dumps(meta).encode())
            connection.commit()
            connection.execute("PRAGMA journal_mode = WAL")  # now, as a writer killed meanwhile would lock out readers
        finally:
            connection.close()


def _digest(content: bytes) -> bytes:
    return blake2b(content, digest_size=16).digest()


def _digest_of_file(item: Item, spans: Iterable[Span], vectors: np.ndarray, text: str) -> bytes:
    """Digest of what is stored of a file, whether SQLite gives back 2.0 or 2."""
    values = [*item.to_row(), text]
    for span in spans:
        values += [span.modality, span.start, span.end]
    plain = [float(value) if isinstance(value, (int, float)) else value for value in values]
    return _digest(repr(plain).encode() + vectors.tobytes())


def _insert_blob(connection: sqlite3.Connection, name: str, content: bytes) -> None:
    connection.execute("INSERT OR REPLACE INTO blobs VALUES (?, ?, ?)", (name, content, _digest(content)))


class Store:
    """An index folder, open for reading, or for writing inside `transaction`.

    Each statement of a reader sees the latest state; inside `snapshot` all of them see one.

    Args:
        write: open it for writing; the caller holds the write lock (`writing`).

    Attributes:
        meta: the model, counters, and a random id of the state; stored by `transaction`.

    Raises:
        UserError: there is no index, it has another format, or it cannot be read; Damaged.
    """

    def __init__(self, folder: Path, write: bool = False) -> None:
        self.folder = folder
        self._num_readers = 0
        path = folder / DATABASE
        with failing(folder, "read"):
            if not path.is_file():
                raise no_index(folder)
            self._status = os.stat(path)
            self.connection = connect(path, "mode=rw") if write else reader(path)
            try:
                if write:
                    self.connection.executescript(SETTINGS)
                definitions = {sql for (sql,) in self.select("SELECT sql FROM sqlite_schema")}
                if SCHEMA[0] in definitions:
                    self.meta = self._known()  # if it is of another version, that is what is said
                if not definitions.issuperset(SCHEMA):  # there are also those of the tables that FTS5 makes
                    raise Damaged(folder, "its tables are not those of this version")
            except BaseException:
                self.close()
                raise

    @property
    def is_reading(self) -> bool:
        """Whether a `snapshot` is held."""
        return self._num_readers > 0

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Context in which all reads see one state, of which `meta` is; for a reader, which may enter it again."""
        if not self.is_reading:
            with failing(self.folder, "read"):
                self.connection.execute("BEGIN")
        self._num_readers += 1
        try:
            if self._num_readers == 1:
                self.meta = self._known()
            yield
        finally:
            self._num_readers -= 1
            if not self.is_reading:
                with suppress(sqlite3.Error):  # closed meanwhile
                    self.connection.execute("COMMIT")  # before Python 3.11 `rollback` ends an open list of items

    def is_replaced(self) -> bool:
        """Whether another database has taken the place of this one, or none is there."""
        try:
            return not os.path.samestat(os.stat(self.folder / DATABASE), self._status)
        except OSError:
            return True

    @property
    def embed_dim(self) -> int:
        """Dimension of the vectors."""
        return int(self.meta["embed_dim"])

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities of the model; a vector is stored with the place of its modality among them."""
        return tuple(self.meta["modalities"].split())

    @classmethod
    def create(cls, folder: Path, embed_dim: int, about: dict[str, str]) -> "Store":
        """New, empty index, open for writing.

        Args:
            about: further entries of `meta`, which identify the model.

        Raises:
            UserError: the disk is full or not writable.
        """
        now = datetime.now(timezone.utc)
        meta = {
            "format_version": INDEX_FORMAT,
            "embed_dim": str(embed_dim),
            "generation": "",
            "removed": "0",
            "store": LOCAL,
            "created": now.isoformat(timespec="seconds"),
            "id": secrets.token_hex(8),
            **about,
        }
        with failing(folder, "written"):
            make_folder(folder)
            write_database(folder / DATABASE, meta)
            sync(folder.parent)
        return cls(folder, write=True)

    def close(self) -> None:
        self.connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Context of one transaction: committed durably when it ends, or rolled back on an error.

        Raises:
            UserError: the disk is full or not writable, or the folder was moved; Damaged.
        """
        meta = dict(self.meta)
        try:
            with failing(self.folder, "written"), self.connection:
                self.connection.execute("BEGIN IMMEDIATE")
                before = self.connection.total_changes
                yield
                if self.connection.total_changes != before or self.meta != meta:
                    self.meta["generation"] = secrets.token_hex(8)
                    self.keep_blob("meta", json.dumps(self.meta).encode())
        except BaseException:
            self.meta = meta
            raise
        if not (self.folder / DATABASE).exists():  # the open files were written nevertheless
            raise UserError(
                "the index was moved or deleted while it was written to; what is stored moved with it, so run the same "
                "command again with the new folder",
                where=self.folder,
            )

    def add(self, item: Item, spans: Sequence[Span], vectors: np.ndarray, words: Words | None = None) -> None:
        """Store a file with its vectors, replacing an older one of the same path; call it in a transaction.

        Args:
            item: one with an id keeps it; one with a problem has no vectors.
            spans: what the vectors stand for.
            vectors: (len(spans), E) finite unit rows.
            words: texts by whose words the file is found; None = none.
        """
        rows = np.ascontiguousarray(vectors, VECTOR).reshape(len(spans), self.embed_dim)
        if not np.isfinite(rows).all():
            raise ValueError(f"{item.path}: vectors that are not finite")
        self.remove(self.ids("path = ?", (os.fsencode(item.path),)))
        words = words or Words()
        digest = _digest_of_file(item, spans, rows, words.text)
        file_id = self.connection.execute(INSERT_FILE, (item.id or None, *item.to_row(), digest)).lastrowid
        self.connection.execute(INSERT_WORDS, (file_id, *words))
        for span, row in zip(spans, rows, strict=True):
            modality = self.modalities.index(span.modality)
            self.connection.execute(INSERT_VECTOR, (file_id, modality, span.start, span.end, row.tobytes()))

    def remove(self, ids: Iterable[int]) -> None:
        """Remove files; call it in a transaction."""
        listed = [json.dumps(list(ids))]
        gone = self.connection.execute(f"DELETE FROM vectors WHERE file {IN_LIST}", listed)  # noqa: S608
        self.meta["removed"] = str(int(self.meta["removed"]) + gone.rowcount)
        self.connection.execute(f"DELETE FROM files WHERE id {IN_LIST}", listed)  # noqa: S608

    def count(self, where: str = "1", parameters: Sequence[Any] = ()) -> int:
        """Number of files that an SQL condition with "?" for parameters selects."""
        return self.select(f"SELECT count(*) FROM files WHERE {where}", parameters)[0][0]  # noqa: S608 (our own code)

    def items(
        self,
        where: str = "1",
        parameters: Sequence[Any] = (),
        order: str = "id",
    ) -> Iterator[Item]:
        """Files that an SQL condition with "?" for parameters selects."""
        sql = f"SELECT {FILE_COLUMNS} FROM files WHERE {where} ORDER BY {order}"  # noqa: S608 (our own code)
        with failing(self.folder, "read"):
            try:
                yield from map(Item.from_row, self.connection.execute(sql, parameters))
            except (ValueError, TypeError) as error:
                raise Damaged(self.folder, error) from error

    def ids(self, where: str, parameters: Sequence[Any] = ()) -> list[int]:
        """Ids of the files that a condition selects."""
        rows = self.select(f"SELECT id FROM files WHERE {where}", parameters)  # noqa: S608 (our own code)
        return [id_ for (id_,) in rows]

    def items_of(self, ids: Iterable[int]) -> dict[int, Item]:
        """Files by their ids.

        Raises:
            Damaged: there is no file of one of these ids, of which the index has vectors.
        """
        wanted = set(ids)
        items = {item.id: item for item in self.items(f"id {IN_LIST}", [json.dumps(sorted(wanted))])}
        missing = wanted - items.keys()
        if missing:
            raise Damaged(self.folder, f"file {min(missing)} is missing")
        return items

    def kinds_of(self, ids: Iterable[int]) -> dict[int, str]:
        """Kinds of files by their ids: faster than `items_of`."""
        sql = f"SELECT id, kind FROM files WHERE id {IN_LIST}"  # noqa: S608 (a constant)
        return dict(self.select(sql, (json.dumps(sorted(ids)),)))

    def vectors_of(self, id_: int) -> tuple[list[Span], np.ndarray]:
        """The spans of the vectors of a file, and these (n, E) float32.

        Raises:
            Damaged: a vector has another length or modality.
        """
        rows = self.select('SELECT modality, "start", "end", vector FROM vectors WHERE file = ? ORDER BY id', (id_,))
        try:
            spans = [Span(self.modalities[code], start, end) for code, start, end, _ in rows]
            content = b"".join(vector for *_, vector in rows)
            return spans, np.frombuffer(content, VECTOR).reshape(len(rows), self.embed_dim)
        except (ValueError, TypeError, IndexError) as error:
            raise Damaged(self.folder, error) from error

    def contents_of(self, item: Item) -> tuple[list[Span], np.ndarray, str]:
        """The spans and vectors of a file (`vectors_of`), and the words in its text; nothing if it is gone.

        Raises:
            Damaged: they or the item are not what was written.
        """
        spans, vectors = self.vectors_of(item.id)
        text = ""
        sql = "SELECT text, digest FROM files LEFT JOIN words ON file = files.id WHERE files.id = ?"
        for text, digest in self.select(sql, (item.id,)):
            if digest != _digest_of_file(item, spans, vectors, text):
                raise Damaged(self.folder, f"what it has of {item.path} is not what was written")
        return spans, vectors, text

    def replace_words(self, file_id: int, words: Words) -> None:
        """Store other texts by whose words a file is found; call it in a transaction."""
        self.connection.execute("DELETE FROM words WHERE file = ?", (file_id,))
        self.connection.execute(INSERT_WORDS, (file_id, *words))

    def words(self, file_id: int) -> Words:
        """The texts by whose words a file is found."""
        rows = self.select("SELECT name, ending, about, text FROM words WHERE file = ?", (file_id,))
        return Words(*rows[0]) if rows else Words()

    def blob(self, name: str) -> bytes | None:
        """Content that was stored under a name, such as the calibration; None if there is none.

        Raises:
            Damaged: the content has another digest.
        """
        for content, digest in self.select("SELECT content, digest FROM blobs WHERE name = ?", (name,)):
            if not isinstance(content, bytes) or _digest(content) != digest:
                raise Damaged(self.folder, f"its {name} is not what was written")
            return content
        return None

    def keep_blob(self, name: str, content: bytes) -> None:
        """Store content for `blob`; call it in a transaction."""
        if self.blob(name) != content:
            _insert_blob(self.connection, name, content)

    def select(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Rows of a query.

        Raises:
            UserError: the database cannot be read; Damaged.
        """
        with failing(self.folder, "read"):
            return self.connection.execute(sql, parameters).fetchall()

    def _known(self) -> dict[str, str]:
        """Metadata of the index."""
        content = self.blob("meta")
        if content is None:
            raise Damaged(self.folder, "its metadata is missing")
        meta: dict[str, str] = json.loads(content)
        if meta["format_version"] != INDEX_FORMAT:
            origin = f"format {meta['format_version']} by {meta.get('made_by')}"
            raise OtherVersion(
                f"made in {origin}, and this version reads {INDEX_FORMAT}; {build_again(self.folder)}",
                where=self.folder,
            )
        return meta


def is_index(path: str | os.PathLike[str]) -> bool:
    """Whether a path is an index folder."""
    return os.path.isfile(Path(path) / DATABASE)  # unlike Path.is_file, does not raise for a folder without permission


def no_index(folder: Path) -> UserError:
    """Error for a folder that is no index, which may be one of files to be indexed."""
    path = shlex.quote(str(folder))
    arguments = f"my.index {path}" if folder.is_dir() else f"{path} FILES"
    return UsageError(f"no index there; make one with: onepeace index build {arguments}", where=folder)


@contextmanager
def writing(folder: str | os.PathLike[str], create: bool = False) -> Iterator[Path]:
    """Context with the write lock of an index; yields its folder.

    Args:
        create: create the folder if it does not exist; it is removed again if no index was written.

    Raises:
        UserError: there is no index, or the folder has other files in it; Locked: another process is writing.
    """
    target = Path(folder)
    if os.path.exists(target) and not os.path.isdir(target):  # False without permission, unlike those of Path
        raise UsageError("is a file; name a folder", where=target)
    if not create and not is_index(target):
        raise no_index(target)
    try:
        if os.path.exists(target) and not is_index(target) and not all(map(_is_ours, os.listdir(target))):
            raise UserError("a folder with other files in it, and no index; name a new folder", where=target)
    except OSError as error:
        raise UserError(f"cannot be written ({error.strerror or error})", where=target) from error
    with locked(target, patience=0, again=False):
        if not create and not is_index(target):  # another process deleted it just now
            raise no_index(target)
        for name in filter(LEFTOVER.fullmatch, os.listdir(target)):
            (target / name).unlink(missing_ok=True)
        yield target


def _is_ours(name: str) -> bool:
    """Whether a killed run may have left a file of this name in a folder that has no database yet, or no longer."""
    return name in (LOCK, *(DATABASE + ending for ending in SIDE_FILES)) or LEFTOVER.fullmatch(name) is not None
