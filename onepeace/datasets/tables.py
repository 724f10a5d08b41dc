"""Tables of users: the rows of a .csv, .tsv or .jsonl file with their line numbers, and what their columns hold.

An invalid row is returned as `BadRow`.

A .csv file is quoted as in spreadsheets, so a row may span lines. A .tsv file has no quoting, as in its specification:
a line is a row, and `"` is an ordinary character. Both begin with the names of their columns. A .jsonl file has one
JSON object per line.
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from onepeace.errors import UserError
from onepeace.files.source import describe, open_regular, suffix

SUFFIXES = (".csv", ".tsv", ".jsonl")
NAMED = 10
"""Maximum number of columns that a message names."""
TEXT = "text"
CAPTIONS = (TEXT, "caption", "captions")
"""Columns that describe the picture or sound of a row."""
LABEL = "label"
PLACES = ("path", "file", "file_name", "filename", "url")
"""Columns with the path of a file whose ending says what it is; read if no column of a modality is filled."""

ColumnNames = Mapping[str, Sequence[str]]
"""Possible names of each column by its content: a modality of files, `TEXT` or `LABEL`."""


class Row(NamedTuple):
    """A row that could be read."""

    line: int
    """First line of the row, from 1; in a Parquet file, the number of the row."""
    cells: dict[str, Any]
    """Cells by column: strings of a .csv or .tsv, without the spaces around them; any values of other files."""


class BadRow(NamedTuple):
    """A row that could not be read."""

    line: int
    reason: str


class Cell(NamedTuple):
    """A cell that is not empty."""

    column: str
    value: Any


class Content(NamedTuple):
    """Cells of a row by their use."""

    files: dict[str, Cell]
    """Cells with a file, by modality."""
    captions: list[Cell]
    label: Cell | None
    others: dict[str, Any]
    """Values of the other columns that are not empty."""


def content_of(cells: Mapping[str, Any], names: ColumnNames, modalities: Mapping[str, str]) -> Content:
    """Sort the cells of a row by their use; capitals in the names of columns make no difference.

    Args:
        names: possible names of each column.
        modalities: modality by file ending, for columns such as "path".

    Raises:
        UserError: the modality of a file is not known.
    """
    filled = {column: value for column, value in cells.items() if value not in (None, "", [])}
    media = [content for content in names if content not in (TEXT, LABEL)]
    files: dict[str, Cell] = {}
    for modality in media:
        for cell in _cells_of(filled, names[modality])[:1]:
            files[modality] = cell
    if not files:
        for cell in _cells_of(filled, PLACES)[:1]:
            files[_modality_by_ending(cell, modalities, media)] = cell
    captions = _cells_of(filled, names[TEXT])
    labels = _cells_of(filled, names.get(LABEL, ()))[:1]
    used = {cell.column for cell in (*files.values(), *captions, *labels)}
    others = {column: value for column, value in filled.items() if column not in used}
    return Content(files, captions, labels[0] if labels else None, others)


def _cells_of(filled: Mapping[str, Any], names: Sequence[str]) -> list[Cell]:
    """The cells of the columns with these names; of several that differ in capitals, the one that is spelt as here."""
    columns = {column.lower(): column for column in filled}
    cells = []
    for name in names:
        column = name if name in filled else columns.get(name.lower())
        if column is not None:
            cells.append(Cell(column, filled[column]))
    return cells


def _modality_by_ending(cell: Cell, modalities: Mapping[str, str], media: Sequence[str]) -> str:
    ending = suffix(str(cell.value))
    if ending not in modalities:
        reason = f"its ending is of no known kind of file; rename the column {cell.column} to {' or '.join(media)}"
        raise UserError(reason, where=describe(str(cell.value)))
    return modalities[ending]


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
