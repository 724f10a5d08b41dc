"""The one process that writes to an index."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from onepeace.errors import UsageError, UserError
from onepeace.files.atomic import make_folder
from onepeace.index.store import DATABASE

LOCK = "lock"


@contextmanager
def writing(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """The folder of an index while no other process writes to it; made if it is not there.

    Raises:
        UserError: another process is writing; it is a folder of something else.
    """
    from filelock import FileLock, Timeout

    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target}: is a file; name a folder")
    lock = FileLock(target / LOCK, timeout=0)
    try:
        is_new = not target.exists()
        if not is_new and not _is_index(target) and any(target.iterdir()):
            raise UserError(f"{target}: a folder with other files in it, and no index; name a new folder")
        make_folder(target)
        lock.acquire()
    except Timeout:
        raise UserError(f"{target}: another process is writing to this index; wait until it has ended") from None
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror or error})") from error
    try:
        yield target
    finally:
        lock.release()
        if is_new and {path.name for path in target.iterdir()} == {LOCK}:  # nothing has come of it
            with suppress(OSError):
                (target / LOCK).unlink()
                target.rmdir()


def _is_index(folder: Path) -> bool:
    return (folder / DATABASE).exists() or (folder / LOCK).exists()
