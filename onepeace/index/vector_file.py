"""Files of vectors for other programs, written row by row: .npz and .parquet.

Vectors do not stay in memory; what else the rows of an .npz file have does until its end.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from onepeace.errors import UsageError, UserError, need
from onepeace.files.atomic import write_atomic

COLUMNS = {"path": "string", "kind": "string", "modality": "string", "start": "float64", "end": "float64"}
"""Columns of every vector, with Arrow's names of their types: path and kind of the file, modality of the vector, and
the seconds that it covers, none for a whole file."""
ARRAYS = {"path": "paths", "kind": "kinds", "modality": "modalities", "start": "starts", "end": "ends"}
"""Arrays of an .npz file by column."""
ROW_GROUP = 1024
"""Rows of a .parquet file that are written at once."""

Write = Callable[[Sequence[Mapping[str, Any]], np.ndarray], None]
"""Writes the columns of n rows and their vectors (n, E)."""


@contextmanager
def write_vectors(
    target: Path,
    embed_dim: int,
    columns: Mapping[str, str] = COLUMNS,
) -> Iterator[Write]:
    """Write a file of vectors atomically, by its file extension, with the function that this context gives.

    Args:
        target: .npz, with the arrays vectors (n, E) and `ARRAYS` (n,); or .parquet, with the columns and "vector".
        columns: columns of a .parquet file, with Arrow's names of their types.

    Raises:
        UsageError: an unknown file extension; UserError: the disk is full, or pyarrow is not installed.
    """
    check_extension(target)
    writer = WRITERS[target.suffix.lower()]
    try:
        with write_atomic(target) as temporary, writer(temporary, columns, embed_dim) as write:
            yield write
    except OSError as error:
        raise UserError(f"cannot be written ({error.strerror or error})", where=target) from error


def check_extension(target: Path) -> None:
    """Check that vectors can be written to a file of this name.

    Raises:
        UsageError: an unknown file extension; UserError: pyarrow is not installed.
    """
    extension = target.suffix.lower()
    if extension not in WRITERS:
        raise UsageError(f"unknown file extension {target.suffix!r}; known: {', '.join(WRITERS)}", where=target)
    if extension == ".parquet":
        need("pyarrow", "parquet")


@contextmanager
def _npz(path: Path, columns: Mapping[str, str], embed_dim: int) -> Iterator[Write]:
    values: dict[str, list[Any]] = {name: [] for name in ARRAYS}
    with tempfile.TemporaryFile(dir=path.parent) as vectors_file:

        def write(rows: Sequence[Mapping[str, Any]], vectors: np.ndarray) -> None:
            for name, column in values.items():
                column.extend(row[name] for row in rows)
            vectors_file.write(np.ascontiguousarray(vectors, "<f4").data)

        yield write
        vectors_file.flush()
        shape = (len(values["path"]), embed_dim)
        arrays: dict[str, np.ndarray] = {"vectors": np.memmap(vectors_file, "<f4", "r", shape=shape)}
        for name, column in values.items():
            arrays[ARRAYS[name]] = np.array(column, np.float64 if columns[name] == "float64" else None)
        with open(path, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]


@contextmanager
def _parquet(path: Path, columns: Mapping[str, str], embed_dim: int) -> Iterator[Write]:
    arrow = need("pyarrow", "parquet")
    parquet = need("pyarrow.parquet", "parquet")
    fields = [(name, arrow.type_for_alias(type_name)) for name, type_name in columns.items()]
    schema = arrow.schema([*fields, ("vector", arrow.list_(arrow.float32(), embed_dim))])
    waiting: list[dict[str, Any]] = []
    with parquet.ParquetWriter(path, schema) as file:

        def write(rows: Sequence[Mapping[str, Any]], vectors: np.ndarray) -> None:
            for row, vector in zip(rows, vectors, strict=True):
                waiting.append({**row, "path": _as_utf8(row["path"]), "vector": vector})
            if len(waiting) >= ROW_GROUP:
                flush()

        def flush() -> None:
            file.write_table(arrow.Table.from_pylist(waiting, schema))
            waiting.clear()

        yield write
        flush()


def _as_utf8(path: str) -> str:
    """A path as Parquet's UTF-8: other bytes of it become escapes."""
    return path.encode("utf-8", "backslashreplace").decode()


WRITERS: dict[str, Callable[[Path, Mapping[str, str], int], AbstractContextManager[Write]]] = {
    ".npz": _npz,
    ".parquet": _parquet,
}
"""Writers by file extension."""
