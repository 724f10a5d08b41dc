"""Files of vectors for other programs, .npz and .parquet: of an index (`export`), or of any files (`embed_files`).

A .parquet file is written a group of rows at a time; an .npz file stays in memory until its end, as it does where it is
read. `embed_files` makes an index that it deletes: a long sound has a vector per window, a video one per scene and
window of its sound.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onepeace.errors import UsageError, UserError, need
from onepeace.files.atomic import unfinished, write_atomic
from onepeace.index.database import Store
from onepeace.index.embed import Settings, embed_entries
from onepeace.index.index import Index
from onepeace.index.items import Item
from onepeace.index.maintain import create_store, refuse_nothing
from onepeace.index.record import Recorder, Report
from onepeace.index.scan import entries_to_read, scan
from onepeace.index.sources import Entry, listed, roots_of

if TYPE_CHECKING:
    from onepeace.embed.embedder import Embedder

COLUMNS = {
    "path": "string",
    "kind": "string",
    "modality": "string",
    "start": "float64",
    "end": "float64",
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
"""Columns of a vector, with Arrow's names of their types: path and kind of its file, modality, the seconds that it
covers, none for a whole file; and of the file: bytes, seconds since 1970, blake2b of the content in hexadecimal,
metadata as JSON, ..."""
ARRAYS = {"path": "paths", "kind": "kinds", "modality": "modalities", "start": "starts", "end": "ends"}
"""Arrays of an .npz file by column."""
ROW_GROUP = 1024
"""Rows of a .parquet file that are written at once."""
TEXT = "text"
"""Name of the texts in the column of paths: "text::1"."""

Row = dict[str, Any]
"""The columns of a vector, and itself as "vector"."""


def write_vectors(store: Store, items: Iterable[Item], target: Path) -> int:
    """Write the vectors of files of an index atomically, in this order, and return their number.

    Args:
        target: .npz, with the arrays vectors (n, E) and `ARRAYS` (n,); or .parquet, with `COLUMNS` and "vector".

    Raises:
        UsageError: an unknown file extension; UserError: the disk is full, or pyarrow is not installed.
    """
    check_extension(target)
    with _writing(target) as temporary:
        return WRITERS[target.suffix.lower()](temporary, _rows(store, items), store.embed_dim)


@contextmanager
def _writing(target: Path) -> Iterator[Path]:
    """Context of `write_atomic`; its errors, and those of a hidden index beside the file, name the file."""
    try:
        with write_atomic(target) as temporary:
            yield temporary
    except OSError as error:
        raise UserError(f"cannot be written ({error.strerror or error})", where=target) from error
    except UserError as error:
        if not Path(error.where).name.startswith(f".{target.name}.onepeace-"):
            raise
        raise UserError(error.reason, where=target) from error


def _rows(store: Store, items: Iterable[Item]) -> Iterator[Row]:
    for item in items:
        fields = _fields_of(item)
        for span, vector in zip(*store.contents_of(item)[:2], strict=True):
            yield {**fields, **vars(span), "vector": vector}


def _fields_of(item: Item) -> dict[str, Any]:
    """Columns of a vector that are those of its file."""
    return {
        "path": item.path,
        "kind": item.kind,
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


def _npz(path: Path, rows: Iterator[Row], embed_dim: int) -> int:
    columns: dict[str, list[Any]] = {name: [] for name in (*ARRAYS, "vector")}
    for row in rows:
        for name, column in columns.items():
            column.append(row[name])
    arrays = {"vectors": np.array(columns["vector"], "<f4").reshape(-1, embed_dim)}
    for name, array in ARRAYS.items():
        arrays[array] = np.array(columns[name], np.float64 if COLUMNS[name] == "float64" else None)
    with open(path, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    return len(columns["vector"])


def _parquet(path: Path, rows: Iterator[Row], embed_dim: int) -> int:
    arrow = need("pyarrow", "parquet")
    parquet = need("pyarrow.parquet", "parquet")
    fields = [(name, arrow.type_for_alias(type_name)) for name, type_name in COLUMNS.items()]
    schema = arrow.schema([*fields, ("vector", arrow.list_(arrow.float32(), embed_dim))])
    count = 0
    with parquet.ParquetWriter(path, schema) as file:
        while group := list(islice(rows, ROW_GROUP)):
            count += len(group)
            for row in group:
                row["path"] = _as_utf8(row["path"])
            file.write_table(arrow.Table.from_pylist(group, schema))
    return count


def _as_utf8(path: str) -> str:
    """A path as Parquet's UTF-8: other bytes of it become escapes."""
    return path.encode("utf-8", "backslashreplace").decode()


WRITERS: dict[str, Callable[[Path, Iterator[Row], int], int]] = {
    ".npz": _npz,
    ".parquet": _parquet,
}
"""Writers by file extension."""


def export(index: Index, target: Path) -> int:
    """Write all vectors of an index atomically, in the order in which their files were added.

    Args:
        target: .npz or .parquet.

    Returns:
        The number of vectors.

    Raises:
        UsageError: an unknown file extension; UserError: the disk is full, or pyarrow is not installed.
    """
    with index.reading() as state:
        return write_vectors(state.store, state.items(), target)


def embed_files(
    embedder: "Embedder",
    paths: str | PathLike[str] | Sequence[str | PathLike[str]],
    target: Path,
    *,
    texts: Iterable[str] = (),
    batch_size: int = 32,
    progress: bool | None = None,
) -> Report:
    """Write the vectors of texts, and of files, folders, tables and shards, to a file, in this order.

    Args:
        paths: as for `onepeace.index.build`; may be empty if there are texts.
        target: .npz or .parquet. It is not written if nothing can be embedded.
        texts: text number N has the path "text::N".
        progress: False = silent; None = a bar on a terminal.

    Returns:
        The report, whose ``vectors`` are those of the file: equal files have one each.

    Raises:
        UsageError: a path that does not exist, no file below the paths, an unknown file extension; UserError: the disk
            is full, pyarrow is not installed.
    """
    check_extension(target)
    paths = listed(paths)
    scanned = scan(roots_of(paths))
    if paths and not scanned.entries and not scanned.problems:
        refuse_nothing(paths, scanned)
    of_texts = {}
    for number, text in enumerate(texts, 1):
        path = f"{TEXT}::{number}"
        of_texts[path] = Entry(Item(path, "text"), text)
    scanned.entries = {**of_texts, **scanned.entries}
    report = Report(problems=scanned.problems, other_kinds=scanned.others)
    settings = Settings(batch_size=batch_size, progress=progress)
    with _writing(target) as temporary:
        with unfinished(target, is_folder=True) as folder, closing(create_store(folder, embedder)) as store:
            with closing(Recorder(store, report)) as recorder:
                entries = list(entries_to_read(recorder, scanned, keeps_captions=False))
                embed_entries(recorder, entries, lambda: embedder, settings)
            items = {item.path: item for item in store.items("problem IS NULL")}
            written = [items[path] for path in scanned.entries if path in items]
            report.vectors = WRITERS[target.suffix.lower()](temporary, _rows(store, written), store.embed_dim)
        if not written:
            temporary.unlink()
    return report
