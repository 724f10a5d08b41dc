"""Check an index for damage, and repair it."""

import os
import secrets
import shlex
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onepeace.errors import UserError
from onepeace.index.database import (
    COLUMNS,
    DATABASE,
    EXTERNAL,
    PAGE,
    Damaged,
    checksum,
    connect,
    failing,
    insert,
    is_cut,
    is_word_index_intact,
    keep_spare,
    read_spare,
    write_database,
)
from onepeace.index.lock import writing
from onepeace.index.matrix import faults, keep, remove_derived
from onepeace.index.roots import known_roots
from onepeace.index.store import Store
from onepeace.index.wal import hides_commits

INCOMPLETE = (
    "vectors IS NOT (SELECT count(*) FROM vectors AS own WHERE own.file = files.id)"
    " OR id NOT IN (SELECT file FROM words)"
)
ORPHANS = "file NOT IN (SELECT id FROM files)"
"""SQL conditions for files that lack vectors or words, and for vectors and words that lack their file."""
VERSIONS = (b"\1\1", b"\2\2")
"""Versions to write and to read the file, in its header."""
LOG_LOST = "hides what was written last"


@dataclass
class CheckReport:
    """Faults of an index, which is intact if `damaged` is empty."""

    folder: Path
    files: int = 0
    """Files that have vectors."""
    damaged: list[str] = field(default_factory=list)
    """One line per fault."""
    repaired: bool = False
    lost: int = 0
    """Number of files that `update` has to embed again."""
    log_lost: bool = False
    """Whether the files that were written last are among them, in an unknown number."""
    paths_lost: bool = False
    """Whether the paths that the index was built from were lost, so that `update` has nothing to scan."""

    @property
    def ok(self) -> bool:
        return not self.damaged

    def __str__(self) -> str:
        folder = shlex.quote(str(self.folder))
        if self.ok:
            return f"the index is intact; files with vectors: {self.files:,}"
        if not self.repaired:
            return "\n".join([*self.damaged, f"run: onepeace index check {folder} --repair"])
        if self.paths_lost:
            return f"repaired; the paths it was built from are lost, run: onepeace index build {folder} PATHS"
        if self.log_lost:
            return f"repaired; what was written last is lost, run: onepeace index update {folder}"
        if self.lost:
            return f"repaired; files to be embedded again: {self.lost:,}, run: onepeace index update {folder}"
        return "repaired, and nothing was lost"


def check(folder: str | os.PathLike[str], *, repair: bool = False) -> CheckReport:
    """Compare every row, vector and file of an index with its checksum.

    Args:
        repair: copy the intact rows to a new database, and rebuild the files derived from it.

    Raises:
        UserError: there is no index, it has another format, it cannot be read or written, or another process is
            writing.
    """
    if not repair:
        return _checked(Path(folder))
    with writing(folder) as target:
        report = _checked(target)
        if report.ok:
            with closing(Store(target, write=True)) as store:
                keep(store)  # what a repair has not written that was killed at its end
        else:
            _repair(report)
        return report


def _checked(folder: Path) -> CheckReport:
    report = CheckReport(folder)
    try:
        with closing(Store(folder)) as store, failing(folder, "read"):
            for fault in _faults(store):
                if fault not in report.damaged:  # SQLite may report one twice
                    report.damaged.append(fault)
            report.files = store.count("problem IS NULL")
    except Damaged as error:
        report.damaged.append(error.damage)
    return report


def _faults(store: Store) -> Iterator[str]:
    """Yield one line for each fault of an index."""
    yield from _faults_of_pages(store)
    yield from _faults_of_rows(store)
    if not is_word_index_intact(store.connection):
        yield "the index of words is not what was written"
    if store.select("SELECT 1 FROM sqlite_schema WHERE name = 'spare'") and read_spare(store.connection) is None:
        yield "the second copy of the metadata is not what was written"
    if hides_commits(store.folder / DATABASE):
        yield f"{DATABASE}-wal is not what was written: it {LOG_LOST}"
    yield from faults(store)


def _faults_of_pages(store: Store) -> Iterator[str]:
    for (line,) in store.select("PRAGMA integrity_check(20)"):
        if line != "ok":
            yield line
    with open(store.folder / DATABASE, "rb") as file:
        versions = file.read(20)[18:]
    if versions not in VERSIONS:  # SQLite silently opens an unknown one read-only
        yield "the header of the database is not what was written"


def _faults_of_rows(store: Store) -> Iterator[str]:
    conditions = []
    for table, columns in COLUMNS.items():
        conditions.append((table, f"crc IS NOT checksum({', '.join(columns)})"))
    conditions += [("files", INCOMPLETE), ("vectors", ORPHANS), ("words", ORPHANS)]
    for table, condition in conditions:
        ((number,),) = store.select(f"SELECT count(*) FROM {table} WHERE {condition}")  # noqa: S608 (fixed names)
        if number:
            yield f"{table}: rows that are not what was written: {number}"


def _repair(report: CheckReport) -> None:
    """Repair an index, while no other process writes to it, and complete the report."""
    report.log_lost = any(LOG_LOST in fault for fault in report.damaged)
    with failing(report.folder, "written"):
        report.lost = _rebuild(report.folder)
        with closing(Store(report.folder)) as store:
            report.paths_lost = bool(store.count()) and not known_roots(store)
    report.repaired = True


def _rebuild(folder: Path) -> int:
    """Put the intact rows into a new database.

    Returns:
        The number of files to embed again, as far as known.
    """
    remove_derived(folder)
    database = folder / DATABASE
    _complete_last_page(database)
    with closing(connect(database, "mode=rw")) as old, write_database(database) as new:
        old.execute("PRAGMA writable_schema = ON")  # else SQLite reads nothing from a truncated file
        num_files = _copy_intact(old, new)
        new.execute(f"DELETE FROM files WHERE {INCOMPLETE}")  # noqa: S608 (fixed names)
        for table in ("vectors", "words"):
            new.execute(f"DELETE FROM {table} WHERE {ORPHANS}")  # noqa: S608
        new.execute("INSERT INTO word_index (word_index) VALUES ('rebuild')")
        _copy_metadata(old, new, folder)
        ((num_intact,),) = new.execute("SELECT count(*) FROM files")
    with closing(Store(folder, write=True)) as store:
        with store.transaction():
            store.meta["removed"] = str(int(store.meta["removed"]) + 1)
            store.meta["id"] = secrets.token_hex(8)  # ids may be reused, so a vector database starts over
        keep(store)
    return num_files - num_intact


def _complete_last_page(database: Path) -> None:
    """Fill up a file that ends within a page, of which SQLite would read nothing."""
    size = database.stat().st_size
    if is_cut(database):
        os.truncate(database, size + PAGE - size % PAGE)


def _copy_intact(old: sqlite3.Connection, new: sqlite3.Connection) -> int:
    """Copy the rows that have their checksum; returns the number of files that the old database has at least."""
    files = set()
    for table in COLUMNS:
        for *row, crc in _readable(old, table):
            if table == "files":
                files.add(row[0])
            if crc == checksum(*row):
                insert(new, table, row)
    return len(files)


def _copy_metadata(old: sqlite3.Connection, new: sqlite3.Connection, folder: Path) -> None:
    """Make both copies of the metadata from the one that is intact."""
    row = new.execute("SELECT content FROM blobs WHERE name = 'meta'").fetchone()
    content = row[0] if row else read_spare(old)
    if content is None:
        raise UserError("cannot be repaired, as its metadata is missing; delete it and build it again", where=folder)
    insert(new, "blobs", ("meta", content))
    keep_spare(new, content)


def _readable(connection: sqlite3.Connection, table: str) -> Iterator[tuple[Any, ...]]:
    """Rows of a table from the first one on; if one cannot be read, also from the last one backwards."""
    for order in ("ASC", "DESC"):
        sql = f"SELECT {', '.join(COLUMNS[table])}, crc FROM {table} ORDER BY rowid {order}"  # noqa: S608 (fixed names)
        try:
            yield from connection.execute(sql)
            return
        except sqlite3.DatabaseError as error:
            if EXTERNAL.search(str(error)):  # else rows would be lost that may be readable later
                raise
