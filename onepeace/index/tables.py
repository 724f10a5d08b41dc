"""Rows of a table as entries of an index."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from onepeace.errors import UserError
from onepeace.files.source import describe
from onepeace.index.entries import Entry, described, entry_of_file, state_of
from onepeace.index.items import Item

WANTED = "image, audio, text"
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
    from onepeace.datasets.tables import CAPTIONS, content_of, some_names

    names = {"image": ("image",), "audio": ("audio",), "text": CAPTIONS}
    try:
        content = content_of(row, names, modalities)
    except UserError as error:
        yield Entry(replace(row_item, problem=str(error)))
        return
    captions: list[str] = []
    for cell in content.captions:
        captions += _texts(cell.value)
    if not content.files and not captions:
        yield Entry(replace(row_item, problem=f"no {WANTED} in this row; it has {some_names(row)}"))
    elif not content.files:
        yield described(row_item, captions[0], captions, content.others)
    for modality, cell in content.files.items():
        entry = entry_of_file(os.path.abspath(folder / str(cell.value)), modality)
        if entry.item.problem:  # reported for the row rather than the file
            yield Entry(replace(row_item, problem=f"{describe(str(cell.value))}: {entry.item.problem}"))
        else:
            yield described(entry.item, entry.value, captions, content.others)


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [text.strip() for text in values if isinstance(text, str) and text.strip()]
