"""Files of vectors for other programs, .npz and .parquet: of an index (`export`), or of any files (`embed_files`).

They are written row by row: vectors do not stay in memory; what else the rows of an .npz file have does until its end.
`embed_files` cuts a file as for an index: a long sound has a vector per window, a video one per scene and window of its
sound.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onepeace.errors import UsageError, UserError, need
from onepeace.files.atomic import write_atomic
from onepeace.files.walk import Unreadable
from onepeace.index.content import Reading
from onepeace.index.embed import embed_readings, read_ahead
from onepeace.index.index import Index
from onepeace.index.items import Item
from onepeace.index.scan import modalities_of, scan
from onepeace.index.sources import Entry, listed, roots_of
from onepeace.progress import Progress

if TYPE_CHECKING:
    from onepeace.embed.embedder import Embedder

COLUMNS = {"path": "string", "kind": "string", "modality": "string", "start": "float64", "end": "float64"}
"""Columns of every vector, with Arrow's names of their types: path and kind of the file, modality of the vector, and
the seconds that it covers, none for a whole file."""
ARRAYS = {"path": "paths", "kind": "kinds", "modality": "modalities", "start": "starts", "end": "ends"}
"""Arrays of an .npz file by column."""
ROW_GROUP = 1024
"""Rows of a .parquet file that are written at once."""
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
TEXT = "text"
"""Name of the texts in the column of paths: "text::1"."""

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


def export(index: Index, target: Path) -> int:
    """Write all vectors of an index atomically, in the order in which they were added.

    Args:
        target: .npz or .parquet, which also has `FILE_COLUMNS`.

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
            write(described, index.matrix.vectors[rows.start : rows.stop])
    return count


def _row_of(index: Index, row: int, item: Item) -> dict[str, Any]:
    """Columns of a row of the matrix, which is of this file."""
    return {
        "path": item.path,
        "kind": item.modality,
        **vars(index.matrix.span(row)),
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


@dataclass
class Embedding:
    """What `embed_files` wrote."""

    vectors: int = 0
    files: int = 0
    """Files, rows and texts that have vectors."""
    problems: list[Unreadable] = field(default_factory=list)
    """Files that could not be embedded, with the reasons."""
    notes: list[Unreadable] = field(default_factory=list)
    """Files that were embedded, and what is odd about them: silence, a video that ends early."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Files of kinds that the model does not read, by kind."""
    other_kinds: Counter[str] = field(default_factory=Counter)
    """Files with unsupported extensions, by extension."""


def embed_files(
    embedder: "Embedder",
    paths: str | PathLike[str] | Sequence[str | PathLike[str]],
    target: Path,
    *,
    texts: Iterable[str] = (),
    batch_size: int = 32,
    progress: bool | None = None,
) -> Embedding:
    """Write the vectors of texts, and of files, folders, tables and shards, to a file, in this order.

    Args:
        paths: as for `onepeace.index.build`; may be empty if there are texts.
        target: .npz or .parquet. It is not written if nothing can be embedded.
        texts: read as they are needed; text number N has the path "text::N".
        progress: False = silent; None = a bar on a terminal.

    Raises:
        UsageError: a path that does not exist, no file below the paths, an unknown file extension; UserError: the disk
            is full, pyarrow is not installed.
    """
    check_extension(target)
    report = Embedding()
    entries = _entries_of(paths, embedder.modalities, report)
    readings = _readings(texts, entries, report)
    write = None
    with ExitStack() as stack:
        bar = stack.enter_context(Progress(len(entries) or None, shown=progress))
        results = embed_readings(readings, lambda: embedder, embedder.modalities, batch_size)
        for _, item, spans, vectors in stack.enter_context(closing(results)):
            bar.update()
            if item.note is not None:
                report.notes.append(Unreadable(Path(item.path), item.note))
            if item.problem is not None:
                report.problems.append(Unreadable(Path(item.path), item.problem))
                continue
            report.files += 1
            report.vectors += len(vectors)
            if write is None:
                write = stack.enter_context(write_vectors(target, embedder.embed_dim))
            write([{"path": item.path, "kind": item.modality, **vars(span)} for span in spans], vectors)
    return report


def _entries_of(
    paths: str | PathLike[str] | Sequence[str | PathLike[str]], modalities: tuple[str, ...], report: Embedding
) -> list[Entry]:
    """The files at or below the paths that a model reads; the others are added to the report."""
    roots = roots_of(listed(paths))
    scanned = scan(roots)
    report.problems += scanned.problems
    report.other_kinds = scanned.others
    if roots and not scanned.entries and not scanned.problems:
        names = ", ".join(root.path for root in roots)
        raise UsageError(f"no image, audio, video or text files in {names}")
    entries = []
    for entry in scanned.entries.values():
        if entry.item.problem is not None:
            report.problems.append(Unreadable(Path(entry.item.path), entry.item.problem))
        elif modalities_of(entry.item, modalities):
            entries.append(entry)
        else:
            report.left_out[entry.item.modality] += 1
    return entries


def _readings(texts: Iterable[str], entries: Sequence[Entry], report: Embedding) -> Iterator[Reading]:
    """Yield the texts, then the entries that can be read; the others are added to the report."""
    for number, text in enumerate(texts, 1):
        entry = Entry(Item(f"{TEXT}::{number}", "text"), text)
        yield Reading(entry, entry.item, text)
    for reading in read_ahead(entries):
        if reading.item.problem is None:
            yield reading
        else:
            report.problems.append(Unreadable(Path(reading.item.path), reading.item.problem))
