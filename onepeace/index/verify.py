"""Is an index what was written? And what to do if not. Neither opens a derived structure: those are made anew."""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from onepeace.errors import UserError
from onepeace.files.atomic import sync, write_atomic
from onepeace.index.store import BACKUP, COLUMNS, DATABASE, FORMAT, SCHEMA, Store, checksum, damaged

DERIVED = "derived"


@dataclass
class Findings:
    """What is wrong with an index; nothing, if the lists are empty."""

    database: list[str] = field(default_factory=list)
    """What SQLite says of its file."""
    items: list[int] = field(default_factory=list)
    """Ids of files whose row or vectors are not what was written."""
    files: int = 0
    vectors: int = 0
    """How many were looked at."""

    @property
    def ok(self) -> bool:
        return not self.database and not self.items


def verify(folder: Path) -> Findings:
    """Check the database, the checksum of every row in it, and those of the vectors.

    Raises:
        UserError: no index there, or one of another format.
    """
    findings = Findings()
    try:
        store = Store(folder)
    except UserError as error:
        if isinstance(error.__cause__, sqlite3.DatabaseError):
            findings.database.append(str(error.__cause__))
            return findings
        raise
    with closing(store):
        try:
            said = [line for (line,) in store.connection.execute("PRAGMA integrity_check(20)")]
            findings.database += [line for line in said if line != "ok"]
            findings.items = sorted(_wrong_rows(store) | _wrong_vectors(store))
            findings.files = store.connection.execute("SELECT count(*) FROM files").fetchone()[0]
            findings.vectors = store.connection.execute("SELECT count(*) FROM vectors").fetchone()[0]
        except (sqlite3.DatabaseError, ValueError, TypeError, OverflowError) as error:
            findings.database.append(str(error))
    return findings


def repair(folder: Path) -> int:
    """Make an index sound again; gives how many files have to be embedded again, which `update` or `build` does.

    A damaged database is read as far as that goes, and its backup for the rest; files whose row or vectors are damaged
    are forgotten. Derived structures are removed: they are made again when they are needed.

    Raises:
        UserError: neither the database nor its backup can be read.
    """
    shutil.rmtree(folder / DERIVED, ignore_errors=True)
    if verify(folder).database:
        _rescue(folder)
    store = Store(folder, write=True)
    with closing(store):
        wrong = _wrong_rows(store) | _wrong_vectors(store)
        store.remove(wrong)
        store.compact()
        store.backup()
        return len(wrong)


def _wrong_rows(store: Store) -> set[int]:
    sql = f"SELECT id, crc, {', '.join(COLUMNS)} FROM files"  # noqa: S608 (fixed names)
    return {id_ for id_, crc, *row in store.connection.execute(sql) if crc != checksum(row)}


def _wrong_vectors(store: Store) -> set[int]:
    """Files with a vector in a block that was changed, or outside of every block."""
    owners = store.connection.execute("SELECT row, file FROM vectors ORDER BY row").fetchall()
    rows = np.array([row for row, _ in owners], np.int64)
    files = np.array([file for _, file in owners], np.int64)
    good = np.zeros(len(rows), bool)
    for block in store.blocks():
        if store.vector_file.is_intact(block):
            good[slice(*np.searchsorted(rows, [block.first, block.first + block.count]))] = True
    # A good file without a vector was written half: its vectors' rows were damaged.
    sql = "SELECT id FROM files WHERE problem IS NULL AND id NOT IN (SELECT file FROM vectors)"
    bare = {id_ for (id_,) in store.connection.execute(sql)}
    return {int(file) for file in files[~good]} | bare


def _rescue(folder: Path) -> None:
    """A new database of what can be read of the old one and of its backup."""
    tables: dict[str, dict[object, tuple]] = {}
    for name in (BACKUP, DATABASE):  # what the database itself says comes last, and wins
        for table, key, row in _readable(folder / name):
            tables.setdefault(table, {})[key] = row
    meta = dict(row for row in tables.get("meta", {}).values())
    needed = {"format_version", "embed_dim", "vectors", "model", "model_hash", "preprocessing"}
    if missing := sorted(needed - meta.keys()):
        lost = f"neither it nor its backup says {', '.join(missing)}"
        raise UserError(f"{folder / DATABASE}: cannot be repaired, {lost}; build the index anew in a new folder")
    if meta["format_version"] != str(FORMAT):
        raise damaged(folder, f"format {meta['format_version']}")
    with write_atomic(folder / DATABASE) as temporary, closing(sqlite3.connect(temporary)) as connection:
        connection.executescript(SCHEMA)
        for table, rows in tables.items():
            for row in rows.values():
                marks = ", ".join("?" * len(row))
                try:
                    connection.execute(f"INSERT INTO {table} VALUES ({marks})", row)  # noqa: S608 (from SCHEMA)
                except sqlite3.Error:
                    continue  # two rows of one path, or a value that no column takes: damaged
        connection.execute("DELETE FROM vectors WHERE file NOT IN (SELECT id FROM files)")
        connection.commit()
    for ending in ("-wal", "-shm"):  # of the old database
        Path(f"{folder / DATABASE}{ending}").unlink(missing_ok=True)
    sync(folder)


def _readable(path: Path) -> Iterator[tuple[str, object, tuple]]:
    """(table, primary key, row) of all that a database still gives."""
    if not path.is_file():
        return
    for table in ("meta", "roots", "files", "vectors", "blocks"):
        with closing(sqlite3.connect(path)) as connection:
            try:
                for row in connection.execute(f"SELECT * FROM {table}"):  # noqa: S608 (fixed names)
                    yield table, row[0], row
            except sqlite3.DatabaseError:
                continue  # the rest of this table cannot be read
