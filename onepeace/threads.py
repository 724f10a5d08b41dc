"""CPU threads: how work is divided among them, and how they wait for each other. Importing this does not import torch.

torch splits each operator over OpenMP's threads, which spin while they wait for the slowest one. If another program is
busy, one of them has to wait for its core in every operator, while the cores of the others are wasted. Therefore:

- encoding computes as many batches at once as torch uses threads, each batch in one thread that does not split its
  operators (`compute_ahead`);
- training, where a step is one batch, splits operators, and the command line lets waiting threads sleep
  (`sleep_while_waiting`).
"""

import os
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch
    from threadpoolctl import ThreadpoolController

Item = TypeVar("Item")
Batch = TypeVar("Batch")
Result = TypeVar("Result")

MAX_DECODING = 8
"""Number of decoding threads; PIL and soundfile release the GIL, but not always."""
MIN_BATCH = 4
"""Smallest batch when work is shared among workers; below it Python's overhead dominates."""
_SETTING = threading.Lock()
_LIMITING_BLAS = threading.Lock()
POLICY = "OMP_WAIT_POLICY"
"""Environment variable for how OpenMP threads wait, read by libgomp (torch on Linux), libomp and Intel's OpenMP."""


def sleep_while_waiting() -> None:
    """Let OpenMP's threads sleep while they wait, unless the environment says otherwise.

    OpenMP reads the setting once, when torch is imported; after that, this function does nothing.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault(POLICY, "PASSIVE")


def num_workers(device: "torch.device") -> int:
    """Number of batches computed at once on a device: on a CPU, torch's number of threads for one operator."""
    import torch

    return torch.get_num_threads() if device.type == "cpu" else 1


def decode_ahead(
    items: Iterable[Item], decode: Callable[[Item], Result], *, ahead: int
) -> Generator[tuple[int, Item, Result | Exception], None, None]:
    """Yield (index, item, decode(item)) in order, while threads decode up to `ahead` further items.

    `items` is read lazily, in the caller's thread. An exception raised by `decode` is yielded as the item's result.
    A single item is decoded in the caller's thread, as starting another would take a fifth of the time of a short text.
    """
    if isinstance(items, Sized) and len(items) == 1:
        (only,) = items
        try:
            decoded: Result | Exception = decode(only)
        except Exception as failure:
            decoded = failure
        yield 0, only, decoded
        return
    workers = min(MAX_DECODING, ahead, max(2, os.cpu_count() or 1))
    pool = ThreadPoolExecutor(workers, "onepeace-decode", initializer=compute_alone)
    submitted = ((index, item, pool.submit(decode, item)) for index, item in enumerate(items))
    try:
        pending = deque(islice(submitted, ahead))
        while pending:
            pending.extend(islice(submitted, 1))
            index, item, future = pending.popleft()
            error = future.exception()
            if isinstance(error, Exception):
                yield index, item, error
            else:
                yield index, item, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def batch_per_worker(batch_size: int, workers: int) -> int:
    """Items per batch, if all workers together compute about `batch_size` items at once."""
    return max(-(-batch_size // workers), min(MIN_BATCH, batch_size))


def compute_ahead(
    batches: Iterable[Batch], compute: Callable[[Batch], Result], workers: int, *, splits_single: bool = False
) -> Generator[tuple[Batch, Result], None, None]:
    """Yield (batch, compute(batch)) in order, while threads compute up to two further batches per worker.

    `batches` is read lazily, in the caller's thread. An exception of `compute` is raised where its result would be
    yielded.

    Args:
        workers: batches computed at once, each in a thread that does not split operators; 1 = in the caller's thread.
        splits_single: whether a single batch is computed in the caller's thread, which splits operators.
    """
    source = iter(batches)
    first = list(islice(source, 2)) if splits_single and workers > 1 else []
    batches = chain(first, source)
    if workers == 1 or len(first) == 1:
        for batch in batches:
            yield batch, compute(batch)
        return
    pool = ThreadPoolExecutor(workers, "onepeace-compute", initializer=compute_alone)
    submitted = ((batch, pool.submit(compute, batch)) for batch in batches)
    waits = True
    try:
        pending = deque(islice(submitted, 2 * workers))
        while pending:
            pending.extend(islice(submitted, 1))
            batch, future = pending.popleft()
            yield batch, future.result()
    except KeyboardInterrupt:
        waits = False  # nobody waits for the batches under way, which may take seconds
        raise
    finally:
        pool.shutdown(wait=waits, cancel_futures=True)


def compute_alone() -> None:
    """Make the calling thread compute each operator by itself, permanently; for threads of a pool."""
    import torch

    with _SETTING:
        num_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        # Threads that have not computed yet would get this number too; another thread puts the old one back.
        thread = threading.Thread(target=torch.set_num_threads, args=(num_threads,))
        thread.start()
        thread.join()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Context in which numpy's matrix products use one thread of OpenBLAS.

    Threads of OpenBLAS spin while they wait for each other: while another program was busy, a product with 10,000
    vectors took 16 ms instead of 0.3. Callers with many products compute them in their own threads.
    """
    # The limit is global: the first user sets it, and the last one puts it back.
    with _LIMITING_BLAS:
        if not _Limited.users:
            _Limited.limit = _blas().limit(limits=1)
        _Limited.users += 1
    try:
        yield
    finally:
        with _LIMITING_BLAS:
            _Limited.users -= 1
            if not _Limited.users:
                _Limited.limit.restore_original_limits()


class _Limited:
    """The use of OpenBLAS's limit at the moment."""

    users = 0
    limit: Any = None


class Computed:
    """Values by key, each computed once: by the thread that first asks for it, while others that ask wait for it.

    Args:
        most: number of values that are kept, those asked for last; None = all.
    """

    def __init__(self, most: int | None = None) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._futures: OrderedDict[Hashable, Future[Any]] = OrderedDict()

    def get(self, key: Hashable, compute: Callable[[], Result]) -> Result:
        """The value of a key; an exception of ``compute`` is raised in all threads that wait, and not kept."""
        with self._lock:
            known = self._futures.pop(key, None)
            future: Future[Result] = known or Future()
            self._futures[key] = future
            if self._most is not None and len(self._futures) > self._most:
                self._futures.popitem(last=False)
        if known is None:
            try:
                future.set_result(compute())
            except BaseException as error:
                with self._lock:
                    self._futures.pop(key, None)
                future.set_exception(error)
        return future.result()


def describe_threads() -> str:
    """The use of threads on this machine, in one line."""
    import torch

    policy = os.environ.get(POLICY, "spin").lower()
    waiting = {"passive": "sleep while they wait", "active": "spin"}.get(policy, policy)
    count = torch.get_num_threads()
    return f"encoding: {count} batches at once, one thread each; training: {count} threads, which {waiting}"


@cache
def _blas() -> "ThreadpoolController":
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")
