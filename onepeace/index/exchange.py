"""Vectors out of an index, with what is known of their files, for other programs."""

from pathlib import Path
from typing import Any

import numpy as np

from onepeace.errors import UsageError
from onepeace.files.embeddings import WRITERS, Embeddings, write_file
from onepeace.index.index import Index
from onepeace.index.store import Item


def export(index: Index, target: Path) -> int:
    """Write all vectors of an index, in the order in which they came; see `onepeace.files.embeddings`.

    Args:
        target: .npz or .parquet.

    Returns:
        The number of vectors.

    Raises:
        UsageError: an unknown ending; UserError: the disk is full.
    """
    if target.suffix.lower() not in WRITERS:
        raise UsageError(f"{target}: unknown ending {target.suffix!r}; known: {', '.join(WRITERS)}")
    items = {item.id: item for item in index.items()}
    matrix = index.matrix
    of_rows = [items[file] for file in matrix.file.tolist()]
    embeddings = Embeddings(
        np.ascontiguousarray(matrix.vectors),
        [item.path for item in of_rows],
        [index.store.kinds[code] for code in matrix.modality.tolist()],
        [_about(item, *matrix.times(row)) for row, item in enumerate(of_rows)],
    )
    write_file(target, embeddings)
    return len(of_rows)


def _about(item: Item, start: float | None, end: float | None) -> dict[str, Any]:
    """Fields of `onepeace.files.embeddings.COLUMNS`."""
    about = {name: getattr(item, name) for name in ("size", "date", "width", "height", "duration", "caption", "note")}
    about |= {"kind": item.modality, "mtime": item.mtime_ns / 1e9, "metadata": item.metadata or None}
    return {**about, "hash": item.hash.hex() if item.hash else None, "start": start, "end": end}
