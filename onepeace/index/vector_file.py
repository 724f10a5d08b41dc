"""Files of vectors for other programs, written block by block: .npz, .parquet and .jsonl.

Memory holds one block of vectors; of an .npz file also the paths and kinds of all rows, whose arrays come last.
"""

import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from onepeace.errors import UsageError, UserError, need
from onepeace.files.atomic import write_atomic
from onepeace.index.items import as_text

COLUMNS = {"path": "string", "kind": "string", "modality": "string", "start": "float64", "end": "float64"}
"""Columns of every vector, with Arrow's names of their types: path and kind of the file, modality of the vector, and
the seconds that it covers, none for a whole file."""
ARRAYS = {"path": "paths", "kind": "kinds", "modality": "modalities", "start": "starts", "end": "ends"}
"""Arrays of an .npz file by column."""
BLOCK = 1024
"""Vectors per block, which is a row group of a .parquet file."""

Row = Mapping[str, Any]
"""Values of the columns of one vector."""


class Writer(Protocol):
    """Writes blocks of rows to a file with these columns."""

    def __init__(self, path: Path, columns: Mapping[str, str], embed_dim: int) -> None: ...

    def write(self, rows: Sequence[Row], vectors: np.ndarray) -> None:
        """Write n rows and their vectors (n, E), float32."""

    def finish(self) -> None:
        """Write what comes last."""

    def close(self) -> None:
        """Close the files, finished or not."""


class NpzWriter:
    """Writes a zip file of arrays for `numpy.load`: vectors (n, E), and paths, kinds, modalities, starts and ends (n,).

    An array begins with its length, so the vectors wait in a temporary file without a name.
    """

    def __init__(self, path: Path, columns: Mapping[str, str], embed_dim: int) -> None:
        self.path = path
        self.embed_dim = embed_dim
        self.columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        self.vectors = tempfile.TemporaryFile(dir=path.parent)

    def write(self, rows: Sequence[Row], vectors: np.ndarray) -> None:
        for name, values in self.columns.items():
            values.extend(row[name] for row in rows)
        self.vectors.write(np.ascontiguousarray(vectors, "<f4").data)

    def finish(self) -> None:
        shape = len(self.columns["path"]), self.embed_dim
        self.vectors.seek(0)
        with zipfile.ZipFile(self.path, "w") as archive:
            with _array(archive, "vectors", np.dtype("<f4"), shape) as member:
                shutil.copyfileobj(self.vectors, member)
            for name, values in self.columns.items():
                dtype = np.dtype("<f8") if COLUMNS[name] == "float64" else _dtype_of(values)
                with _array(archive, ARRAYS[name], dtype, shape[:1]) as member:
                    for start in range(0, len(values), BLOCK):
                        member.write(np.array(values[start : start + BLOCK], dtype).tobytes())  # None is NaN

    def close(self) -> None:
        self.vectors.close()


def _dtype_of(strings: Sequence[str]) -> np.dtype:
    """Type of an array of strings, which all have room for the longest."""
    return np.dtype(f"<U{max(map(len, strings), default=1)}")


@contextmanager
def _array(
    archive: zipfile.ZipFile,
    name: str,
    dtype: np.dtype,
    shape: tuple[int, ...],
) -> Iterator[IO[bytes]]:
    """Open an array of an archive for writing its content."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)
        yield member


class ParquetWriter:
    """Writes a table with the columns and a column of vectors, lists of E float32 numbers."""

    def __init__(self, path: Path, columns: Mapping[str, str], embed_dim: int) -> None:
        self.arrow = need("pyarrow", "parquet")
        parquet = need("pyarrow.parquet", "parquet")
        fields = []
        for name, type_name in columns.items():
            fields.append((name, self.arrow.type_for_alias(type_name)))
        self.schema = self.arrow.schema(fields)
        self.embed_dim = embed_dim
        vector_type = self.arrow.list_(self.arrow.float32(), embed_dim)
        vector = self.arrow.field("vector", vector_type)
        self.file = parquet.ParquetWriter(path, self.schema.append(vector))

    def write(self, rows: Sequence[Row], vectors: np.ndarray) -> None:
        encoded = [{**row, "path": _as_utf8(row["path"])} for row in rows]
        numbers = self.arrow.array(np.ascontiguousarray(vectors, np.float32).ravel())
        column = self.arrow.FixedSizeListArray.from_arrays(numbers, self.embed_dim)
        table = self.arrow.Table.from_pylist(encoded, self.schema)
        self.file.write_table(table.append_column("vector", column))

    def finish(self) -> None:
        self.file.close()

    def close(self) -> None:
        self.file.close()


def _as_utf8(path: str) -> str:
    """A path as Parquet's UTF-8: other bytes of it become escapes."""
    return path.encode("utf-8", "backslashreplace").decode()


class JsonlWriter:
    """Writes one JSON object a line, with the columns that have a value, and the vector as numbers."""

    def __init__(self, path: Path, columns: Mapping[str, str], embed_dim: int) -> None:
        self.file = open(path, "w", encoding="utf-8")

    def write(self, rows: Sequence[Row], vectors: np.ndarray) -> None:
        for row, vector in zip(rows, vectors, strict=True):
            values = {name: value for name, value in row.items() if value is not None}
            values["path"] = as_text(row["path"])
            values["vector"] = [float(str(number)) for number in vector]  # the shortest text of a float32
            self.file.write(json.dumps(values) + "\n")

    def finish(self) -> None:
        self.file.flush()

    def close(self) -> None:
        self.file.close()


WRITERS: dict[str, type[Writer]] = {".npz": NpzWriter, ".parquet": ParquetWriter, ".jsonl": JsonlWriter}
"""Writers by file extension."""


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
def write_vectors(
    target: Path,
    embed_dim: int,
    columns: Mapping[str, str] = COLUMNS,
) -> Iterator[Writer]:
    """Write a file of vectors atomically, by its file extension.

    Args:
        target: .npz, .parquet or .jsonl; see the writers for what is in them.
        columns: columns of the rows, with Arrow's names of their types; an .npz file has those of `COLUMNS`.

    Raises:
        UsageError: an unknown file extension; UserError: the disk is full, or pyarrow is not installed.
    """
    check_extension(target)
    writer_class = WRITERS[target.suffix.lower()]
    try:
        with write_atomic(target) as temporary, closing(writer_class(temporary, columns, embed_dim)) as writer:
            yield writer
            writer.finish()
    except OSError as error:
        raise UserError(f"cannot be written ({error.strerror or error})", where=target) from error
