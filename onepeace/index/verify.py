"""Check an index for damage, and repair it."""

import os
import secrets
import shlex
import sqlite3
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onepeace.errors import UserError
from onepeace.index import nearest
from onepeace.index.database import (
    COLUMNS,
    DATABASE,
    EXTERNAL,
    Damaged,
    checksum,
    connect,
    failing,
    insert,
    write_database,
)
from onepeace.index.sources import known_roots
from onepeace.index.store import Store

INCOMPLETE = "vectors IS NOT (SELECT count(*) FROM vectors AS own WHERE own.file = files.id)"
ORPHANS = "file NOT IN (SELECT id FROM files)"
"""SQL conditions for files that lack vectors, and for vectors that lack their file."""


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
    paths_lost: bool = False
    """Whether the paths that the index was built from were lost, so that `update` has nothing to scan."""

    @property
    def ok(self) -> bool:
        return not self.damaged

    def __str__(self) -> str:
        if self.ok:
            return f"the index is intact; files with vectors: {self.files:,}"
        folder = shlex.quote(str(self.folder))
        if self.paths_lost:
            return f"repaired; the paths it was built from are lost, run: onepeace index build {folder} PATHS"
        if self.repaired:
            again = f"; files to be embedded again: {self.lost:,}, run: onepeace index update {folder}"
            return f"repaired{again if self.lost else ', and nothing was lost'}"
        return "\n".join([*self.damaged, f"run: onepeace index check {folder} --repair"])


def check(folder: str | os.PathLike[str], *, repair: bool = False) -> CheckReport:
    """Compare every row, vector and file of an index with its checksum.

    Args:
        repair: copy the intact rows to a new database, and rebuild the files derived from it.

    Raises:
        UserError: there is no index, it has another format, it cannot be read or written, or another process is
            writing.
    """
    from onepeace.index.write import writing

    with writing(folder) if repair else nullcontext(Path(folder)) as target:
        report = CheckReport(target)
        try:
            with closing(Store(target)) as store, failing(target, "read"):
                report.damaged += _faults(store)
                report.files = store.count("problem IS NULL")
        except Damaged as error:
            report.damaged.append(error.reason)
        report.damaged = [*dict.fromkeys(report.damaged)]  # SQLite may report a fault twice
        if repair and not report.ok:
            with failing(target, "written"):
                report.lost = _repair(target)
                with closing(Store(target)) as store:
                    report.paths_lost = bool(store.count()) and not known_roots(store)
            report.repaired = True
        return report


def _faults(store: Store) -> Iterator[str]:
    yield from (line for (line,) in store.select("PRAGMA integrity_check(20)") if line != "ok")
    with open(store.folder / DATABASE, "rb") as file:  # SQLite silently opens an unknown format read-only
        if file.read(20)[18:] not in (b"\1\1", b"\2\2"):
            yield "the header of the database is not what was written"
    wrong = {table: f"crc IS NOT checksum({', '.join(names)})" for table, names in COLUMNS.items()}
    for table, condition in (*wrong.items(), ("files", INCOMPLETE), ("vectors", ORPHANS)):
        ((count,),) = store.select(f"SELECT count(*) FROM {table} WHERE {condition}")  # noqa: S608 (fixed names)
        if count:
            yield f"{table}: rows that are not what was written: {count}"
    for path in nearest.derived(store.folder):
        if nearest.intact(path) is None:
            yield f"{path.name} is not what was written"


def _repair(folder: Path) -> int:
    """Repair an index, while no other process writes to it.

    Returns:
        The number of files to embed again, as far as known.
    """
    for path in nearest.derived(folder):
        path.unlink()
    seen = set()
    with closing(connect(folder / DATABASE, "mode=rw")) as old, write_database(folder / DATABASE) as new:
        old.execute("PRAGMA writable_schema = ON")  # else SQLite reads nothing from a truncated file
        for table in COLUMNS:
            for *row, crc in _readable(old, table):
                if table == "files":
                    seen.add(row[0])
                if crc == checksum(*row):
                    insert(new, table, row)
        new.execute(f"DELETE FROM files WHERE {INCOMPLETE}")  # noqa: S608 (fixed names)
        new.execute(f"DELETE FROM vectors WHERE {ORPHANS}")  # noqa: S608
        ((kept, has_meta),) = new.execute(
            "SELECT count(*), EXISTS (SELECT 1 FROM blobs WHERE name = 'meta') FROM files"
        )
        if not has_meta:
            raise UserError(f"{folder}: cannot be repaired, as its metadata is missing; delete it and build it again")
    with closing(Store(folder, write=True)) as store:
        with store.transaction():
            store.meta["removed"] = str(int(store.meta["removed"]) + 1)
            store.meta["id"] = secrets.token_hex(8)  # ids may be reused, so a vector database starts over
        nearest.keep(store)
    return len(seen) - kept


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
