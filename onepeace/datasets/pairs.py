"""Samples of users: the rows of a table or data set, or the files of a folder, checked without decoding a file."""

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, cast

from onepeace.datasets.layout import Record, Skipped, skipped
from onepeace.datasets.parquet import data_files, is_parquet, read_parquet
from onepeace.datasets.reading import plain_name
from onepeace.datasets.tables import (
    CAPTIONS,
    LABEL,
    PLACES,
    TEXT,
    BadRow,
    Cell,
    ColumnNames,
    Row,
    content_of,
    read_table,
    some_names,
)
from onepeace.errors import UsageError, UserError
from onepeace.files import source
from onepeace.files.picture import open_picture
from onepeace.files.source import NamedBytes
from onepeace.files.walk import walk
from onepeace.processors import PROCESSORS, guessed
from onepeace.processors.endings import modality_by_ending

PICTURE_ENDINGS = {"JPEG": ".jpg", "MPO": ".jpg"}
"""File endings by Pillow's name of the format, unless it is that name."""
SAVED = ("state.json", "dataset_dict.json")
"""Files in folders that `save_to_disk` of datasets (Hugging Face) writes, in a format that only it reads."""
LONGEST_PART = 80
"""Characters of a part of a path; names of files have at most 255 bytes."""


class EmbeddedFile(NamedBytes):
    """The bytes of a file in a cell; its name for messages is that of the row."""

    path: PurePosixPath
    """The relative path that the file had, or a name made of that of the row, with a file ending of its modality."""

    def __new__(cls, content: bytes, name: str, path: PurePosixPath) -> "EmbeddedFile":
        embedded = cast(EmbeddedFile, super().__new__(cls, content, name))
        embedded.path = path
        return embedded

    @property
    def suffix(self) -> str:
        return self.path.suffix


def media() -> list[str]:
    """The modalities whose columns hold files."""
    return [key for key in guessed() if key != "text"]


def _media_by_suffix() -> dict[str, str]:
    """Modality by file ending."""
    return {ending: modality for ending, modality in modality_by_ending().items() if modality != "text"}


def column_names(columns: Mapping[str, str]) -> ColumnNames:
    """The possible names of each column, where a table has names of its own for some, such as {"text": "sentence"}.

    Raises:
        UsageError: there is no such column.
    """
    names: dict[str, Sequence[str]] = {key: (key,) for key in media()}
    names |= {TEXT: CAPTIONS, LABEL: (LABEL,)}
    for key, name in columns.items():
        if key not in names:
            raise UsageError(f"--column {key}={name}: {key} is not a content of columns; known: {', '.join(names)}")
        names[key] = (name,)
    return names


def from_source(
    path: Path, columns: Mapping[str, str] | None = None, split: str | None = None
) -> Iterator[Record | Skipped]:
    """A sample, or a `Skipped` with the reason, for each row of a table or data set, or for the files of a folder.

    Columns are image, audio (or as in `PLACES`), text (or as in `CAPTIONS`) and label; empty cells are ignored. Paths
    are relative to the folder of the table. The caption in a .jsonl or Parquet file is one text or a list.

    Args:
        columns: names of columns by their content, where they are not the usual ones.
        split: name of the split of a data set that has several (parquet.py).

    Raises:
        UserError: the source cannot be read, has no row, or no column of files.
    """
    names = column_names(columns or {})
    if any(os.path.exists(path / name) for name in SAVED):  # False without permission, unlike those of Path
        raise UserError("was written by save_to_disk; write Parquet instead: dataset.to_parquet(FILE)", where=path)
    if is_parquet(path):
        return _from_parquet(path, names, split)
    if split is not None:
        raise UsageError("is not a data set with splits; leave out --split", where=path)
    if not path.is_dir():
        return _from_table(path, names)
    if columns:
        raise UsageError("a folder of files has no columns; leave out --column", where=path)
    return from_folder(path)


def _from_table(path: Path, names: ColumnNames) -> Iterator[Record | Skipped]:
    checked = path.suffix.lower() == ".jsonl"  # each row of a .jsonl has its own columns
    has_rows = False
    for row in read_table(path):
        has_rows = True
        if not checked and isinstance(row, Row):
            _check_columns(path, list(row.cells), names)
            checked = True
        yield _sample(row, path, "line", names)
    if not has_rows:
        raise UserError("has no rows", where=path)


def _from_parquet(path: Path, names: ColumnNames, split: str | None) -> Iterator[Record | Skipped]:
    has_rows = False
    for file in data_files(path, split):

        def choose(columns: Sequence[str], file: Path = file) -> list[str]:
            _check_columns(file, columns, names)
            lower_names: set[str] = set(PLACES)
            for names_of_content in names.values():
                lower_names.update(map(str.lower, names_of_content))
            return [column for column in columns if column.lower() in lower_names]

        for row in read_parquet(file, choose):
            has_rows = True
            yield _sample(row, file, "row", names)
    if not has_rows:
        raise UserError("has no rows", where=path)


def _sample(row: Row | BadRow, file: Path, unit: str, names: ColumnNames) -> Record | Skipped:
    """The sample of a row, whose number counts lines or rows of the file."""
    where = f"{file} {unit} {row.line}"
    if isinstance(row, BadRow):
        return Skipped(where, row.reason)
    try:
        return _record(row.cells, file.parent, where, f"{file.name} {unit} {row.line}", names)
    except UserError as error:
        return skipped(where, error)


def from_folder(folder: Path) -> Iterator[Record | Skipped]:
    """A sample for each stem of files below a folder: a.jpg, a.wav and a.txt in one folder are one sample.

    Each line of the .txt is a caption. If no file has a .txt, the name of a file's folder is its label. Links are
    followed, as class folders may hold links to files elsewhere.
    """
    files, unreadable = walk([folder], {".txt": "text", **_media_by_suffix()}, follow_links=True)
    for path, reason in unreadable:
        yield Skipped(_shown(path), reason)
    texts: dict[Path, Path] = {}
    media_by_stem: dict[Path, dict[str, Path]] = {}
    for path, modality in files:
        stem = path.with_suffix("")
        if modality == "text":
            texts[stem] = path
            continue
        files_of_stem = media_by_stem.setdefault(stem, {})
        if modality in files_of_stem:
            first = files_of_stem[modality].name
            yield Skipped(_shown(path), f"{first} in the same folder is the {modality} of this stem")
        else:
            files_of_stem[modality] = path
    has_captions = not texts.keys().isdisjoint(media_by_stem)
    for stem, files_of_stem in media_by_stem.items():
        first_file = next(iter(files_of_stem.values()))
        captions: list[str] = []
        targets = {}
        try:
            if has_captions:
                captions = _sidecar(texts.get(stem, stem.with_name(f"{stem.name}.txt")))
            else:
                targets["label"] = _folder_label(first_file, folder)
            source_name = _shown(first_file.relative_to(folder))
        except UserError as error:
            yield Skipped(_shown(first_file), str(error))
            continue
        inputs = {**files_of_stem, "text": captions}
        yield Record("", source_name, inputs, targets, where=_shown(first_file))


def _check_columns(path: Path, columns: Sequence[str], names: ColumnNames) -> None:
    """Raise UserError if a table has no column of files, or lacks one that is named by an option."""
    lower = set(map(str.lower, columns))
    files: list[str] = []
    for key in media():
        files += names[key]
    if lower.isdisjoint(map(str.lower, (*files, *PLACES))):
        raise UserError(
            f"no column {', '.join((*files, *PLACES))}; it has {some_names(columns)}; rename the one that holds the "
            f"files, or name it with --column {media()[0]}=NAME",
            where=path,
        )
    for content, names_of_content in names.items():
        first = names_of_content[0]
        is_named_by_option = len(names_of_content) == 1 and first != content
        if is_named_by_option and first.lower() not in lower:
            raise UserError(f"no column {first!r}; it has {', '.join(columns)}", where=path)


def _record(
    cells: Mapping[str, Any],
    folder: Path,
    where: str,
    source_name: str,
    names: ColumnNames,
) -> Record:
    """The sample of a row; `UserError` if the row is invalid."""
    content = content_of(cells, names, _media_by_suffix())
    files = {}
    for key, (column, value) in content.files.items():
        files[key] = _file(key, column, value, folder, where)
    if not files:
        raise UserError(f"has no {' and no '.join(media())}")
    captions: list[str] = []
    for cell in content.captions:
        captions += _captions(cell)
    label = _label(content.label)
    if len(files) == 1 and not captions and label is None:
        raise UserError(f"has no caption and no label for its {next(iter(files))}")
    targets = {} if label is None else {"label": label}
    return Record("", source_name, {**files, "text": captions}, targets, where=where)


def _file(modality: str, column: str, value: Any, folder: Path, where: str) -> Path | EmbeddedFile:
    """The file of a cell: a path, bytes, or both as {"bytes", "path"}, the form of datasets."""
    content = value
    path = None
    if isinstance(value, Mapping) and value.keys() >= {"bytes", "path"}:
        path = value["path"]
        content = value["bytes"]
        if content is None:
            content = path
    if isinstance(content, bytes):
        return _embedded_file(content, modality, where, path or plain_name(Path(where).name))
    if not isinstance(content, str):
        raise UserError(f"{column} is {value!r:.60}, not a path")
    if source.scheme(content):
        raise UserError("is an address; download it and give the path", where=source.describe(content))
    file = source.local_path(folder / content)
    if file.suffix.lower() not in PROCESSORS[modality].suffixes:
        raise UserError(f"unknown file extension {file.suffix!r} for {modality}", where=file)
    return file


def _embedded_file(content: bytes, modality: str, row_name: str, path: str) -> EmbeddedFile:
    """The file in a cell.

    Args:
        row_name: name of the row for messages, such as "train.parquet row 3".
        path: the path or name of the file. Only what leads downwards is kept of it, and a file ending is added if it
            has none of the modality.

    Raises:
        UserError: neither the path nor the bytes show the format.
    """
    parts = []
    for part in PurePosixPath(path.replace("\\", "/")).parts:
        printable = "".join(c for c in part if c.isprintable())
        if printable.strip("/."):
            parts.append(printable[-LONGEST_PART:])
    parts = parts or [plain_name(row_name)]
    file = PurePosixPath(*parts)
    if file.suffix.lower() not in PROCESSORS[modality].suffixes:
        parts[-1] += _detected_ending(content, modality, row_name)
        file = PurePosixPath(*parts)
    return EmbeddedFile(content, row_name, file)


def _detected_ending(content: bytes, modality: str, row_name: str) -> str:
    """File ending by the header of a file."""
    ending = ""
    if modality == "image":
        with open_picture(io.BytesIO(content), row_name) as picture:
            ending = PICTURE_ENDINGS.get(picture.format or "", f".{picture.format}".lower())
    elif modality == "audio":
        ending = f".{_sound_format(content)}".lower()
    if ending not in PROCESSORS[modality].suffixes:
        raise UserError(f"the format of the {modality} is not known; store the name of its file, in the field path")
    return ending


def _sound_format(content: bytes) -> str:
    import soundfile

    try:
        return soundfile.info(io.BytesIO(content)).format
    except soundfile.SoundFileError:
        return ""


def _captions(cell: Cell) -> list[str]:
    texts = cell.value if isinstance(cell.value, list) else [cell.value]
    captions = [_text(cell.column, text) for text in texts]
    if not all(captions):
        raise UserError(f"{cell.column} has an empty caption")
    return captions


def _label(cell: Cell | None) -> str | None:
    if cell is None:
        return None
    value = cell.value
    if isinstance(value, int) and not isinstance(value, bool):  # classes are often numbered
        value = str(value)
    return _text(cell.column, value) or None


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
    captions = [_text(path.name, line) for line in lines if line.strip()]
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
