"""Rows of a .csv, .tsv or .jsonl file with their line numbers; an invalid row is returned as `BadRow`.

A .csv file is quoted as in spreadsheets, so a row may span lines. A .tsv file has no quoting, as in its specification:
a line is a row, and `"` is an ordinary character. Both begin with the names of their columns. A .jsonl file has one
JSON object per line.
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from onepeace.errors import UserError
from onepeace.files.regular import open_regular

SUFFIXES = (".csv", ".tsv", ".jsonl")
NAMED = 10
"""Maximum number of columns that a message names."""


class Row(NamedTuple):
    """A row that could be read."""

    line: int
    """First line of the row, from 1; in a Parquet or Arrow file, the number of the row."""
    cells: dict[str, Any]
    """Cells by column: strings of a .csv or .tsv, without the spaces around them; any values of other files."""


class BadRow(NamedTuple):
    """A row that could not be read."""

    line: int
    reason: str


def read_table(path: Path, columns: Sequence[str] | None = None) -> Iterator[Row | BadRow]:
    """Yield the rows of a table in order, without empty lines.

    Args:
        columns: names of the columns of a .csv or .tsv file without a header.

    Raises:
        UserError: an unknown extension, a file that cannot be read or is not UTF-8, a duplicate column, or another
            separator of columns.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"unknown file extension {path.suffix!r}; a table is {', '.join(SUFFIXES)}", where=path)
    newline = None if suffix == ".jsonl" else ""  # csv handles line ends itself
    try:
        # UTF-8 from spreadsheets begins with a byte order mark.
        with open(path, encoding="utf-8-sig", newline=newline, opener=open_regular) as file:
            if suffix == ".jsonl":
                yield from _json_rows(file)
            else:
                yield from _csv_rows(file, path, columns)
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror or error})", where=path) from error
    except UnicodeDecodeError as error:
        raise UserError(f"is not UTF-8 ({error.reason}); save it as UTF-8", where=path) from error


def some_names(columns: Iterable[str]) -> str:
    """The first names of columns, for messages."""
    names = list(columns)
    text = ", ".join(names[:NAMED])
    if len(names) > NAMED:
        text += f" and {len(names) - NAMED} more"
    return text


def _csv_rows(file: TextIO, path: Path, columns: Sequence[str] | None) -> Iterator[Row | BadRow]:
    for line, cells in _csv_lines(file, path):
        if isinstance(cells, csv.Error):
            if columns is None:
                raise UserError(f"the names of the columns cannot be read ({cells})", where=path) from cells
            yield BadRow(line, f"cannot be read ({cells})")
        elif columns is None:
            if not cells[0].lower().startswith("sep="):  # Excel's line before the header
                columns = _checked_header(cells, path)
        elif len(cells) != len(columns):
            yield BadRow(line, f"{len(cells)} cells instead of {len(columns)} ({some_names(columns)})")
        else:
            cells_by_column = {}
            for name, cell in zip(columns, cells, strict=True):
                cell = cell.strip()
                if name or cell:
                    cells_by_column[name] = cell
            yield Row(line, cells_by_column)


def _csv_lines(file: TextIO, path: Path) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """First line of each row that is not empty, and its cells or why they cannot be read."""
    dialect: dict[str, Any] = {}
    if _has_tabs(path):
        dialect = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    reader = csv.reader(file, strict=True, **dialect)  # strict: an unended quote is an error, not the rest of the file
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, error
            continue
        if cells:
            yield line, cells


def _has_tabs(path: Path) -> bool:
    return path.suffix.lower() == ".tsv"


def _checked_header(cells: Sequence[str], path: Path) -> list[str]:
    """The names of the columns; UserError for a duplicate, or for another separator."""
    columns = [cell.strip() for cell in cells]
    duplicates = sorted(name for name, count in Counter(columns).items() if name and count > 1)
    if duplicates:
        raise UserError(f"two columns are named {duplicates[0]!r}", where=path)
    separator = re.search("[;\t]", columns[0])
    if len(columns) == 1 and separator:
        expected = "tabs" if _has_tabs(path) else "commas"
        raise UserError(f"its columns are separated by {separator[0]!r}; save it with {expected}", where=path)
    return columns


def _json_rows(file: TextIO) -> Iterator[Row | BadRow]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            cells = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield BadRow(number, f"not JSON ({error})")
            continue
        if isinstance(cells, dict):
            yield Row(number, cells)
        else:
            yield BadRow(number, f"a JSON {type(cells).__name__}, not an object")
