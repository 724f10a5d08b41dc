"""Files that are made from an index and can be made again: kept so that a damaged one is never opened.

NAME.json in the folder describes the current file of that name: which one it is, its size and checksum, and what it was
made from. A file is written under a name of its own, brought safely to the disk, and becomes the current one when the
description takes its place; so a kill or a power loss at any moment leaves either the old pair or the new one, and
files that no description names. Before anything else reads a file, its description and checksum are looked at: a native
loader that maps a damaged file reads wherever the damage points to.

Who makes a file holds a lock on its name. A second process that wants to make it waits, and takes what the first made.
What a killed process left is removed by the next that makes a file of the name.
"""

import json
import logging
import os
import re
import secrets
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from onepeace.errors import one_line
from onepeace.files.atomic import write_atomic, write_text_atomic

log = logging.getLogger(__name__)

T = TypeVar("T")
CHUNK = 1 << 22
FORMAT = 1
"""Of the description."""


@dataclass(frozen=True)
class Origin:
    """What a derived file is made from."""

    first: int
    last: int
    """The first row and the last; last is first - 1 for none."""
    generation: int
    """Of the index: another one means that row numbers may mean other rows."""
    calibration: str
    """Hash of the calibration whose numbers are in the file; "" for none."""
    library: str
    """What reads the file, with its version."""


class Made(NamedTuple):
    """Something that was made, and how it becomes a file."""

    value: Any
    facts: dict[str, Any]
    """What reading it needs beside the file, as JSON allows."""
    save: Callable[[Path], None]
    """Writes the file, or raises OSError."""


class _Unusable(Exception):
    """Why a file cannot be used."""


def read(
    folder: Path, name: str, origin: Origin, load: Callable[[Path, dict[str, Any]], T], *, behind: int | None = None
) -> T | None:
    """What `load` makes of the current file of a name, and its facts; None when there is none that can be used.

    One that cannot be used is named in the log with the reason: damaged, or of another origin. Rows that came after it
    was made are no reason.

    Args:
        load: called only for a file whose bytes are those that were written. What it raises makes the file unusable.
        behind: how many later rows are a reason after all.
    """
    try:
        return _read(folder, name, origin, load, behind)
    except _Unusable as reason:
        log.warning("%s: is not used: %s", folder / f"{name}.json", reason)
    return None


def keep(
    folder: Path,
    name: str,
    origin: Origin,
    load: Callable[[Path, dict[str, Any]], T],
    make: Callable[[], Made],
    *,
    behind: int | None = None,
) -> T:
    """Like `read`, but what cannot be used is made again and written; arguments as there.

    A folder that cannot be written to is no error: what was made is returned, and the log has a line.
    """
    if (found := read(folder, name, origin, load, behind=behind)) is not None:
        return found
    made = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder, name):
            with suppress(_Unusable):  # it was named above; another process may have made a new one
                if (found := _read(folder, name, origin, load, behind)) is not None:
                    return found
            made = make()
            write(folder, name, origin, made)
    except OSError as error:
        log.warning("%s: cannot be kept (%s)", folder / name, one_line(error))
    return (made or make()).value


@contextmanager
def _lock(folder: Path, name: str) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(folder / f".{name}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        log.info("%s: another process is making it; waiting ...", folder / name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def write(folder: Path, name: str, origin: Origin, made: Made) -> None:
    """Make this the current file of the name. One process at a time; `keep` sees to that.

    Raises:
        OSError: the disk is full or not writable; the file from before is still the current one.
    """
    remove_leftovers(folder, name)
    file = f"{name}-{secrets.token_hex(4)}.bin"
    with write_atomic(folder / file) as temporary:
        made.save(temporary)
        size, checksum = os.path.getsize(temporary), crc32(temporary)
    about = {
        "format": FORMAT,
        "file": file,
        "size": size,
        "crc32": checksum,
        "origin": asdict(origin),
        "facts": made.facts,
    }
    write_text_atomic(folder / f"{name}.json", json.dumps({**about, "check": _check(about)}, indent=1) + "\n")
    remove_leftovers(folder, name)


def remove_leftovers(folder: Path, name: str) -> None:
    """Remove files of a name that are not its current one. One process at a time may do so."""
    try:
        current = _about(folder, name)["file"]
    except (_Unusable, FileNotFoundError):
        current = None
    for path in folder.iterdir():
        unfinished = re.fullmatch(r"\.(.+)\.\d+\.tmp", path.name)
        whose = unfinished[1] if unfinished else path.name
        if (_is_file(name, whose) and whose != current) or (unfinished and whose == f"{name}.json"):
            with suppress(OSError):  # some systems keep a file that is mapped; the next one removes it
                path.unlink()


def crc32(path: Path) -> int:
    """Of all bytes of a file. Four times as fast as hashlib's hashes, and every flipped bit changes it."""
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


def _read(
    folder: Path, name: str, origin: Origin, load: Callable[[Path, dict[str, Any]], T], behind: int | None
) -> T | None:
    try:
        about = _about(folder, name)
    except FileNotFoundError:
        if any(_is_file(name, path.name) for path in folder.glob("*.bin")):
            raise _Unusable("it is missing") from None
        return None
    _compare(Origin(**about["origin"]), origin, behind)
    path = folder / about["file"]
    try:
        if (size := os.path.getsize(path)) != about["size"]:
            raise _Unusable(f"{path.name} has {size} bytes, not {about['size']}")
        if crc32(path) != about["crc32"]:
            raise _Unusable(f"{path.name} has another checksum")
    except OSError as error:
        raise _Unusable(f"{path.name} cannot be read ({error.strerror})") from error
    try:
        return load(path, about["facts"])
    except Exception as error:  # whatever a library says of a file that is as it was written
        raise _Unusable(f"{path.name} does not open ({one_line(error)})") from error


def _about(folder: Path, name: str) -> dict[str, Any]:
    """The description; FileNotFoundError when there is none."""
    try:
        about = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        check = about.pop("check")
    except FileNotFoundError:
        raise
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        raise _Unusable(f"it is no description ({one_line(error)})") from error
    if check != _check(about):
        raise _Unusable("it is damaged")
    if about["format"] != FORMAT or not _is_file(name, about["file"]):
        raise _Unusable(f"it has the format {about['format']}, not {FORMAT}")
    return about


def _is_file(name: str, file: str) -> bool:
    """Whether a file name is one that `write` gives to files of this name."""
    return re.fullmatch(rf"{re.escape(name)}-[0-9a-f]{{8}}\.bin", file) is not None


def _check(about: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(about, sort_keys=True).encode())


def _compare(made: Origin, wanted: Origin, behind: int | None) -> None:
    for what in ("library", "generation", "calibration", "first"):
        had, has = getattr(made, what), getattr(wanted, what)
        if had != has:
            raise _Unusable(f"it was made with the {what} {had!r}, not {has!r}")
    later = wanted.last - made.last
    if later < 0 or (behind is not None and later > behind):
        raise _Unusable(f"it was made of rows up to {made.last}, not {wanted.last}")
