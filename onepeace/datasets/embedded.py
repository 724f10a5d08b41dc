"""Pictures and sounds that lie in the cells of a table, as their encoded bytes."""

import hashlib
import io
from pathlib import Path, PurePosixPath
from typing import cast

from onepeace.datasets.reading import plain_name
from onepeace.errors import UserError
from onepeace.files.picture import open_picture
from onepeace.files.source import NamedBytes
from onepeace.processors import PROCESSORS

PICTURE_ENDINGS = {"JPEG": ".jpg", "MPO": ".jpg"}
"""File endings by Pillow's name of the format, unless it is that name."""
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


def embedded_file(content: bytes, modality: str, row_name: str, path: str) -> EmbeddedFile:
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


class Unpacked:
    """Folder into which files of cells are written; equal files are written once.

    Args:
        folder: an empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._paths: dict[bytes, Path] = {}

    def write(self, file: EmbeddedFile) -> Path:
        """Write a file under its own path, or, if another one has that path, in a folder with a number.

        Raises:
            UserError: it cannot be written.
        """
        digest = hashlib.sha256(file).digest()
        if digest in self._paths:
            return self._paths[digest]
        path = self.folder / file.path
        if path.exists():
            path = self.folder / str(len(self._paths)) / file.path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file)
        except OSError as error:
            raise UserError(f"cannot be written ({error.strerror or error})", where=path) from error
        self._paths[digest] = path
        return path
