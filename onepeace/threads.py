"""CPU threads: how work is divided among them, and how they wait for each other. Importing this does not import torch.

torch splits each operator over OpenMP's threads, which spin while they wait for the slowest one. If another program is
busy, one of them has to wait for its core in every operator, while the cores of the others are wasted. Therefore:

- encoding computes as many batches at once as torch uses threads, each batch in one thread that does not split its
  operators (`Computing`);
- training, where a step is one batch, splits operators, and the command line lets waiting threads sleep
  (`sleep_while_waiting`).
"""

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    import torch
    from threadpoolctl import ThreadpoolController

Batch = TypeVar("Batch")
Result = TypeVar("Result")

MIN_BATCH = 4
"""Smallest batch when work is shared among workers; below it Python's overhead dominates."""
_ONE = threading.Lock()
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


def compute_alone() -> None:
    """Make the calling thread stop splitting its operators over threads, permanently; for threads of a pool."""
    _limit()


@contextmanager
def computing_alone() -> Iterator[None]:
    """Context in which the calling thread does not split its operators over threads."""
    restore = _limit()
    try:
        yield
    finally:
        restore()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Context in which numpy's matrix products use one thread of OpenBLAS.

    Threads of OpenBLAS spin while they wait for each other: while another program was busy, a product with 10,000
    vectors took 16 ms instead of 0.3. Callers with many products compute them in their own threads.
    """
    with _ONE, _blas().limit(limits=1):  # the limit is global: concurrent users would restore each other's limit
        yield


def describe() -> str:
    """The use of threads on this machine, in one line."""
    import torch

    policy = os.environ.get(POLICY, "spin").lower()
    waiting = {"passive": "sleep while they wait", "active": "spin"}.get(policy, policy)
    count = torch.get_num_threads()
    return f"encoding: {count} batches at once, one thread each; training: {count} threads, which {waiting}"


class Stopped(BaseException):
    """Raised in a thread whose result is no longer needed."""


class Computing(Generic[Batch, Result]):
    """Computes batches in threads and returns results in the order of the batches; leaving its context stops them.

    Args:
        compute: computes the result of a batch; its exceptions are raised where the result would be returned.
        workers: batches computed at once, each in a thread that does not split operators; 1 = in the caller's thread.
        alone: whether a single batch, which is computed in the caller's thread, does not split operators either.
    """

    def __init__(self, compute: Callable[[Batch], Result], workers: int, alone: bool = True) -> None:
        self.workers = workers
        self._compute, self._alone = compute, alone
        self._pool = ThreadPoolExecutor(workers, "onepeace-compute", initializer=compute_alone)
        self._waiting: deque[tuple[Batch, Future[Result]]] = deque()
        self._running: set[int] = set()

    def share(self, batch_size: int) -> int:
        """Items per batch, if all workers together compute about ``batch_size`` items at once."""
        return max(-(-batch_size // self.workers), min(MIN_BATCH, batch_size))

    @property
    def busy(self) -> bool:
        """Whether there are batches whose results have not been returned."""
        return bool(self._waiting)

    def start(self, batch: Batch) -> list[tuple[Batch, Result]]:
        """Start a batch; return the oldest results, waiting until at most two batches per worker are unfinished."""
        if self.workers == 1:
            return [(batch, self._compute(batch))]
        self._waiting.append((batch, self._pool.submit(self._run, batch)))
        return list(self.rest(keep=2 * self.workers))

    def rest(self, keep: int = 0) -> Iterator[tuple[Batch, Result]]:
        """Wait for and yield the results of all but the last ``keep`` batches."""
        while len(self._waiting) > keep:
            batch, future = self._waiting.popleft()
            yield batch, future.result()

    def finish(self, batches: Sequence[Batch]) -> Iterator[tuple[Batch, Result]]:
        """Compute the last batches and yield all remaining results. A single batch runs in the caller's thread."""
        if len(batches) == 1 and self.workers > 1 and not self._waiting:
            with computing_alone() if self._alone else nullcontext():
                result = self._compute(batches[0])
            yield batches[0], result
            return
        for batch in batches:
            yield from self.start(batch)
        yield from self.rest()

    def __enter__(self) -> "Computing[Batch, Result]":
        return self

    def __exit__(self, *_: object) -> None:
        import ctypes

        for thread in tuple(self._running):  # after an error or Ctrl-C: stop within a batch, which may take seconds
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(Stopped))
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _run(self, batch: Batch) -> Result:
        self._running.add(threading.get_ident())
        try:
            return self._compute(batch)
        finally:
            self._running.discard(threading.get_ident())


def _limit() -> Callable[[], None]:
    """Set the calling thread's limit to 1; return a function that restores it."""
    import torch

    torch.get_num_threads()  # the first call in a thread sets the limits that the next lines change
    limit = _openmp().limit(limits=1)
    set_mkl = _mkl()
    before = set_mkl(1)

    def restore() -> None:
        set_mkl(before)
        limit.restore_original_limits()

    return restore


@cache
def _openmp() -> "ThreadpoolController":
    """Controller of the OpenMP that torch has loaded; its limit is per thread."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="openmp")


@cache
def _blas() -> "ThreadpoolController":
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")


@cache
def _mkl() -> Callable[[int], int]:
    """Function that sets MKL's limit of the calling thread, as torch.set_num_threads does; it overrides OpenMP's."""
    import ctypes

    import torch

    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        return library.MKL_Set_Num_Threads_Local  # type: ignore[no-any-return]
    except (OSError, AttributeError):  # torch was built without MKL, or does not export it
        return lambda _: 0
