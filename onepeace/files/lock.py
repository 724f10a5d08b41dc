"""A folder that one process at a time writes to."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from onepeace.errors import UserError

LOCK = ".lock"
PATIENCE = 6.0
"""Seconds to wait for a lock: workers of a killed process may hold it for five until they notice."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Context in which other processes cannot lock the folder; this process may lock it again.

    The folder is created, and removed again if nothing is written into it. The system drops the lock of a killed
    process; the empty file ``.lock`` stays.

    Raises:
        UserError: another process has locked it, or it cannot be written.
    """
    from filelock import FileLock, Timeout

    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.resolve() / LOCK, timeout=PATIENCE, is_singleton=True)
        lock.acquire()
    except Timeout:
        raise UserError(
            "another run is writing to this folder; wait until it has ended, or name another folder", where=folder
        ) from None
    except OSError as error:
        raise UserError(f"cannot be written ({error.strerror or error})", where=folder) from error
    try:
        yield
    finally:
        with suppress(OSError):  # it was moved meanwhile
            if is_new and os.listdir(folder) == [LOCK]:
                (folder / LOCK).unlink()
                folder.rmdir()
        lock.release()
