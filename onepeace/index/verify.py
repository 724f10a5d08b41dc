"""Is an index what was written? And what to do if not."""

import json
import os
import sqlite3
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onepeace.errors import UserError
from onepeace.index import nearest
from onepeace.index.store import (
    COLUMNS,
    DATABASE,
    ELSEWHERE,
    VECTOR_COLUMNS,
    Damaged,
    Store,
    insert,
    is_sound,
    keep,
    write_database,
)

MAX_KEY = (1 << 63) - 1
BATCH = 256
"""Files that are compared with their checksums at once."""


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
        repair: keep all that is what was written, in a new database, and make anew what is derived from it.

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
        with closing(Store(folder)) as store:
            report.damaged += [line for (line,) in store.select("PRAGMA integrity_check(20)") if line != "ok"]
            with open(folder / DATABASE, "rb") as file:  # SQLite takes another version for a wish not to be written to
                if file.read(20)[18:] not in (b"\1\1", b"\2\2"):
                    report.damaged.append("the header of the database is not what was written")
            (orphans,) = store.select("SELECT count(*) FROM vectors WHERE file NOT IN (SELECT id FROM files)")[0]
            report.damaged += [f"{orphans} vectors of no file"] * bool(orphans)
            for (name,) in store.select("SELECT name FROM kept"):
                store.blob(name)
            ids = store.ids("1").tolist()
            report.files, wrong = len(ids), 0
            for some in (ids[first : first + BATCH] for first in range(0, len(ids), BATCH)):
                if not _is_intact(store, some):
                    wrong += sum(not _is_intact(store, [id_]) for id_ in some)
            report.damaged += [f"{wrong} files are not what was written"] * bool(wrong)
            report.damaged += [fault for fault in [nearest.fault_of(folder)] if fault]
    except Damaged as error:
        report.damaged.append(error.reason)
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror or error})") from error
    return report


def _is_intact(store: Store, ids: Sequence[int]) -> bool:
    try:
        return len(store.intact(ids)) == len(ids)
    except Damaged:
        return False


def _repair(folder: Path) -> int:
    """Make an index sound again, while no other process writes to it.

    Returns:
        The number of files that have to be embedded again.
    """
    for path in nearest.derived(folder):
        path.unlink()
    try:
        lost = _copy_sound(folder / DATABASE)
    except sqlite3.Error as error:
        raise UserError(f"{folder}: cannot be repaired ({error}); delete it and build it again") from error
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error})") from error
    with closing(Store(folder, write=True)) as store:
        nearest.keep(store)
    return lost


def _copy_sound(path: Path) -> int:
    """Replace a database by one of all its rows that are what was written; gives how many files were left out."""
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None)) as old:
        old.execute("PRAGMA writable_schema = ON")  # else SQLite reads nothing of a file that was cut short
        old.text_factory = _any_text
        kept = {name: content for name, content, crc in _readable(old, "kept", "name", ("content", "crc"))
                if isinstance(content, bytes) and zlib.crc32(content) == crc}  # fmt: skip
        if "meta" not in kept:
            raise sqlite3.DatabaseError("it does not say of which model it is")
        meta = json.loads(kept.pop("meta"))
        meta["removed"] = str(int(meta["removed"]) + 1)
        vectors = defaultdict(list)
        for _, file, *rest in _readable(old, "vectors", "id", VECTOR_COLUMNS):
            vectors[file].append((file, *rest))
        seen = [*_readable(old, "files", "id", ("crc", *COLUMNS))]
        files = {row[2]: row for row in seen if is_sound(row, vectors[row[0]])}  # by path
        with write_database(path) as new:
            for name, content in {**kept, "meta": json.dumps(meta).encode()}.items():
                keep(new, name, content)
            insert(new, "files", ("id", "crc", *COLUMNS), files.values())
            insert(new, "vectors", VECTOR_COLUMNS, (row for id_, *_ in files.values() for row in vectors[id_]))
    return len(seen) - len(files)


def _readable(connection: sqlite3.Connection, table: str, key: str, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """Rows of a table by its key; if that is a number, also those behind pages that cannot be read."""
    sql = f"SELECT {key}, {', '.join(names)} FROM {table} WHERE {key} > ? ORDER BY {key}"  # noqa: S608 (fixed names)
    last: Any = "" if key == "name" else -1
    step = 1
    while last == "" or last < MAX_KEY:
        try:
            for row in connection.execute(sql, (last,)):
                yield row
                last, step = row[0], 1
            return
        except sqlite3.DatabaseError as error:
            if str(error) in ELSEWHERE:  # go on without what a disk does not give now, and it would be lost for good
                raise
            if isinstance(last, str):
                return
            last, step = last + step, 2 * step


def _any_text(content: bytes) -> str:
    """A text whose bytes may be damaged: its checksum will say so."""
    return content.decode("utf-8", "surrogateescape")
