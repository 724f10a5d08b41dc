"""Rows of Parquet files, a batch at a time: one file, or a folder of them, such as a data set repository on the Hub."""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onepeace.datasets.tables import BadRow, Row
from onepeace.errors import UserError, need, one_line

if TYPE_CHECKING:
    import pyarrow

SUFFIX = ".parquet"
PARQUET_PATTERNS = ("*.parquet", "*/*.parquet", "*/*/*.parquet")
"""Where a repository has its files: beside the README, in data/, or in CONFIGURATION/SPLIT/."""
BATCH_ROWS = 32
"""Rows of a Parquet file in memory at once."""
BUFFER_BYTES = 1 << 20
"""Bytes read at once; by default, pyarrow reads a column of a whole row group."""
SPLIT_OF_WORD = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""Split of a Parquet file by a word of its path; the words are those that datasets looks for."""

ChooseColumns = Callable[[Sequence[str]], Collection[str]]
"""Returns the columns to read, given the names of all; UserError if one is missing."""


def is_parquet(path: Path) -> bool:
    """Whether a path is a Parquet file, or a folder of them."""
    if not path.is_dir():
        return path.suffix.lower() == SUFFIX
    return any(next(path.glob(pattern), None) is not None for pattern in PARQUET_PATTERNS)


def data_files(path: Path, split: str | None = None) -> list[Path]:
    """The files of a data set, in order.

    Args:
        split: name of the split; needed if the data set has several.

    Raises:
        UserError: no such split, or none is named and there are several.
    """
    files_by_split = _files_by_split(path)
    names = ", ".join(sorted(files_by_split))
    if split is None:
        if len(files_by_split) > 1:
            raise UserError(f"has the splits {names}; choose one with --split", where=path)
        return next(iter(files_by_split.values()))
    if split not in files_by_split:
        remedy = f"it has {names}" if names else "leave out --split"
        raise UserError(f"has no split {split!r}; {remedy}", where=path)
    return files_by_split[split]


def _files_by_split(path: Path) -> dict[str, list[Path]]:
    """The files of each split; "" is the split of files that name none."""
    if not path.is_dir():
        return {"": [path]}
    files_by_split: dict[str, list[Path]] = defaultdict(list)
    for pattern in PARQUET_PATTERNS:
        for file in sorted(path.glob(pattern)):
            files_by_split[_split_of(file.relative_to(path))].append(file)
    return files_by_split


def _split_of(path: Path) -> str:
    """The split that the name of a file says, or of the nearest folder that says one."""
    for name in (path.stem, *reversed(path.parent.parts)):
        for word in re.split(r"[^a-z]+", name.lower()):
            if word in SPLIT_OF_WORD:
                return SPLIT_OF_WORD[word]
    return ""


def read_parquet(file: Path, choose_columns: ChooseColumns) -> Iterator[Row | BadRow]:
    """Yield the rows of a Parquet file in order; ``line`` counts rows from 1.

    Numbers of a ClassLabel of datasets (Hugging Face) are replaced by their names, and -1 (no label) by None. Where the
    file is damaged, one `BadRow` stands for all rows that follow.

    Raises:
        UserError: the file cannot be opened, or pyarrow is not installed.
    """
    arrow = need("pyarrow", "parquet", str(file))
    number = 0
    with _opened(file, arrow) as reader:
        columns = list(choose_columns(reader.schema_arrow.names))
        class_names = _class_names(reader.schema_arrow)
        try:
            for batch in reader.iter_batches(batch_size=BATCH_ROWS, columns=columns):
                for index in range(batch.num_rows):
                    number += 1
                    yield _row(number, batch, index, columns, class_names)
        except (arrow.ArrowException, OSError) as error:
            yield BadRow(number + 1, f"this row and all that follow cannot be read ({one_line(error)})")


def _opened(file: Path, arrow: Any) -> Any:
    """A reader of a file, which is a context manager."""
    try:
        return need("pyarrow.parquet", "parquet").ParquetFile(file, pre_buffer=False, buffer_size=BUFFER_BYTES)
    except (arrow.ArrowException, OSError) as error:
        raise UserError(f"cannot be read ({one_line(error)})", where=file) from error


def _row(
    number: int,
    batch: Any,
    index: int,
    columns: Collection[str],
    class_names: Mapping[str, Sequence[str]],
) -> Row | BadRow:
    cells = {}
    for name in columns:
        try:
            value = batch.column(name)[index].as_py()
        except ValueError as error:  # text that is not UTF-8
            return BadRow(number, f"{name} cannot be read ({one_line(error)})")
        if name in class_names and value is not None:
            names = class_names[name]
            if not -1 <= value < len(names):
                return BadRow(number, f"{name} is {value}, and the data set has {len(names)} classes")
            value = names[value] if value >= 0 else None
        cells[name] = value
    return Row(number, cells)


def _class_names(schema: "pyarrow.Schema") -> dict[str, list[str]]:
    """Names of the classes by column, which datasets stores in the schema."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        class_names = {}
        for name, feature in features.items():
            if feature.get("_type") == "ClassLabel":
                class_names[name] = feature["names"]
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}
    return class_names
