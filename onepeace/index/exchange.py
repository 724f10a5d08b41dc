"""Export of the vectors of an index and the metadata of their files to .npz or .parquet."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from onepeace.errors import UsageError, UserError, need
from onepeace.files.atomic import write_atomic
from onepeace.index.index import Index

COLUMNS = {
    "path": "string", "modality": "string", "kind": "string", "start": "float64", "end": "float64", "size": "int64",
    "mtime": "float64", "hash": "string", "date": "float64", "width": "int32", "height": "int32",
    "duration": "float64", "caption": "string", "metadata": "string", "note": "string",
}  # fmt: skip
"""Columns written next to each vector, with Arrow's names of their types: path and kind of the file, modality and
seconds of the vector, bytes, seconds since 1970, blake2b of the content, metadata as JSON."""


def export(index: Index, target: Path) -> int:
    """Write all vectors of an index atomically, in the order in which they were added.

    Args:
        target: .npz (arrays vectors (n, E), paths, modalities) or .parquet (columns vector and those of `COLUMNS`).

    Returns:
        The number of vectors.

    Raises:
        UsageError: an unknown file extension; UserError: the disk is full, or pyarrow is not installed.
    """
    ending = target.suffix.lower()
    if ending not in (".npz", ".parquet"):
        raise UsageError(f"{target}: unknown file extension {target.suffix!r}; known: .npz, .parquet")
    if ending == ".parquet":
        need("pyarrow", "parquet")  # before the rows are read
    items, matrix = {item.id: item for item in index.items()}, index.matrix
    rows: list[dict[str, Any]] = []
    for row, (file, code) in enumerate(zip(matrix.file.tolist(), matrix.modality.tolist(), strict=True)):
        item, (start, end) = items[file], matrix.times(row)
        about = {"modality": index.store.kinds[code], "kind": item.modality, "start": start, "end": end}
        about |= {"mtime": item.mtime_ns / 1e9, "hash": item.hash and item.hash.hex()}
        about |= {"metadata": json.dumps(item.metadata) if item.metadata else None}
        rows.append({name: getattr(item, name, None) for name in COLUMNS} | about)
    vectors = np.ascontiguousarray(matrix.vectors)
    try:
        with write_atomic(target) as temporary:
            if ending == ".parquet":
                _write_parquet(temporary, vectors, rows)
            else:
                paths, modalities = (np.array([row[name] for row in rows], "U") for name in ("path", "modality"))
                with open(temporary, "wb") as stream:  # savez appends .npz to a path
                    np.savez(stream, vectors=vectors, paths=paths, modalities=modalities)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror or error})") from error
    return len(rows)


def _write_parquet(file: Path, vectors: np.ndarray, rows: list[dict[str, Any]]) -> None:
    pyarrow, parquet = need("pyarrow", "parquet"), need("pyarrow.parquet", "parquet")
    for row in rows:  # Parquet strings are UTF-8; other bytes of a path are written as escapes
        row["path"] = row["path"].encode("utf-8", "backslashreplace").decode()
    schema = pyarrow.schema([(name, pyarrow.type_for_alias(kind)) for name, kind in COLUMNS.items()])
    column = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.ravel()), vectors.shape[1])
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema).append_column("vector", column), file)
