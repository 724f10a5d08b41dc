"""SHA256SUMS: what was written into a folder, with checksums, in the format of `sha256sum --check`.

Its first line, a comment, says what the folder is, so that a command replaces only folders of its own, and in them only
the files that it wrote. That a file was compared with its checksum is remembered in the cache folder.
"""

import hashlib
import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from onepeace.files.atomic import cache_folder, make_folder, write_text_atomic
from onepeace.progress import status

SUMS = "SHA256SUMS"
CHUNK = 1 << 20
MARK = re.compile(r"# written by onepeace: (.+)")
LARGE = 1 << 29
"""Size in bytes from which reading all of a file takes so long that it is announced."""
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


def is_intact(path: Path, digest: str, *, again: bool = False) -> bool:
    """Whether a file has the content of a checksum: it is read once, and again when its size, times or inode change.

    Reading weights at each load would cost more than a tenth of loading them, which maps the file: a CRC-32 takes 6 %
    of it for 55 MB and all of it for 1 GB.

    Args:
        digest: SHA-256, hexadecimal.
        again: read it in any case.

    Raises:
        OSError: it cannot be read.
    """
    found = os.stat(path)
    # Whoever writes to a file changes its ctime, which cannot be set.
    state = f"{digest} {(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)}"
    name = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:32]
    memory = cache_folder() / "intact" / name
    with suppress(OSError, UnicodeDecodeError):  # nothing is remembered, or it is damaged
        if not again and memory.read_text(encoding="ascii") == state:
            return True
    if found.st_size >= LARGE:
        status(f"comparing {path.name} with its checksum, once ...")
    if sha256_of(path) != digest:
        return False
    with suppress(OSError):  # it only saves time
        make_folder(memory.parent)
        write_text_atomic(memory, state)
    return True
