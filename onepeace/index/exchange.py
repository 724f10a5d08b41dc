"""Vectors out of an index, with what is known of their files, for other programs.

.npz          arrays vectors (n, E), paths (n,), modalities (n,)
.parquet      columns path, modality, vector, and the further fields of `COLUMNS`
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onepeace.errors import UsageError, UserError, need
from onepeace.files.atomic import write_atomic
from onepeace.index.index import Index
from onepeace.index.store import Item

COLUMNS = {
    "kind": "string", "start": "float64", "end": "float64", "size": "int64", "mtime": "float64", "hash": "string",
    "date": "float64", "width": "int32", "height": "int32", "duration": "float64", "caption": "string",
    "metadata": "string", "note": "string",
}  # fmt: skip
"""Further fields, with their types in Parquet: the kind of the file that the vector is of; the seconds of it; its size
in bytes; seconds since 1970; blake2b of the content; metadata as JSON."""


def export(index: Index, target: Path) -> int:
    """Write all vectors of an index, in the order in which they came, whole or not at all.

    Args:
        target: .npz or .parquet.

    Returns:
        The number of vectors.

    Raises:
        UsageError: an unknown ending; UserError: the disk is full, or pyarrow is not installed.
    """
    if (write := WRITERS.get(target.suffix.lower())) is None:
        raise UsageError(f"{target}: unknown ending {target.suffix!r}; known: {', '.join(WRITERS)}")
    items = {item.id: item for item in index.items()}
    matrix = index.matrix
    of_rows = [items[file] for file in matrix.file.tolist()]
    modalities = [index.store.kinds[code] for code in matrix.modality.tolist()]
    about = [_about(item, *matrix.times(row)) for row, item in enumerate(of_rows)]
    try:
        with write_atomic(target) as temporary:
            write(temporary, np.ascontiguousarray(matrix.vectors), [item.path for item in of_rows], modalities, about)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror or error})") from error
    return len(of_rows)


def _about(item: Item, start: float | None, end: float | None) -> dict[str, Any]:
    """Fields of `COLUMNS`."""
    about = {name: getattr(item, name) for name in ("size", "date", "width", "height", "duration", "caption", "note")}
    about |= {"kind": item.modality, "mtime": item.mtime_ns / 1e9}
    about["metadata"] = json.dumps(item.metadata) if item.metadata else None
    return {**about, "hash": item.hash.hex() if item.hash else None, "start": start, "end": end}


def _write_npz(file: Path, vectors: np.ndarray, paths: Sequence[str], modalities: Sequence[str], _: object) -> None:
    with open(file, "wb") as stream:  # of a path savez changes the ending
        # Text arrays of a fixed width are read back without running pickled code.
        np.savez(stream, vectors=vectors, paths=np.array(paths, "U"), modalities=np.array(modalities, "U"))


def _write_parquet(
    file: Path, vectors: np.ndarray, paths: Sequence[str], modalities: Sequence[str], about: Sequence[dict[str, Any]]
) -> None:
    pyarrow = need("pyarrow", "parquet")
    parquet = need("pyarrow.parquet", "parquet")
    columns = {
        # Parquet's text is UTF-8; bytes of a path that are not are written as escapes.
        "path": pyarrow.array([path.encode("utf-8", "backslashreplace").decode() for path in paths], pyarrow.string()),
        "modality": pyarrow.array(modalities, pyarrow.string()),
        "vector": pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.ravel()), vectors.shape[1]),
    }
    for name, kind in COLUMNS.items():
        columns[name] = pyarrow.array([row[name] for row in about], pyarrow.type_for_alias(kind))
    parquet.write_table(pyarrow.table(columns), file)


WRITERS: dict[str, Callable[..., None]] = {".npz": _write_npz, ".parquet": _write_parquet}
"""Writers by the ending of the file."""
