"""Checksums of what an index says of its files: SQLite has none of its own.

A vector's covers what it stands for and its numbers, a file's covers its row and the checksums of its vectors, that of
the table `meta` covers itself and the table `roots`. So a row says by itself whether it is what was written, in which
copy of the database or of the vectors it is found.
"""

import json
import sqlite3
import time
import zlib
from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np


def checksum(values: Sequence[Any], start: int = 0) -> int:
    """CRC-32 of plain values (bytes, texts, numbers, None), the same under every version of Python.

    Not of their repr: which characters that escapes depends on the Unicode tables of the interpreter.
    """
    return zlib.crc32(json.dumps(values, default=bytes.hex).encode(), start)


def of_vectors(spans: Iterable[tuple[int, float | None, float | None]], vectors: np.ndarray) -> list[int]:
    """Of vectors and what each stands for.

    Args:
        spans: code of the modality, start and end of each.
        vectors: (n, E) as they lie in the file.
    """
    return [checksum(span, zlib.crc32(vector)) for span, vector in zip(spans, vectors, strict=True)]


def of_file(row: Sequence[Any], vectors: Sequence[int]) -> int:
    """Of a file's row (without its id) and the checksums of its vectors, in their order."""
    return checksum([*row, *vectors])


def seal(connection: sqlite3.Connection) -> None:
    """Give the tables `meta` and `roots` a new checksum, and the state of the database a new number: the generation.

    A number is never used twice, also if an older copy of the index is put back and goes on from there.
    """
    meta = read_meta(connection)
    meta["generation"] = str(max(int(meta.get("generation", "0")) + 1, time.time_ns()))
    meta["roots_crc"] = _of_roots(connection)
    meta["crc"] = _of_meta(meta)
    connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", meta.items())


def read_meta(connection: sqlite3.Connection) -> dict[str, str]:
    return dict(connection.execute("SELECT key, value FROM meta"))


def is_sealed(meta: dict[str, str]) -> bool:
    """Whether the table is what was written. This stays as it is in every format: see there, which one it is."""
    return meta.get("crc") == _of_meta(meta)


def has_its_roots(connection: sqlite3.Connection, meta: dict[str, str]) -> bool:
    """Whether the table `roots` is what was written."""
    return meta["roots_crc"] == _of_roots(connection)


def wrong_files(connection: sqlite3.Connection, columns: Sequence[str]) -> set[int]:
    """Ids of the files whose row, or list of vectors, is not what was written; the numbers are not looked at."""
    names = ", ".join(f"files.{name}" for name in columns)
    sql = (
        f"SELECT files.id, files.crc, {names}, vectors.crc FROM files LEFT JOIN vectors ON vectors.file = files.id "  # noqa: S608 (fixed names)
        "ORDER BY files.id, vectors.row"
    )
    wrong = set()
    for id_, rows in groupby(connection.execute(sql), itemgetter(0)):
        alike = list(rows)  # but for their last column
        _, crc, *values, _ = alike[0]
        if crc != of_file(values, [row[-1] for row in alike if row[-1] is not None]):
            wrong.add(id_)
    return wrong


def _of_meta(meta: dict[str, str]) -> str:
    return str(checksum(sorted(item for item in meta.items() if item[0] != "crc")))


def _of_roots(connection: sqlite3.Connection) -> str:
    return str(checksum(connection.execute("SELECT path, options FROM roots ORDER BY path").fetchall()))
