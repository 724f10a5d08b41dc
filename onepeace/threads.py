"""The threads of a CPU: who computes what, and how threads wait for each other. Importing this takes no torch.

torch splits each operator over OpenMP's threads, which spin while they wait for the last of them. Beside another busy
program that last one has lost its core, at every operator anew, and the others burn theirs. So:

- encoding computes as many batches at once as torch would take threads for one, each in a thread that shares its
  operators with no other (`num_workers`, `compute_alone`);
- training, where a step is one batch, splits operators, and the command line lets waiting threads sleep
  (`sleep_while_waiting`).
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from threadpoolctl import ThreadpoolController

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


def describe() -> str:
    """What was chosen on this machine, in one line."""
    import torch

    policy = os.environ.get(POLICY, "spin").lower()
    waiting = {"passive": "sleep while they wait", "active": "spin"}.get(policy, policy)
    count = torch.get_num_threads()
    return f"encoding: {count} batches at once, one thread each; training: {count} threads, which {waiting}"


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
def _mkl() -> Callable[[int], int]:
    """MKL's limit of the calling thread, which torch.set_num_threads sets and which comes before OpenMP's."""
    import ctypes

    import torch

    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        return library.MKL_Set_Num_Threads_Local  # type: ignore[no-any-return]
    except (OSError, AttributeError):  # torch was built without MKL, or hides it
        return lambda _: 0
