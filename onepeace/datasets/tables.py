"""Rows of a .csv, .tsv or .jsonl file with their line numbers; an invalid row is returned as `BadRow`.

A .csv file is quoted as in spreadsheets, so a row may span lines. A .tsv file has no quoting, as in its specification:
a line is a row, and `"` is an ordinary character. Both begin with the names of their columns. A .jsonl file has one
JSON object per line.
"""

import csv
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from onepeace.errors import UserError

SUFFIXES = (".csv", ".tsv", ".jsonl")


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
        raise UserError(f"{path}: unknown file extension {path.suffix!r}; a table is {', '.join(SUFFIXES)}")
    try:
        # UTF-8 from spreadsheets begins with a byte order mark; csv handles line ends itself.
        with open(path, encoding="utf-8-sig", newline=None if suffix == ".jsonl" else "") as file:
            yield from _json_rows(file) if suffix == ".jsonl" else _csv_rows(file, path, suffix == ".tsv", columns)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 ({error.reason}); save it as UTF-8") from error


def _csv_rows(file: TextIO, path: Path, tabs: bool, columns: Sequence[str] | None) -> Iterator[Row | BadRow]:
    dialect: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {}
    reader = csv.reader(file, strict=True, **dialect)  # strict: an unended quote is an error, not the rest of the file
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if columns is None:
                raise UserError(f"{path}: the names of the columns cannot be read ({error})") from error
            yield BadRow(line, f"cannot be read ({error})")
            continue
        if not cells or (columns is None and cells[0].lower().startswith("sep=")):  # Excel's line before the header
            continue
        if columns is None:
            columns = [name.strip() for name in cells]
            if twice := sorted({name for name in columns if name and columns.count(name) > 1}):
                raise UserError(f"{path}: two columns are named {twice[0]!r}")
            if len(columns) == 1 and (separator := re.search("[;\t]", columns[0])):
                wanted = "tabs" if tabs else "commas"
                raise UserError(f"{path}: its columns are separated by {separator[0]!r}; save it with {wanted}")
        elif len(cells) != len(columns):
            yield BadRow(line, f"{len(cells)} cells instead of {len(columns)} ({', '.join(columns)})")
        else:
            named = zip(columns, map(str.strip, cells), strict=True)
            yield Row(line, {name: cell for name, cell in named if name or cell})


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
