"""Reading of tables and lists in a download; errors are `UserError`s that name file and line."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from onepeace.datasets.tables import BadRow, read_table
from onepeace.errors import UserError


def find(folder: Path, *names: str, what: str) -> Path:
    """The first file or folder below `folder` that has one of these names; the message describes it by `what`."""
    for name in names:
        paths = sorted(folder.rglob(name))
        if paths:
            return paths[0]
    raise UserError(f"holds no {' or '.join(names)} ({what})", where=folder)


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """The non-empty lines of a text file, each with "FILE:LINE" for messages."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path}:{number}", line.rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read ({error})", where=path) from error


def read_rows(path: Path, *needed: str, columns: Sequence[str] | None = None) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a .csv file, each with "FILE:LINE" for messages.

    Args:
        needed: columns that must exist and be filled.
        columns: names of the columns, if the file has no header.
    """
    for row in read_table(path, columns):
        where = f"{path}:{row.line}"
        if isinstance(row, BadRow):
            raise UserError(f"{row.reason}", where=where)
        for name in needed:
            if not row.cells.get(name, "").strip():
                raise UserError(f"no {name}; expected the columns {', '.join(needed)}", where=where)
        yield where, row.cells


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON ({error.msg})") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read ({error})", where=path) from error


def read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file with one JSON object a line, each with "FILE:LINE" for messages."""
    for where, line in read_lines(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"not JSON ({error})", where=where) from error
        if not isinstance(row, dict):
            raise UserError("not a JSON object", where=where)
        yield where, row


def json_rows(path: Path, name: str = "", content: Any = None) -> Iterator[tuple[str, Any]]:
    """The entries of the list in field `name` of a JSON file, or of the file itself, each with its place for messages.

    `content` is the content of the file, if it has been read already.
    """
    rows = read_json(path) if content is None else content
    if name:
        rows = rows.get(name) if isinstance(rows, dict) else None
    if not isinstance(rows, list):
        raise UserError(f"{path}: has no list of {name}" if name else f"{path}: holds no list")
    for number, row in enumerate(rows, 1):
        yield f"{path}: {name or 'list'}, entry {number}", row


@contextmanager
def fields(where: str, row: object, names: str) -> Iterator[None]:
    """Turn the error of a missing or malformed field into a `UserError` that lists the expected fields."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise UserError(f"expected {names}; found {row!r:.100}", where=where) from error


def whole_number(text: str, where: str) -> int:
    """Parse a whole number in a cell; `where` is for the message."""
    if not text.strip().isdecimal():
        raise UserError(f"expected a whole number, found {text!r}", where=where)
    return int(text)


def sentence(text: str) -> str:
    """A caption with one space between words, none before punctuation, and no full stop at the end."""
    words = " ".join(text.split())
    return re.sub(r"\s+([.,!?;:'])", r"\1", words).rstrip(" .")


def plain_name(text: str) -> str:
    """Reduce a text to letters, digits and "_", for keys and names of shards."""
    return re.sub(r"\W+", "_", text)
