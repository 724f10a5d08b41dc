"""Vectors with the paths of what they stand for, in one file for other programs.

.npz          arrays vectors (n, E), paths (n,), modalities (n,)
.parquet      columns path, modality, vector, and one for each further field
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onepeace.errors import UserError, need
from onepeace.files.atomic import write_atomic

COLUMNS = {
    "kind": "string", "start": "float64", "end": "float64", "size": "int64", "mtime": "float64", "hash": "string",
    "date": "float64", "width": "int32", "height": "int32", "duration": "float64", "caption": "string",
    "metadata": "string", "note": "string",
}  # fmt: skip
"""Further fields, with their types in Parquet: the kind of the file that the vector is of; the seconds of it; its size
in bytes; seconds since 1970; blake2b of the content; metadata as JSON."""


@dataclass(frozen=True)
class Embeddings:
    """n vectors and what they stand for."""

    vectors: np.ndarray
    """(n, E) float32."""
    paths: Sequence[str]
    modalities: Sequence[str]
    about: Sequence[Mapping[str, Any]] = ()
    """Fields of COLUMNS of each vector, which .parquet has; () = none of any."""


def write_file(path: Path, embeddings: Embeddings) -> None:
    """A file of a kind that its ending, a key of `WRITERS`, names, whole or not at all.

    Raises:
        UserError: the disk is full or not writable, or pyarrow is not installed.
    """
    try:
        with write_atomic(path) as temporary:
            WRITERS[path.suffix.lower()](temporary, embeddings)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error


def _write_npz(file: Path, embeddings: Embeddings) -> None:
    # Text arrays of a fixed width are read back without running pickled code.
    paths, modalities = np.array(embeddings.paths, "U"), np.array(embeddings.modalities, "U")
    with open(file, "wb") as stream:  # of a path savez changes the ending
        np.savez(stream, vectors=embeddings.vectors, paths=paths, modalities=modalities)


def _write_parquet(file: Path, embeddings: Embeddings) -> None:
    pyarrow = need("pyarrow", "parquet")
    parquet = need("pyarrow.parquet", "parquet")
    vectors = embeddings.vectors
    columns = {
        # Parquet's text is UTF-8; bytes of a path that are not are written as escapes.
        "path": pyarrow.array(
            [path.encode("utf-8", "backslashreplace").decode() for path in embeddings.paths], pyarrow.string()
        ),
        "modality": pyarrow.array(embeddings.modalities, pyarrow.string()),
        "vector": pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.ravel()), vectors.shape[1]),
    }
    for name, kind in COLUMNS.items() if embeddings.about else ():
        values = [row.get(name) for row in embeddings.about]
        if name == "metadata":
            values = [json.dumps(value) if value else None for value in values]
        columns[name] = pyarrow.array(values, pyarrow.type_for_alias(kind))
    parquet.write_table(pyarrow.table(columns), file)


WRITERS: dict[str, Callable[[Path, Embeddings], None]] = {".npz": _write_npz, ".parquet": _write_parquet}
"""Writers by the ending of the file."""
