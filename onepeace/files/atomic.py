"""Writing beside other processes: files that readers find old or whole, also after a crash, and locks on folders.

The system drops the locks of a killed process, so that what it left is known.
"""

import os
import re
import secrets
import shutil
import time
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
def locked(folder: Path, *, patience: float | None = None, again: bool = True) -> Iterator[None]:
    """Context in which other processes cannot lock the folder.

    The folder is created, and removed again if nothing is written into it. The empty file ``.lock`` stays.

    Args:
        patience: seconds to wait for the lock; -1 = until it is free, None = `PATIENCE`.
        again: whether this process may lock it again.

    Raises:
        Locked: another process has locked it; UserError: it cannot be written.
    """
    from filelock import FileLock, Timeout

    is_new = False
    try:
        while True:
            with suppress(FileExistsError):
                folder.mkdir(parents=True)
                is_new = True
            path = folder.resolve() / LOCK
            lock = FileLock(path, timeout=PATIENCE if patience is None else patience, is_singleton=again)
            with suppress(FileNotFoundError):  # another process removed the folder just now
                lock.acquire()
            if lock.is_locked and path.exists():
                break
            lock.release()
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
    """Context in which `is_held` is True for a file or folder, also after it is renamed; any number may be in it.

    filelock would need a second file, which a killed process leaves behind too, so the file itself is locked.

    Raises:
        FileNotFoundError: it was removed or renamed meanwhile.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_SH)  # waits for `unless_held`
        if not os.path.samestat(os.fstat(descriptor), os.stat(path)):
            raise FileNotFoundError(path)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def unless_held(path: Path) -> Iterator[bool | None]:
    """Context in which no process enters `held` for a file or folder; yields whether one is in it already, or None if
    the file is gone, or the system cannot tell."""
    descriptor = None
    is_held: bool | None = None
    with suppress(OSError):  # gone meanwhile, of another user, or without locks
        if fcntl is not None:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            is_held = _is_refused(descriptor)
    try:
        yield is_held
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _is_refused(descriptor: int) -> bool:
    """Whether a file cannot be locked by one process alone; OSError if there are no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def is_held(path: Path) -> bool | None:
    """Whether a process is in `held` for a file or folder; None if it is gone, or the system cannot tell."""
    with unless_held(path) as is_held_now:
        return is_held_now


def cache_folder() -> Path:
    """$ONEPEACE_CACHE, or onepeace in the user's cache folder ($XDG_CACHE_HOME, ~/.cache)."""
    if folder := os.environ.get("ONEPEACE_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "onepeace"


STARTING = "new"
UNFINISHED = "tmp"
"""Endings of what is not locked yet, and of what is being written."""
STARTING_SECONDS = 60.0
"""Seconds after which what is not locked yet never will be."""


@contextmanager
def write_atomic(path: str | os.PathLike[str], *, synced: bool = True) -> Iterator[Path]:
    """Yield a temporary path next to ``path``, which is synced to disk and renamed to ``path`` when the block ends.

    If the block fails, or removes the temporary file, ``path`` is as it was. If ``path`` is a link, all this happens
    to the file that it leads to. The file gets the permissions of new files. What killed processes left of writing it
    is removed.

    Args:
        synced: False for one of many files that are checked when they are read, as a power cut may leave zeros of it.
            Then nothing is removed either, for which the folder is listed; see `remove_unfinished_in`.

    Raises:
        OSError: the disk is full or not writable.
    """
    target = Path(os.path.realpath(path))
    if synced:
        remove_unfinished(target)
    try:
        with unfinished(target) as temporary:
            mode = temporary.stat().st_mode
            yield temporary
            if not temporary.exists():
                return
            if temporary.stat().st_mode != mode:  # a library put another file in its place
                temporary.chmod(mode)
            if synced:
                sync(temporary)
            os.replace(temporary, target)
        if synced:
            sync(target.parent)
    except OSError as error:
        if error.errno is not None:  # an error of the system, not of a caller's own words
            error.filename = os.fspath(target)  # none after a failed write; the temporary file says nothing to users
        raise


def write_text_atomic(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8; see `write_atomic`."""
    with write_atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def unfinished(target: Path, *, is_folder: bool = False) -> Iterator[Path]:
    """Yield a new empty file or folder beside ``target``; what is left of it when the block ends is removed.

    Until then nobody takes it for left over: it is locked before it gets the name by which that is looked for.
    """
    starting = marked(target, STARTING)
    if is_folder:
        starting.mkdir()
    else:
        starting.touch()
    with held(starting):
        path = starting.with_suffix(f".{UNFINISHED}")
        starting.rename(path)
        try:
            yield path
        finally:
            _remove(path)


def marked(target: Path, ending: str) -> Path:
    """A new hidden name beside ``target``, with our mark: nobody else gives such names."""
    return target.with_name(f".{target.name}.onepeace-{secrets.token_hex(4)}.{ending}")


def left_over(target: Path, ending: str) -> list[Path]:
    """The files and folders that processes named by `marked` and left when they were killed."""
    return _left_over_in(target.parent, re.escape(target.name), ending)


def remove_unfinished(target: Path) -> None:
    """Remove what killed processes left of writing a file or a folder."""
    for path in left_over(target, UNFINISHED):
        _remove(path)
    for path in left_over(target, STARTING):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > STARTING_SECONDS:
                _remove(path)


def _remove(path: Path) -> None:
    """Remove a file or folder, if there is one."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_unfinished_in(folder: Path) -> None:
    """Remove what killed processes left of writing anything into a folder of our own."""
    for path in _left_over_in(folder, ".+", UNFINISHED):
        _remove(path)


def _left_over_in(folder: Path, name: str, ending: str) -> list[Path]:
    pattern = re.compile(rf"\.{name}\.onepeace-[0-9a-f]{{8}}\.{ending}")
    entries: list[str] = []
    with suppress(OSError):  # there is no such folder, or it cannot be listed
        entries = os.listdir(folder)
    paths = [folder / entry for entry in entries if pattern.fullmatch(entry)]
    return [path for path in paths if is_held(path) is False]  # its process has ended


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
