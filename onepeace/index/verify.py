"""Is an index what was written? And what to do if not. Neither opens a derived structure: those are made anew."""

import shutil
import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from onepeace.errors import UserError
from onepeace.files.atomic import sync
from onepeace.index import checksums
from onepeace.index.candidates import DERIVED
from onepeace.index.database import ELSEWHERE, Damaged, failing, reader, write_database
from onepeace.index.store import BACKUP, COLUMNS, DATABASE, FORMAT, SCHEMA, Store, database_faults
from onepeace.index.vectors import VectorFile

MAX_KEY = (1 << 63) - 1


@dataclass
class Findings:
    """What is wrong with an index; nothing, if the lists are empty."""

    database: list[str] = field(default_factory=list)
    """Of the database as a whole."""
    backup: list[str] = field(default_factory=list)
    """Of its copy, which is not needed as long as the database is sound."""
    vector_file: list[str] = field(default_factory=list)
    items: list[int] = field(default_factory=list)
    """Ids of files whose row or vectors are not what was written."""
    files: int = 0
    vectors: int = 0
    """How many were looked at."""

    @property
    def ok(self) -> bool:
        return not self.lines()

    def lines(self) -> list[str]:
        """For people."""
        wrong = [f"{len(self.items)} files are not as they were written"] if self.items else []
        return [*self.database, *(f"{BACKUP}: {line}" for line in self.backup), *self.vector_file, *wrong]


def verify(folder: Path) -> Findings:
    """Check the database and its copy, the checksum of every row in it, and those of the vectors.

    Raises:
        UserError: no index there, one of another format, or one that cannot be read.
    """
    findings = Findings()
    try:
        with closing(Store(folder)) as store:
            connection = store.connection
            connection.text_factory = _any_text
            with failing(folder, "read"):
                findings.database += [*_header_faults(folder / DATABASE), *database_faults(connection)]
                findings.items = sorted(checksums.wrong_files(connection, COLUMNS) | _wrong_vectors(store))
                findings.files = store.count()
                (findings.vectors,) = connection.execute("SELECT count(*) FROM vectors").fetchone()
            if (there := store.vector_file.count()) < store.next_row():
                findings.vector_file.append(f"{store.vector_file.path.name} has {there} of {store.next_row()} vectors")
    except Damaged as error:
        findings.database.append(error.reason)
    findings.backup = _backup_faults(folder)
    return findings


def repair(folder: Path) -> int:
    """Make an index sound again; gives how many files, of those that are known, have to be embedded again, which
    `update` or `build` does.

    What is not what was written is forgotten. Of a damaged database all is kept that its checksums vouch for, and what
    its backup has beyond that. Derived structures are removed: they are made again when they are needed. The caller
    holds the lock of writers.

    Raises:
        UserError: neither the database nor its backup says what the index is; the disk is full or not writable.
    """
    shutil.rmtree(folder / DERIVED, ignore_errors=True)
    findings = verify(folder)
    lost = 0
    if findings.database:
        with failing(folder, "written"):
            lost = _rescue(folder)
    with closing(Store(folder, write=True)) as store:
        wrong = checksums.wrong_files(store.connection, COLUMNS) | _wrong_vectors(store)
        store.remove(wrong)
        store.compact()
        store.backup(anew=bool(findings.backup))
        return lost + len(wrong)


def _wrong_vectors(store: Store) -> set[int]:
    """Files with a vector that is not what was written."""
    sql = 'SELECT row, file, crc, modality, "start", "end" FROM vectors ORDER BY row'
    owners = store.connection.execute(sql).fetchall()
    return {
        owner[1] for owner, is_intact in zip(owners, _intact(owners, store.vector_file), strict=True) if not is_intact
    }


def _intact(owners: list[tuple[Any, ...]], file: VectorFile) -> list[bool]:
    """Of (row, file, checksum, modality, start, end) by row, whether the file has that vector there."""
    found = file.checksums(np.array([owner[0] for owner in owners], np.int64))
    return [
        crc is not None and checksums.checksum(owner[3:], crc) == owner[2]
        for owner, crc in zip(owners, found, strict=True)
    ]


def _header_faults(path: Path) -> list[str]:
    """SQLite takes a damaged version for writing as a wish not to be written to."""
    with open(path, "rb") as file:
        header = file.read(20)
    return [] if header[18:20] in (b"\1\1", b"\2\2") else ["the header of the database is not what was written"]


def _backup_faults(folder: Path) -> list[str]:
    if not (folder / BACKUP).is_file():
        return []  # of an index that is being made
    try:
        with failing(folder, "read"), closing(reader(folder / BACKUP)) as connection:
            connection.text_factory = _any_text
            faults = [*_header_faults(folder / BACKUP), *database_faults(connection)]
            wrong = checksums.wrong_files(connection, COLUMNS)
            return [*faults, *([f"{len(wrong)} files are not as they were written"] if wrong else [])]
    except Damaged as error:
        return [error.reason]


@dataclass
class _Copy:
    """What can still be read of a database."""

    meta: dict[str, str] | None
    """None if it is not what was written."""
    roots: list[tuple[Any, ...]]
    """Empty if they are not what was written."""
    files: list[tuple[Any, ...]]
    """(id, checksum, then COLUMNS)."""
    owners: list[tuple[Any, ...]]
    """(row, file, checksum, modality, start, end) by row."""


def _rescue(folder: Path) -> int:
    """A new database, and a new backup, of all that the old ones have and the checksums vouch for; gives how many files
    were seen and are lost."""
    copies = [_read_copy(folder / name) for name in (DATABASE, BACKUP) if (folder / name).is_file()]
    copies.sort(key=lambda copy: int(copy.meta["generation"]) if copy.meta else float("inf"), reverse=True)
    metas = [copy.meta for copy in copies if copy.meta is not None]
    if not metas:
        lost = "neither it nor its backup says what the index is"
        raise UserError(f"{folder / DATABASE}: cannot be repaired, {lost}; build the index anew in a new folder")
    meta = {**metas[0], "generation": max((one["generation"] for one in metas), key=int)}
    if meta["format_version"] != str(FORMAT):
        raise UserError(f"{folder}: an index of format {meta['format_version']}; this version repairs format {FORMAT}")
    # A damaged database may not say any more which file its rows are in: it is the one that fits most of them.
    named = {path.name for path in folder.glob("vectors-*.f32")} | {one["vectors"] for one in metas}
    candidates = [VectorFile(folder / name, int(meta["embed_dim"])) for name in sorted(named, reverse=True)]
    sound, file = max(((_sound(copies, file), file) for file in candidates), key=lambda pair: len(pair[0]))
    if not file.path.exists():
        file.create()
    # Rows that are there are not written again: an open reader may have mapped them.
    meta |= {"vectors": file.path.name, "rows": str(file.count())}
    roots = next((copy.roots for copy in copies if copy.roots), [])
    with write_database(folder / BACKUP) as connection:
        connection.executescript(f"BEGIN; {SCHEMA}")
        connection.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
        connection.executemany("INSERT INTO roots VALUES (?, ?)", roots)
        _insert(connection, sound)
        checksums.seal(connection)
        connection.commit()
    # Only now, when the backup has all of it, the old database goes; and first itself, then its log: without that it
    # would say something older.
    (folder / DATABASE).unlink(missing_ok=True)
    sync(folder)
    with closing(reader(folder / BACKUP)) as backup, write_database(folder / DATABASE) as connection:
        backup.backup(connection)
        connection.execute("PRAGMA journal_mode = WAL")
    return len({values[COLUMNS.index("path") + 2] for copy in copies for values in copy.files} - sound.keys())


def _read_copy(path: Path) -> _Copy:
    copy = _Copy(None, [], [], [])
    try:
        connection = reader(path)
    except sqlite3.DatabaseError as error:
        _must_be_damage(error)
        return copy
    with closing(connection):
        connection.text_factory = _any_text
        try:
            meta = checksums.read_meta(connection)
            if checksums.is_sealed(meta):
                copy.meta = meta
                if checksums.has_its_roots(connection, meta):
                    copy.roots = connection.execute("SELECT path, options FROM roots").fetchall()
        except (sqlite3.DatabaseError, TypeError) as error:
            _must_be_damage(error)
        copy.files = list(_readable(connection, "files", ("id", "crc", *COLUMNS)))
        owners = _readable(connection, "vectors", ("row", "file", "crc", "modality", '"start"', '"end"'))
        copy.owners = sorted(owners, key=itemgetter(0))
    return copy


def _readable(connection: sqlite3.Connection, table: str, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """The rows of a table by the first of its columns, a whole number; also those behind pages that cannot be read."""
    sql = f"SELECT {', '.join(names)} FROM {table} WHERE {names[0]} > ? ORDER BY {names[0]}"  # noqa: S608 (fixed names)
    last, step = -1, 1
    while last < MAX_KEY:
        try:
            for row in connection.execute(sql, (last,)):
                yield row
                last, step = max(last, row[0]), 1
            return
        except sqlite3.DatabaseError as error:
            _must_be_damage(error)
            last, step = last + step, 2 * step


def _must_be_damage(error: Exception) -> None:
    """Go on without what a disk does not give now, and it would be lost for good."""
    if str(error) in ELSEWHERE:
        raise error


def _sound(copies: Sequence[_Copy], file: VectorFile) -> dict[bytes, tuple[tuple[Any, ...], list[tuple[Any, ...]]]]:
    """By path the files, and the owners of their vectors, that are what was written; of several rows of a path the
    newest of the first copy that has one."""
    found: dict[bytes, tuple[tuple[Any, ...], list[tuple[Any, ...]]]] = {}
    taken: set[int] = set()
    for copy in copies:
        own = defaultdict(list)
        wrong = set()
        for owner, is_intact in zip(copy.owners, _intact(copy.owners, file), strict=True):
            own[owner[1]].append(owner)
            wrong |= set() if is_intact else {owner[1]}
        for id_, crc, *values in reversed(copy.files):
            owners = own[id_]
            rows = {owner[0] for owner in owners}
            path = values[COLUMNS.index("path")]
            is_whole = id_ not in wrong and crc == checksums.of_file(values, [owner[2] for owner in owners])
            # A row has one owner: a file that has moved has another path in an older copy.
            if is_whole and path not in found and taken.isdisjoint(rows):
                found[path] = ((id_, crc, *values), owners)
                taken |= rows
    return found


def _insert(connection: sqlite3.Connection, sound: dict[bytes, tuple[tuple[Any, ...], list[tuple[Any, ...]]]]) -> None:
    names = ("id", "crc", *COLUMNS)
    sql = f"INSERT INTO files ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"  # noqa: S608 (fixed names)
    used: set[int] = set()
    for (id_, *values), owners in sound.values():
        new = connection.execute(sql, (None if id_ in used else id_, *values)).lastrowid
        used.add(new or 0)
        rows = [(row, new, modality, start, end, crc) for row, _, crc, modality, start, end in owners]
        connection.executemany("INSERT INTO vectors VALUES (?, ?, ?, ?, ?, ?)", rows)


def _any_text(content: bytes) -> str:
    """A text whose bytes may be damaged: its checksum will say so."""
    return content.decode("utf-8", "surrogateescape")
