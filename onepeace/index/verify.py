"""Is an index what was written? And what to do if not."""

import os
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onepeace.errors import UserError
from onepeace.index import nearest
from onepeace.index.database import ELSEWHERE, Damaged, failing, write_database
from onepeace.index.store import (
    COLUMNS,
    DATABASE,
    VECTOR_COLUMNS,
    Store,
    checksum,
    checksum_of_meta,
    checksum_of_vector,
    create_tables,
    read_meta,
)

MAX_KEY = (1 << 63) - 1


@dataclass
class CheckReport:
    """Faults of an index; none, if `damaged` is empty."""

    files: int = 0
    damaged: list[str] = field(default_factory=list)
    """A line each."""
    repaired: bool = False
    lost: int = 0
    """Files that have to be embedded again, which `update` does."""

    @property
    def ok(self) -> bool:
        return not self.damaged

    def __str__(self) -> str:
        if self.ok:
            return f"all {self.files} files are as they were written"
        if self.repaired:
            return f"repaired; {self.lost} files have to be embedded again: onepeace index update"
        return "\n".join([*self.damaged, "run: onepeace index check INDEX --repair"])


def check(folder: str | os.PathLike[str], *, repair: bool = False) -> CheckReport:
    """Compare every row, vector and file of an index with its checksum.

    Args:
        repair: keep all that is what was written, in a new database if the old one is damaged as a whole, and make anew
            what is derived from it.

    Raises:
        UserError: no index there, one of another format, one that cannot be read or written, or another process is
            writing.
    """
    target = Path(folder)
    if not repair:
        return _check(target)
    from onepeace.index.write import writing

    if not (target / DATABASE).is_file():
        Store(target)  # says what is missing
    with writing(target):
        report = _check(target)
        if not report.ok:
            report.lost = _repair(target)
            report.repaired = True
        return report


def _check(folder: Path) -> CheckReport:
    report = CheckReport()
    try:
        with closing(Store(folder)) as store, failing(folder, "read"):
            store.connection.text_factory = _any_text
            found = store.connection.execute("PRAGMA integrity_check(20)")
            report.damaged += [line for (line,) in found if line != "ok"]
            report.damaged += _header_faults(folder / DATABASE)
            (orphans,) = store.select("SELECT count(*) FROM vectors WHERE file NOT IN (SELECT id FROM files)")[0]
            report.damaged += [f"{orphans} vectors of no file"] * bool(orphans)
            store.roots()
            for (name,) in store.select("SELECT name FROM blobs"):
                store.blob(name)
            report.files = store.count()
            wrong = list(_wrong(store))
            report.damaged += [f"{len(wrong)} files are not what was written"] * bool(wrong)
            report.damaged += [fault for fault in [nearest.fault_of(store)] if fault]
    except Damaged as error:
        report.damaged.append(error.reason)
    return report


def _wrong(store: Store) -> Iterator[int]:
    """Ids of the files whose row, or a vector of theirs, is not what was written."""
    crcs = defaultdict(list)
    wrong = set()
    sql = f"SELECT {', '.join(VECTOR_COLUMNS)} FROM vectors ORDER BY file, id"  # noqa: S608 (fixed names)
    for *place, blob, crc in store.connection.execute(sql):
        crcs[place[0]].append(crc)
        if len(blob) != 4 * store.embed_dim or checksum_of_vector(place, blob) != crc:
            wrong.add(place[0])
    for id_, crc, *row in store.connection.execute(f"SELECT id, crc, {', '.join(COLUMNS)} FROM files"):  # noqa: S608
        if id_ in wrong or crc != checksum([id_, *row, *crcs[id_]]):
            yield id_


def _repair(folder: Path) -> int:
    """Make an index sound again, while no other process writes to it.

    Returns:
        The number of files that have to be embedded again.
    """
    for name in (nearest.MATRIX, nearest.LISTS):
        (folder / name).unlink(missing_ok=True)
    try:
        before = _copy_sound(folder / DATABASE)
    except sqlite3.Error as error:
        raise UserError(f"{folder}: cannot be repaired ({error}); delete it and build it again") from error
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error})") from error
    with closing(Store(folder, write=True)) as store:
        nearest.keep(store)
        return max(0, before - store.count())


def _copy_sound(path: Path) -> int:
    """Write a database of all rows that are what was written, in the place of the old one; gives how many files were
    seen."""
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None)) as old:
        old.execute("PRAGMA writable_schema = ON")  # else SQLite reads nothing of a file that was cut short
        old.text_factory = _any_text
        meta = read_meta(old)
        if meta.get("crc") != checksum_of_meta(meta):
            raise sqlite3.DatabaseError("it does not say of which model it is")
        vectors = defaultdict(list)
        for _, *row in _readable(old, "vectors", ("id", *VECTOR_COLUMNS)):
            *place, blob, crc = row
            is_whole = isinstance(blob, bytes) and len(blob) == 4 * int(meta["embed_dim"])
            if is_whole and checksum_of_vector(place, blob) == crc:
                vectors[place[0]].append(row)
        seen, files = 0, {}
        for id_, crc, *row in _readable(old, "files", ("id", "crc", *COLUMNS)):
            seen += 1
            if crc == checksum([id_, *row, *(vector[-1] for vector in vectors[id_])]):
                files[id_] = (id_, crc, *row)
        roots = [row for row in _readable(old, "roots", ("path", "options", "crc")) if checksum(row[:2]) == row[2]]
        with write_database(path) as new:
            create_tables(new, {**meta, "removed": str(int(meta["removed"]) + 1)})
            new.execute("BEGIN")
            _insert(new, "files", ("id", "crc", *COLUMNS), files.values())
            _insert(new, "vectors", VECTOR_COLUMNS, (row for id_ in files for row in vectors[id_]))
            _insert(new, "roots", ("path", "options", "crc"), roots)
            new.execute("COMMIT")
    return seen


def _insert(connection: sqlite3.Connection, table: str, names: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    sql = f"INSERT OR IGNORE INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"  # noqa: S608
    connection.executemany(sql, rows)


def _readable(connection: sqlite3.Connection, table: str, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """Rows of a table by the first of its columns; if that is a number, also those behind pages that cannot be read."""
    sql = f"SELECT {', '.join(names)} FROM {table} WHERE {names[0]} > ? ORDER BY {names[0]}"  # noqa: S608 (fixed names)
    last: Any = b"" if table == "roots" else -1
    step = 1
    while last == b"" or last < MAX_KEY:
        try:
            for row in connection.execute(sql, (last,)):
                yield row
                last, step = row[0], 1
            return
        except sqlite3.DatabaseError as error:
            if str(error) in ELSEWHERE:  # go on without what a disk does not give now, and it would be lost for good
                raise
            if table == "roots":
                return
            last, step = last + step, 2 * step


def _header_faults(path: Path) -> list[str]:
    """SQLite takes a damaged version for writing as a wish not to be written to."""
    with open(path, "rb") as file:
        header = file.read(20)
    return [] if header[18:20] in (b"\1\1", b"\2\2") else ["the header of the database is not what was written"]


def _any_text(content: bytes) -> str:
    """A text whose bytes may be damaged: its checksum will say so."""
    return content.decode("utf-8", "surrogateescape")
