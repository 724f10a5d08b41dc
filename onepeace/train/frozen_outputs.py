"""Outputs of frozen networks for all training items, computed once before the first step by all processes together."""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from onepeace.errors import UserError
from onepeace.progress import Progress
from onepeace.train import parallel
from onepeace.train.frozen_cache import FrozenCache, Output

if TYPE_CHECKING:
    from filelock import BaseFileLock

log = logging.getLogger(__name__)

LOCK_SECONDS = 60
"""Seconds after which the processes ask each other again whether the folder is free; below the timeout of a message."""


def compute_missing(cache: FrozenCache, compute: Callable[[list[str]], Iterable[Output]], part_size: int) -> None:
    """Compute the outputs that a cache lacks, a part in each process at a time; all processes must call it.

    A part has the same items for any number of processes, and so the same values. Other runs wait until then.

    Args:
        cache: cache in a folder that all processes share.
        compute: returns the outputs of the named items, any number for each; none for one that cannot be decoded.
        part_size: items per part: what is lost if the run is killed, and what a process computes while others wait.

    Raises:
        UserError: the processes see different outputs in the folder.
    """
    if not any(parallel.gather_numbers(len(cache.missing))):
        return
    with _locked(cache):
        cache.refresh()  # another run may have computed some
        missing = cache.missing
        _check_shared(cache, len(missing))
        starts = range(0, len(missing), part_size)
        parts = [missing[start : start + part_size] for start in starts]
        first_number = max(cache.parts, default=-1) + 1
        is_first = parallel.rank() == 0
        if is_first and missing:
            log.warning("%s: computing %d items, once", cache.folder, len(missing))
        with Progress(len(missing), "item", shown=None if is_first else False) as progress:
            world_size = parallel.world_size()
            for begin in range(0, len(parts), world_size):
                index = begin + parallel.rank()
                if index < len(parts):
                    _write_part(cache, first_number + index, compute(parts[index]))
                parallel.barrier()
                computed_now = parts[begin : begin + world_size]
                progress.update(sum(map(len, computed_now)))
        cache.refresh()


def _write_part(cache: FrozenCache, number: int, computed: Iterable[Output]) -> None:
    outputs = list(computed)
    if outputs:
        cache.write(number, outputs)


@contextmanager
def _locked(cache: FrozenCache) -> Iterator[None]:
    """Context in which the first process holds the cache's lock, for all."""
    lock = cache.lock()
    try:
        while not parallel.first_decides(parallel.rank() > 0 or _acquired(lock)):
            pass
        yield
    finally:
        lock.release()


def _acquired(lock: "BaseFileLock") -> bool:
    from filelock import Timeout

    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout:
        return False
    return True


def _check_shared(cache: FrozenCache, num_missing: int) -> None:
    counts = parallel.gather_numbers(num_missing)
    if len(set(counts)) > 1:
        raise UserError(
            f"processes miss {min(counts)} to {max(counts)} outputs in it; set data.frozen_folder to a "
            "folder that all machines share",
            where=cache.folder,
        )
