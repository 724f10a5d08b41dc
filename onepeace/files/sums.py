"""SHA256SUMS: what was written into a folder, with checksums, in the format of `sha256sum --check`.

Its first line, a comment, says what the folder is, so that a command replaces only folders of its own, and in them only
the files that it wrote.
"""

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

from onepeace.files.atomic import write_text_atomic

SUMS = "SHA256SUMS"
CHUNK = 1 << 20
MARK = re.compile(r"# written by onepeace: (.+)")
LINE = re.compile(r"([0-9a-f]{64})  ([^/]+)")


@dataclass(frozen=True)
class Sums:
    """Content of the SHA256SUMS of a folder."""

    what: str = ""
    """What was written, such as "model folder"; "" if the folder has no SHA256SUMS of ours."""
    digests: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each file, hexadecimal, by the file's name."""


def write_sums(folder: Path, what: str) -> None:
    """Write the SHA256SUMS of all files that are in a folder.

    Args:
        what: what the folder is, see `Sums`.

    Raises:
        OSError: a file cannot be read, or the disk is full.
    """
    lines = [f"# written by onepeace: {what}"]
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name != SUMS:
            lines.append(f"{sha256_of(path)}  {path.name}")
    write_text_atomic(folder / SUMS, "\n".join(lines) + "\n")


def read_sums(folder: Path) -> Sums:
    """Read the SHA256SUMS of a folder; empty if there is none, or it was not written by this package.

    Raises:
        OSError: it cannot be read.
    """
    try:
        first, *lines = (folder / SUMS).read_text(encoding="utf-8").splitlines() or [""]
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError):
        return Sums()
    mark = MARK.fullmatch(first)
    if mark is None:
        return Sums()
    digests = {}
    for line in lines:
        if match := LINE.fullmatch(line):
            digests[match[2]] = match[1]
    return Sums(mark[1], digests)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
