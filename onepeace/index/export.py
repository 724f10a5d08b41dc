"""Export of the vectors of an index and the metadata of their files to .npz or .parquet."""

import json
from pathlib import Path
from typing import Any

from onepeace.index.index import Index
from onepeace.index.items import Item
from onepeace.index.vector_file import COLUMNS, ROW_GROUP, write_vectors

FILE_COLUMNS = {
    "size": "int64",
    "mtime": "float64",
    "hash": "string",
    "date": "float64",
    "width": "int32",
    "height": "int32",
    "duration": "float64",
    "caption": "string",
    "metadata": "string",
    "note": "string",
}
"""Columns of a vector's file beside those of every file of vectors, with Arrow's names of their types: bytes, seconds
since 1970, blake2b of the content in hexadecimal, metadata as JSON."""


def export(index: Index, target: Path) -> int:
    """Write all vectors of an index atomically, in the order in which they were added.

    Args:
        target: .npz or .parquet (vector_file.py), which also has `FILE_COLUMNS`.

    Returns:
        The number of vectors.

    Raises:
        UsageError: an unknown file extension; UserError: the disk is full, or pyarrow is not installed.
    """
    with index.reading(), write_vectors(target, index.embed_dim, {**COLUMNS, **FILE_COLUMNS}) as write:
        items = {item.id: item for item in index.items()}
        count = len(index.matrix)
        for start in range(0, count, ROW_GROUP):
            rows = range(start, min(start + ROW_GROUP, count))
            described = []
            for row in rows:
                file_id = int(index.matrix.file[row])
                described.append(_row_of(index, row, items[file_id]))
            write(described, index.matrix.vectors_of(slice(rows.start, rows.stop)))
    return count


def _row_of(index: Index, row: int, item: Item) -> dict[str, Any]:
    """Columns of a row of the matrix, which is of this file."""
    span = index.matrix.span(row)
    return {
        "path": item.path,
        "kind": item.modality,
        "modality": span.modality,
        "start": span.start,
        "end": span.end,
        "size": item.size,
        "mtime": item.mtime_ns / 1e9,
        "hash": item.hash.hex() if item.hash else None,
        "date": item.date,
        "width": item.width,
        "height": item.height,
        "duration": item.duration,
        "caption": item.caption,
        "metadata": json.dumps(item.metadata) if item.metadata else None,
        "note": item.note,
    }
