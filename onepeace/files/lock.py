"""A folder that one process at a time writes to."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from onepeace.errors import UserError

LOCK = ".lock"
PATIENCE = 6.0
"""Seconds to wait for a lock: workers of a killed process may hold it for five until they notice."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Context in which other processes cannot lock the folder, which is created; this process may lock it again.

    The system drops the lock of a killed process; the empty file ``.lock`` stays.

    Raises:
        UserError: another process has locked it, or it cannot be written.
    """
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.resolve() / LOCK, timeout=PATIENCE, is_singleton=True)
        lock.acquire()
    except Timeout:
        raise UserError(
            f"{folder}: another run is writing to this folder; wait until it has ended, or name another folder"
        ) from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error})") from error
    try:
        yield
    finally:
        lock.release()
