"""Atomic writes: a reader finds the old content or all of the new one, also after a crash."""

import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from onepeace.files.leftovers import held, is_left_over


@contextmanager
def write_atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path next to ``path``, which is synced to disk and renamed to ``path`` when the block ends.

    If the block fails, the temporary file is removed and ``path`` is as it was. If ``path`` is a link, all this happens
    to the file that it leads to.

    Raises:
        OSError: the disk is full or not writable.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    # In a container, a killed run with the same process id may have left a partial file; it is deleted.
    temporary.unlink(missing_ok=True)
    temporary.touch()
    try:
        with held(temporary):
            yield temporary
        sync(temporary)
        os.replace(temporary, target)
        sync(target.parent)
    except OSError as error:
        if error.errno is not None:  # an error of the system, not of a caller's own words
            error.filename = os.fspath(target)  # none after a failed write; the temporary file says nothing to users
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Remove what killed processes left of writing a file (`write_atomic`).

    It looks through the whole folder of the file, so it is called once for a command, not for each of many files.
    """
    target = Path(os.path.realpath(path))
    for temporary in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        if is_left_over(temporary):
            temporary.unlink(missing_ok=True)


def write_text_atomic(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8; see `write_atomic`."""
    with write_atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def make_folder(path: Path) -> None:
    """Make a folder and its missing parents, and sync their entries."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk; folders are skipped where the system cannot."""
    if path.is_dir() and os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)  # Windows needs write access
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
