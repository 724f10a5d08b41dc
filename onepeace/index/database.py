"""The SQLite database of an index: its tables, checksums and connections, and its errors as words for users."""

import json
import os
import re
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from onepeace.errors import UserError
from onepeace.files.atomic import sync, write_atomic
from onepeace.index.items import NAMES

DATABASE = "index.sqlite"
PAGE = 16384
"""Bytes of a page: 15 vectors of 256 numbers fit in one."""
SETTINGS = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON"
"""Settings of the writing connection: commits are durable, and readers do not wait."""
SIDE_FILES = ("-wal", "-shm", "-journal")
"""Suffixes of the files that SQLite keeps next to a database."""
LOGS = ("-wal", "-journal")
"""Those of them that may have content which the database lacks."""
EXTERNAL = re.compile(
    "permission|readonly|locked|is full|I/O error|interrupted|locking protocol|unable to open|closed|no such module"
)
"""SQLite error messages for faults outside the file, which a repair cannot fix and could make worse."""

WORDS = """CREATE TABLE words (
    file INTEGER PRIMARY KEY REFERENCES files ON DELETE CASCADE, name TEXT NOT NULL, ending TEXT NOT NULL,
    about TEXT NOT NULL, text TEXT NOT NULL, crc INTEGER
)"""
WORD_INDEX = """CREATE VIRTUAL TABLE word_index USING fts5 (
    name, ending, about, text, content = 'words', content_rowid = 'file', tokenize = 'unicode61 remove_diacritics 2'
)"""
SCHEMA = (
    "CREATE TABLE blobs (name TEXT PRIMARY KEY, content BLOB NOT NULL, crc INTEGER)",
    """CREATE TABLE files (
    id INTEGER PRIMARY KEY AUTOINCREMENT, path BLOB NOT NULL UNIQUE, modality TEXT NOT NULL, size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL, hash BLOB, date REAL, width INTEGER, height INTEGER, duration REAL, caption TEXT,
    metadata TEXT NOT NULL, tags TEXT NOT NULL, problem TEXT, note TEXT, vectors INTEGER NOT NULL, crc INTEGER
)""",
    "CREATE INDEX files_hash ON files (hash)",
    """CREATE TABLE vectors (
    id INTEGER PRIMARY KEY AUTOINCREMENT, file INTEGER NOT NULL REFERENCES files ON DELETE CASCADE,
    modality INTEGER NOT NULL, "start" REAL, "end" REAL, vector BLOB NOT NULL, crc INTEGER
)""",
    "CREATE INDEX vectors_file ON vectors (file)",
    WORDS,
    WORD_INDEX,
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
WORD_TABLES = ("word_index_data", "word_index_idx", "word_index_docsize", "word_index_config")
"""Tables that FTS5 makes for `word_index`."""
SPARE = "CREATE TABLE IF NOT EXISTS spare (content BLOB NOT NULL, crc INTEGER)"
"""Table of a second copy of the blob "meta", on a page of its own: without it an index could not be repaired."""
COLUMNS = {
    "blobs": ("name", "content"),
    "files": ("id", *NAMES, "vectors"),
    "vectors": ("id", "file", "modality", '"start"', '"end"', "vector"),
    "words": ("file", "name", "ending", "about", "text"),
}
"""Columns of each table, without the checksum over them."""


class Damaged(UserError):
    """Error for an index that differs from what was written; `onepeace index check --repair` repairs it.

    Args:
        folder: folder of the index.
        reason: what is wrong.
    """

    def __init__(self, folder: Path, reason: object) -> None:
        repair = f"onepeace index check {folder} --repair"
        super().__init__(f"the index is damaged ({reason}); run: {repair}", where=folder)
        self.damage = str(reason)


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
        if is_cut(folder / DATABASE):  # which SQLite calls a disk I/O error
            raise Damaged(folder, "the database has been cut off") from error
        if EXTERNAL.search(str(error)):
            raise UserError(f"cannot be {doing} ({error})", where=folder) from error
        raise Damaged(folder, error) from error
    except OSError as error:
        raise UserError(f"cannot be {doing} ({error.strerror or error})", where=folder) from error


def is_cut(database: Path) -> bool:
    """Whether a database ends within a page."""
    return database.is_file() and database.stat().st_size % PAGE != 0


def connect(path: Path, how: str) -> sqlite3.Connection:
    """Connection that several threads may use, with `checksum` as an SQL function.

    Args:
        how: parameters of SQLite's URI, such as mode=ro.
    """
    address = f"{path.absolute().as_uri()}?{how}"
    connection = sqlite3.connect(address, timeout=60, isolation_level=None, check_same_thread=False, uri=True)
    connection.execute("PRAGMA temp_store = MEMORY")  # a reader needs no space on the disk
    connection.create_function("checksum", -1, checksum, deterministic=True)
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
        if _has_log(path) or not EXTERNAL.search(str(error)):
            raise
        return connect(path, "mode=ro&immutable=1")
    return connection


def _has_log(path: Path) -> bool:
    """Whether a writer has left a log that is not empty."""
    for ending in LOGS:
        log = f"{path}{ending}"
        if os.path.exists(log) and os.path.getsize(log):
            return True
    return False


@contextmanager
def write_database(path: Path) -> Iterator[sqlite3.Connection]:
    """Context of a new database with empty tables, which replaces the one at ``path`` when the block ends.

    The log of the old database is deleted first, as SQLite would apply it to the new one.

    Raises:
        OSError, sqlite3.Error: the disk is full or not writable; ``path`` is unchanged, but its log may be gone.
    """
    with write_atomic(path) as temporary:
        with closing(connect(temporary, "mode=rwc")) as connection:
            connection.execute(f"PRAGMA page_size = {PAGE}")
            connection.execute("BEGIN")
            for statement in SCHEMA:
                connection.execute(statement)
            yield connection
            connection.commit()
            connection.execute("PRAGMA journal_mode = WAL")  # now, as a writer killed meanwhile would lock out readers
        for ending in SIDE_FILES:
            Path(f"{path}{ending}").unlink(missing_ok=True)
        sync(path.parent)


def insert(connection: sqlite3.Connection, table: str, values: Sequence[Any]) -> int:
    """Write a row of COLUMNS with its checksum, computed over the values as SQLite stores them; returns its id."""
    names = ", ".join(COLUMNS[table])
    marks = ", ".join("?" * len(values))
    cursor = connection.execute(f"INSERT OR REPLACE INTO {table} ({names}) VALUES ({marks})", values)  # noqa: S608
    id_ = cursor.lastrowid or 0
    connection.execute(f"UPDATE {table} SET crc = checksum({names}) WHERE rowid = ?", (id_,))  # noqa: S608
    return id_


def keep_spare(connection: sqlite3.Connection, content: bytes) -> None:
    """Replace the second copy of the metadata."""
    connection.execute(SPARE)
    connection.execute("DELETE FROM spare")
    connection.execute("INSERT INTO spare (content, crc) VALUES (?, ?)", (content, checksum(content)))


def read_spare(connection: sqlite3.Connection) -> bytes | None:
    """The second copy of the metadata; None if there is none, or it is damaged."""
    try:
        rows = connection.execute("SELECT content, crc FROM spare").fetchall()
    except sqlite3.DatabaseError:  # also of an index that no version with this table has written
        return None
    return next((content for content, crc in rows if crc == checksum(content)), None)


def is_word_index_intact(connection: sqlite3.Connection) -> bool:
    """Whether `word_index` has the words of all rows of `words`.

    Checked in a temporary copy, as the check of FTS5 is a command that writes, which a reader may not do.
    """
    with closing(sqlite3.connect("")) as copy:
        copy.execute(WORDS)
        copy.execute(WORD_INDEX)
        for table in ("words", *WORD_TABLES):
            rows = connection.execute(f"SELECT * FROM {table}")  # noqa: S608 (fixed names)
            marks = ", ".join("?" * len(rows.description))
            copy.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", rows)  # noqa: S608
        try:
            copy.execute("INSERT INTO word_index (word_index, rank) VALUES ('integrity-check', 1)")
        except sqlite3.DatabaseError as error:
            if EXTERNAL.search(str(error)):
                raise
            return False
    return True


def checksum(*values: Any) -> int:
    """CRC-32 of values of SQLite, the same in every version of Python.

    Computed over JSON, not repr: the characters that repr escapes depend on the interpreter's Unicode tables.
    """
    crc = zlib.crc32(json.dumps(values, default=lambda blob: [len(blob)]).encode())  # a list, unlike any number
    for value in values:
        if isinstance(value, bytes):
            crc = zlib.crc32(value, crc)
    return crc
