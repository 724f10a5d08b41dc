"""Connections to the SQLite database of an index, and what their errors mean. Knows nothing of what is in it."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from onepeace.errors import UserError
from onepeace.files.atomic import sync, write_atomic

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
"""What SQLite says when the fault is not in its file. A repair would be no remedy, and could cost what is there."""


class Damaged(UserError):
    """An index that is not what was written; `onepeace index check --repair` is the remedy.

    Args:
        folder: of the index.
        reason: what is wrong.
    """

    def __init__(self, folder: Path, reason: object) -> None:
        self.reason = str(reason)
        super().__init__(f"{folder}: the index is damaged ({reason}); run: onepeace index check {folder} --repair")


@contextmanager
def failing(folder: Path, doing: str) -> Iterator[None]:
    """Errors of SQLite and of the disk in the block become those for people.

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


def writer(path: Path) -> sqlite3.Connection:
    """For the one process that writes: what is committed is on the disk, and readers do not wait."""
    connection = _connect(path, "mode=rw", timeout=60)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


def reader(path: Path) -> sqlite3.Connection:
    """Connection for any number of processes that read; it may be used by several threads.

    SQLite shares a file beside the database with a writer (-shm). Where that cannot be made (a folder that is not
    writable, a full disk), the database is read as one that nobody changes, unless a writer has left a log.

    Raises:
        UserError: it cannot be read so, as a writer has not finished; sqlite3.Error.
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


@contextmanager
def write_database(path: Path) -> Iterator[sqlite3.Connection]:
    """A new database that takes the place of the one at ``path``, safe on the disk, when the block ends.

    What SQLite kept beside the old one is lost before: its log would be applied to the new one.

    Raises:
        OSError, sqlite3.Error: the disk is full or not writable; ``path`` is as it was, but for that log.
    """
    with write_atomic(path) as temporary:
        _remove_beside(temporary)
        with closing(sqlite3.connect(temporary, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous = OFF")  # write_atomic waits for the disk at the end
            connection.execute("PRAGMA journal_mode = MEMORY")
            yield connection
        if _remove_beside(path):
            sync(path.parent)


def _remove_beside(path: Path) -> bool:
    there = [Path(f"{path}{ending}") for ending in BESIDE if os.path.exists(f"{path}{ending}")]
    for one in there:
        one.unlink()
    return bool(there)


def _connect(path: Path, how: str, **options: object) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True, isolation_level=None, **options)  # type: ignore[call-overload]
