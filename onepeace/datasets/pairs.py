"""Samples of users: the rows of a table or the files of a folder, checked without decoding a file."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from onepeace.datasets.layout import Record, Skipped
from onepeace.datasets.tables import BadRow, read_table
from onepeace.errors import UserError
from onepeace.files import source
from onepeace.files.walk import walk
from onepeace.processors import PROCESSORS, guessed

COLUMNS = {"text": ("text", "caption", "captions")}
"""Possible names of a column, by its content; the first that is filled is used."""


def media() -> list[str]:
    """The modalities whose columns hold files."""
    return [key for key in guessed() if key != "text"]


def from_table(path: Path) -> Iterator[Record | Skipped]:
    """A sample, or a `Skipped` with the reason, for each row of a .csv, .tsv or .jsonl file.

    Columns are image, audio, text (or as in `COLUMNS`) and label; empty cells are ignored. Paths in the table are
    relative to its folder. The caption in a .jsonl is one text or a list.

    Raises:
        UserError: the table cannot be read, has no row, or no column of files.
    """
    checked = path.suffix.lower() == ".jsonl"  # each row of a .jsonl has its own columns
    empty = True
    for row in read_table(path):
        empty = False
        where = f"{path} line {row.line}"
        if isinstance(row, BadRow):
            yield Skipped(where, row.reason)
            continue
        if not checked:
            _check_columns(path, list(row.cells))
            checked = True
        result: Record | Skipped
        try:
            result = _record(row.cells, path.parent, where, f"{path.name} line {row.line}")
        except UserError as error:
            result = Skipped(where, str(error))
        yield result
    if empty:
        raise UserError(f"{path}: has no rows")


def from_folder(folder: Path) -> Iterator[Record | Skipped]:
    """A sample for each stem of files below a folder: a.jpg, a.wav and a.txt in one folder are one sample.

    Each line of the .txt is a caption. If no file has a .txt, the name of a file's folder is its label. Links are
    followed, as class folders may hold links to files elsewhere.
    """
    endings = {suffix: key for key in media() for suffix in PROCESSORS[key].suffixes} | {".txt": "text"}
    found, unreadable = walk([folder], endings, follow_links=True)
    yield from (Skipped(_shown(path), reason) for path, reason in unreadable)
    texts = {path.with_suffix(""): path for path, modality in found if modality == "text"}
    groups: dict[Path, dict[str, Path]] = {}
    for path, modality in found:
        if modality == "text":
            continue
        group = groups.setdefault(path.with_suffix(""), {})
        if modality in group:
            yield Skipped(_shown(path), f"{group[modality].name} in the same folder is the {modality} of this stem")
        else:
            group[modality] = path
    has_captions = not texts.keys().isdisjoint(groups)
    for stem, files in groups.items():
        first = next(iter(files.values()))
        result: Record | Skipped
        try:
            captions = _sidecar(texts.get(stem, stem.with_name(f"{stem.name}.txt"))) if has_captions else []
            targets = {} if has_captions else {"label": _folder_label(first, folder)}
            inputs = {**files, "text": captions}
            result = Record("", _shown(first.relative_to(folder)), inputs, targets, where=_shown(first))
        except UserError as error:
            result = Skipped(_shown(first), str(error))
        yield result


def _check_columns(path: Path, known: Sequence[str]) -> None:
    if not {name.lower() for name in known}.intersection(media()):
        raise UserError(
            f"{path}: no column {' or '.join(media())}; it has {', '.join(known)}; rename the one that holds the files"
        )


def _record(cells: Mapping[str, Any], folder: Path, where: str, source_name: str) -> Record:
    """The sample of a row; `UserError` if the row is invalid."""
    cells = {name.lower(): value for name, value in cells.items()} | dict(cells)

    def cell(key: str) -> tuple[str, Any]:
        filled = [name for name in COLUMNS.get(key, (key,)) if cells.get(name) not in (None, "", [])]
        return (filled[0], cells[filled[0]]) if filled else ("", None)

    files = {}
    for key in media():
        name, value = cell(key)
        if value is not None:
            files[key] = _file(key, name, value, folder)
    if not files:
        raise UserError(f"has no {' and no '.join(media())}")
    captions = _captions(*cell("text"))
    label = _label(*cell("label"))
    if len(files) == 1 and not captions and label is None:
        raise UserError(f"has no caption and no label for its {next(iter(files))}")
    targets = {} if label is None else {"label": label}
    return Record("", source_name, {**files, "text": captions}, targets, where=where)


def _file(modality: str, column: str, value: Any, folder: Path) -> Path:
    if not isinstance(value, str):
        raise UserError(f"{column} is {value!r:.60}, not a path")
    if source.scheme(value):
        raise UserError(f"{source.describe(value)}: is an address; download it and give the path")
    path = source.local_path(folder / value)
    if path.suffix.lower() not in PROCESSORS[modality].suffixes:
        raise UserError(f"{path}: unknown file extension {path.suffix!r} for {modality}")
    return path


def _captions(column: str, value: Any) -> list[str]:
    texts = [] if value is None else value if isinstance(value, list) else [value]
    captions = [_text(column, text) for text in texts]
    if texts and not all(captions):
        raise UserError(f"{column} has an empty caption")
    return captions


def _label(column: str, value: Any) -> str | None:
    if value is None:
        return None
    # Classes are often numbered.
    return _text(column, str(value) if isinstance(value, int) and not isinstance(value, bool) else value) or None


def _text(column: str, value: Any) -> str:
    """The words of a text with one space between them."""
    if not isinstance(value, str):
        raise UserError(f"{column} is {value!r:.60}, not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
        raise UserError(f"{column} is not Unicode text ({error.reason})") from error
    return " ".join(value.split())


def _sidecar(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise UserError(f"has no caption: there is no {path.name} in its folder") from error
    except OSError as error:
        raise UserError(f"{path.name} cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path.name} is not UTF-8 ({error.reason})") from error
    captions = [caption for line in lines if (caption := _text(path.name, line))]
    if not captions:
        raise UserError(f"has no caption: {path.name} is empty")
    return captions


def _folder_label(path: Path, folder: Path) -> str:
    if path.parent == folder:
        raise UserError(
            f"has no .txt in its folder, and is in {_shown(folder)} itself, not in a folder that names its label"
        )
    return _text("the folder's name", path.parent.name)


def _shown(path: Path | str) -> str:
    """A path as Unicode text; bytes that are not UTF-8 as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
