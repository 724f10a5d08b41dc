"""The write lock of an index: one process writes at a time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from onepeace.errors import UsageError, UserError
from onepeace.files.atomic import make_folder
from onepeace.index.store import is_index, no_index

LOCK = "lock"
"""Name of the lock file in the folder of an index."""


class Locked(UserError):
    """Another process is writing to an index."""


@contextmanager
def writing(folder: str | os.PathLike[str], create: bool = False) -> Iterator[Path]:
    """Context with the write lock of an index; yields its folder.

    Args:
        create: create the folder if it does not exist; it is removed again if no index was written.

    Raises:
        UserError: there is no index, or the folder has other files in it; Locked: another process is writing.
    """
    from filelock import FileLock, Timeout

    target = Path(folder)
    if os.path.exists(target) and not os.path.isdir(target):  # False without permission, unlike those of Path
        raise UsageError("is a file; name a folder", where=target)
    if not create and not is_index(target):
        raise no_index(target)
    lock = FileLock(target / LOCK, timeout=0)
    try:
        is_new = not os.path.exists(target)
        if not is_new:
            _refuse_other_files(target)
        make_folder(target)
        lock.acquire()
        for leftover in target.glob(".*.tmp*"):  # partial files of a run that was killed
            leftover.unlink(missing_ok=True)
    except Timeout:
        raise Locked("another process is writing to this index; wait until it has ended", where=target) from None
    except OSError as error:
        raise UserError(f"cannot be written ({error.strerror or error})", where=target) from error
    try:
        yield target
    finally:
        lock.release()
        if is_new:
            _remove_without_index(target)


def _refuse_other_files(folder: Path) -> None:
    """UserError if a folder is not an index, and has files in it."""
    is_ours = is_index(folder) or (folder / LOCK).exists()
    if not is_ours and any(folder.iterdir()):
        raise UserError("a folder with other files in it, and no index; name a new folder", where=folder)


def _remove_without_index(folder: Path) -> None:
    """Remove a new folder in which no index was written."""
    with suppress(OSError):  # it was moved meanwhile
        if {path.name for path in folder.iterdir()} == {LOCK}:
            (folder / LOCK).unlink()
            folder.rmdir()
