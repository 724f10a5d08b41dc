"""Rows of a table as entries of an index."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from onepeace.errors import UserError
from onepeace.files.source import describe, suffix
from onepeace.index.entries import Entry, described, entry_of_file, state_of
from onepeace.index.items import Item

MEDIA = ("image", "audio")
"""Columns of a table with a picture and a sound."""
CAPTIONS = ("text", "caption", "captions")
"""Columns of a table that describe its picture or sound."""
PLACES = ("path", "file", "file_name", "filename", "url")
"""Columns of a table with the path of a picture or sound, whose extension says which."""
WANTED = ", ".join((*MEDIA, CAPTIONS[0]))
"""Columns of which a row needs one, for messages."""


def read_rows(table: Path, modalities: Mapping[str, str]) -> Iterator[Entry]:
    """Entries of the picture and the sound of each row, with its captions and other columns, or of its text if it has
    neither. An invalid row becomes an entry with a problem and the path "TABLE::LINE".

    Args:
        modalities: kind of file by extension.

    Raises:
        UserError: the table cannot be read, or has no rows.
    """
    from onepeace.datasets.tables import BadRow, read_table

    row = None
    mtime_ns = 0
    for row in read_table(table):
        mtime_ns = mtime_ns or state_of(str(table))[1]
        item = Item(f"{table}::{row.line}", "text", 0, mtime_ns)
        if isinstance(row, BadRow):
            yield Entry(replace(item, problem=row.reason))
        else:
            yield from _entries_of_row(row.cells, item, table.parent, modalities)
    if row is None:
        raise UserError(f"no rows; columns are {WANTED} and any others", where=table)


def _entries_of_row(
    row: Mapping[str, Any],
    row_item: Item,
    folder: Path,
    modalities: Mapping[str, str],
) -> Iterator[Entry]:
    """Entries of a row of a table in a folder; ``row_item`` is the item of the row itself."""
    from onepeace.datasets.tables import some_names

    cells = {}
    for name, value in row.items():
        if value not in (None, ""):
            cells[name] = value
    captions = []
    for name in CAPTIONS:
        captions += _texts(cells.pop(name, []))
    file_columns = _file_columns(cells)
    other_columns = {name: value for name, value in cells.items() if name not in file_columns}
    if not file_columns and not captions:
        yield Entry(replace(row_item, problem=f"no {WANTED} in this row; it has {some_names(row)}"))
    elif not file_columns:
        yield described(row_item, captions[0], captions, other_columns)
    for column in file_columns:
        value = str(cells[column])
        entry = _file_of_cell(column, value, folder, modalities)
        if entry.item.problem:  # reported for the row rather than the file
            yield Entry(replace(row_item, problem=f"{describe(value)}: {entry.item.problem}"))
        else:
            yield described(entry.item, entry.value, captions, other_columns)


def _file_columns(cells: Mapping[str, Any]) -> list[str]:
    """The columns of a row with the paths of its picture and sound."""
    media = [name for name in MEDIA if name in cells]
    places = [name for name in PLACES if name in cells]
    return media or places[:1]


def _file_of_cell(
    column: str,
    value: str,
    folder: Path,
    modalities: Mapping[str, str],
) -> Entry:
    modality = column if column in MEDIA else modalities.get(suffix(value), "")
    path = os.path.abspath(folder / value)
    if not modality:
        problem = f"its ending is of no known kind of file; rename the column {column} to {' or '.join(MEDIA)}"
        return Entry(Item(path, modality, problem=problem))
    return entry_of_file(path, modality)


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [text.strip() for text in values if isinstance(text, str) and text.strip()]
