"""Locks: on a folder that one process at a time writes to, and on temporary files, whose writer may have been killed.

The system drops the locks of a killed process.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from onepeace.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
PATIENCE = 6.0
"""Seconds to wait for a lock: workers of a killed process may hold it for five until they notice."""


class Locked(UserError):
    """Another process has locked a folder."""


@contextmanager
def locked(folder: Path, *, patience: float = PATIENCE, again: bool = True) -> Iterator[None]:
    """Context in which other processes cannot lock the folder.

    The folder is created, and removed again if nothing is written into it. The empty file ``.lock`` stays.

    Args:
        patience: seconds to wait for the lock; -1 = until it is free.
        again: whether this process may lock it again.

    Raises:
        Locked: another process has locked it; UserError: it cannot be written.
    """
    from filelock import FileLock, Timeout

    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.resolve() / LOCK, timeout=patience, is_singleton=again)
        lock.acquire()
    except Timeout:
        raise Locked(
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


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Context in which `is_left_over` is False for a temporary file or folder, also after it is renamed.

    filelock would need a second file, which a killed process leaves behind too, so the file itself is locked.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def is_left_over(path: Path) -> bool:
    """Whether the process that wrote a temporary file or folder has ended; False where the system cannot tell."""
    if fcntl is None:
        return False
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:  # gone meanwhile, or of another user
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
