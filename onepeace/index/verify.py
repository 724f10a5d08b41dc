"""Is an index what was written? And what to do if not."""

import json
import os
import shutil
import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onepeace.errors import UserError
from onepeace.files.atomic import sync
from onepeace.index import nearest, text_branch
from onepeace.index.database import BESIDE, ELSEWHERE, Damaged, failing, write_database
from onepeace.index.store import (
    COLUMNS,
    DATABASE,
    IDENTITY,
    PAGE,
    VECTOR_COLUMNS,
    Store,
    checksum,
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
        closing(Store(target))  # says what is missing
    with writing(target):
        report = _check(target)
        if not report.ok:
            _repair(target, report)
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
            report.damaged += [fault for fault in (nearest.fault_of(store), text_branch.fault_of(store)) if fault]
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


def _repair(folder: Path, report: CheckReport) -> None:
    """Make an index sound again; the caller holds the lock of writers."""
    for name in (nearest.MATRIX, nearest.LISTS):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / text_branch.FOLDER, ignore_errors=True)
    try:
        before = _copy_sound(folder)
        with closing(Store(folder, write=True)) as store:
            report.lost = max(0, before - store.count())
            nearest.keep(store)
    except sqlite3.Error as error:
        raise UserError(f"{folder}: cannot be repaired ({error}); build the index anew in a new folder") from error
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error})") from error


def _copy_sound(folder: Path) -> int:
    """Write a new database of all rows that are what was written; gives how many files were seen."""
    path = folder / DATABASE
    scratch = folder / f".{DATABASE}.read.tmp"
    _copy_with_sound_schema(path, scratch)
    try:
        uri = f"{scratch.absolute().as_uri()}?mode=rw"
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as old:
            old.text_factory = _any_text
            meta = _meta(old, folder)
            vectors = defaultdict(list)
            for _, *row in _readable(old, "vectors", ("id", *VECTOR_COLUMNS)):
                *place, blob, crc = row
                is_right = isinstance(blob, bytes) and len(blob) == 4 * int(meta["embed_dim"])
                if is_right and checksum_of_vector(place, blob) == crc:
                    vectors[place[0]].append(row)
            seen, files = 0, []
            for id_, crc, *row in _readable(old, "files", ("id", "crc", *COLUMNS)):
                seen += 1
                if crc == checksum([id_, *row, *(vector[-1] for vector in vectors[id_])]):
                    files.append((id_, crc, *row))
            roots = [row for row in _readable_by_path(old) if checksum(list(row[:2])) == row[2]]
            with write_database(path) as new:
                create_tables(new, {**meta, "removed": str(int(meta["removed"]) + 1)})
                new.execute("BEGIN")
                marks = ", ".join("?" * (len(COLUMNS) + 2))
                names = ", ".join(("id", "crc", *COLUMNS))
                new.executemany(f"INSERT OR IGNORE INTO files ({names}) VALUES ({marks})", files)  # noqa: S608
                names = ", ".join(VECTOR_COLUMNS)
                own = (row for id_, *_ in files for row in vectors[id_])
                new.executemany(f"INSERT INTO vectors ({names}) VALUES (?, ?, ?, ?, ?, ?)", own)  # noqa: S608
                new.executemany("INSERT INTO roots VALUES (?, ?, ?)", roots)
                new.execute("COMMIT")
    finally:
        for ending in ("", *BESIDE):
            Path(f"{scratch}{ending}").unlink(missing_ok=True)
    sync(folder)
    return seen


def _copy_with_sound_schema(path: Path, scratch: Path) -> None:
    """Copy a database and its log; if SQLite cannot read the schema in its first page, that of an empty index, which has
    its tables at the same places, stands in for it."""
    for ending in ("", "-wal"):
        if os.path.exists(f"{path}{ending}"):
            shutil.copyfile(f"{path}{ending}", f"{scratch}{ending}")
    try:
        with closing(sqlite3.connect(scratch)) as connection:
            names = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}
            header_is_sound = not _header_faults(scratch)
        if header_is_sound and {"meta", "roots", "files", "vectors"} <= names:
            return
    except sqlite3.DatabaseError as error:
        if str(error) in ELSEWHERE:
            raise
    empty = scratch.with_name(f".{DATABASE}.empty.tmp")
    with closing(sqlite3.connect(empty, isolation_level=None)) as connection:
        create_tables(connection, {})
        connection.execute("PRAGMA journal_mode = DELETE")
    page = bytearray(empty.read_bytes()[:PAGE])
    empty.unlink()
    page[28:32] = (scratch.stat().st_size // PAGE).to_bytes(4, "big")  # pages of the file
    page[32:40] = bytes(8)  # no list of free pages
    page[92:96] = page[24:28]
    with open(scratch, "r+b") as file:
        file.write(page)


def _meta(old: sqlite3.Connection, folder: Path) -> dict[str, str]:
    """What is known of the index as a whole: by its table, or by the file that was written when it was made."""
    from onepeace.index.store import checksum_of_meta

    try:
        meta = read_meta(old)
        if meta.get("crc") == checksum_of_meta(meta):
            return meta
    except (sqlite3.DatabaseError, TypeError, ValueError):
        pass
    try:
        return json.loads((folder / IDENTITY).read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder}: cannot be repaired, as neither {DATABASE} nor {IDENTITY} says what it is; build it anew"
        ) from error


def _readable(connection: sqlite3.Connection, table: str, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """Rows of a table by the first of its columns, a whole number; also those behind pages that cannot be read."""
    sql = f"SELECT {', '.join(names)} FROM {table} WHERE {names[0]} > ? ORDER BY {names[0]}"  # noqa: S608 (fixed names)
    last, step = -1, 1
    while last < MAX_KEY:
        try:
            for row in connection.execute(sql, (last,)):
                yield row
                last, step = max(last, row[0]), 1
            return
        except sqlite3.DatabaseError as error:
            if str(error) in ELSEWHERE:
                raise
            last, step = last + step, 2 * step


def _readable_by_path(connection: sqlite3.Connection) -> list[tuple[Any, ...]]:
    try:
        return connection.execute("SELECT path, options, crc FROM roots").fetchall()
    except sqlite3.DatabaseError as error:
        if str(error) in ELSEWHERE:
            raise
        return []


def _header_faults(path: Path) -> list[str]:
    """SQLite takes a damaged version for writing as a wish not to be written to."""
    with open(path, "rb") as file:
        header = file.read(20)
    return [] if header[18:20] in (b"\1\1", b"\2\2") else ["the header of the database is not what was written"]


def _any_text(content: bytes) -> str:
    """A text whose bytes may be damaged: its checksum will say so."""
    return content.decode("utf-8", "surrogateescape")
