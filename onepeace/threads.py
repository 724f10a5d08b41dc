"""The threads of a CPU: who computes what, and how threads wait for each other. Importing this takes no torch.

torch splits each operator over OpenMP's threads, which spin while they wait for the last of them. Beside another busy
program that last one has lost its core, at every operator anew, and the others burn theirs. So:

- encoding computes as many batches at once as torch would take threads for one, each in a thread that shares its
  operators with no other (`Computing`);
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
"""OpenMP's own name for how threads wait: libgomp (torch's builds for Linux), libomp and Intel's all read it."""


def sleep_while_waiting() -> None:
    """Let OpenMP's threads sleep while they wait, unless the environment says otherwise.

    OpenMP reads that once, when torch is imported; after that this does nothing.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault(POLICY, "PASSIVE")


def num_workers(device: "torch.device") -> int:
    """Batches that are computed at once on a device: on a CPU as many as torch takes threads for one operator."""
    import torch

    return torch.get_num_threads() if device.type == "cpu" else 1


def compute_alone() -> None:
    """Make the calling thread compute its operators without others, for good: for threads of a pool."""
    _limit()


@contextmanager
def computing_alone() -> Iterator[None]:
    """Within it, the calling thread computes its operators without others."""
    restore = _limit()
    try:
        yield
    finally:
        restore()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Within it, numpy's products take one thread of OpenBLAS.

    Threads of OpenBLAS spin while they wait for each other: beside a busy program a product with 10,000 vectors took 16
    ms in place of 0.3. A caller with many products computes them in threads of its own.
    """
    with _ONE, _blas().limit(limits=1):  # the limit is the process's: of two at once one would restore the other's
        yield


def describe() -> str:
    """The choice on this machine, in one line."""
    import torch

    policy = os.environ.get(POLICY, "spin").lower()
    waiting = {"passive": "sleep while they wait", "active": "spin"}.get(policy, policy)
    count = torch.get_num_threads()
    return f"encoding: {count} batches at once, one thread each; training: {count} threads, which {waiting}"


class Stopped(BaseException):
    """Raised in a thread whose result nobody waits for any more."""


class Computing(Generic[Batch, Result]):
    """Computes batches and gives their results in the order of the batches; leaving its context ends what still runs.

    Args:
        compute: makes the result of a batch; what it raises is raised where the result would have been given.
        workers: batches computed at once, each in a thread that computes alone; 1 computes in the caller's thread.
        alone: whether a single batch, which is computed in the caller's thread, leaves the other cores alone too.
    """

    def __init__(self, compute: Callable[[Batch], Result], workers: int, alone: bool = True) -> None:
        self.workers = workers
        self._compute, self._alone = compute, alone
        self._pool = ThreadPoolExecutor(workers, "onepeace-compute", initializer=compute_alone)
        self._waiting: deque[tuple[Batch, Future[Result]]] = deque()
        self._running: set[int] = set()

    def share(self, batch_size: int) -> int:
        """Items of one batch, when all workers together compute about ``batch_size`` at once."""
        return max(-(-batch_size // self.workers), min(MIN_BATCH, batch_size))

    @property
    def busy(self) -> bool:
        """Whether there are batches whose results were not given."""
        return bool(self._waiting)

    def start(self, batch: Batch) -> list[tuple[Batch, Result]]:
        """Start a batch; return the oldest that are done, so that at most two for each worker are under way."""
        if self.workers == 1:
            return [(batch, self._compute(batch))]
        self._waiting.append((batch, self._pool.submit(self._run, batch)))
        return list(self.rest(keep=2 * self.workers))

    def rest(self, keep: int = 0) -> Iterator[tuple[Batch, Result]]:
        """The results of all but the last ``keep`` batches, waited for."""
        while len(self._waiting) > keep:
            batch, future = self._waiting.popleft()
            yield batch, future.result()

    def finish(self, batches: Sequence[Batch]) -> Iterator[tuple[Batch, Result]]:
        """Compute the last batches, and give all results that are left. A single one is worth no thread."""
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

        for thread in tuple(self._running):  # after an error or Ctrl-C: a batch may take seconds, an operator does not
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(Stopped))
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _run(self, batch: Batch) -> Result:
        self._running.add(threading.get_ident())
        try:
            return self._compute(batch)
        finally:
            self._running.discard(threading.get_ident())


def _limit() -> Callable[[], None]:
    """Set the calling thread's limit to 1; return what takes it back."""
    import torch

    torch.get_num_threads()  # the first time a thread asks, this sets what the next lines change
    limit = _openmp().limit(limits=1)
    set_mkl = _mkl()
    before = set_mkl(1)

    def restore() -> None:
        set_mkl(before)
        limit.restore_original_limits()

    return restore


@cache
def _openmp() -> "ThreadpoolController":
    """OpenMP as torch has loaded it; its limit is each thread's own."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="openmp")


@cache
def _blas() -> "ThreadpoolController":
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")


@cache
def _mkl() -> Callable[[int], int]:
    """MKL's limit of the calling thread, which torch.set_num_threads sets and which comes before OpenMP's."""
    import ctypes

    import torch

    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        return library.MKL_Set_Num_Threads_Local  # type: ignore[no-any-return]
    except (OSError, AttributeError):  # torch was built without MKL, or hides it
        return lambda _: 0
