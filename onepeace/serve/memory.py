"""Memory of large pictures: one of them is decoded at a time, and what it took is given back to the system."""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

MANY_PIXELS = 16_000_000
"""Pixels above which a picture is large: it takes 8 bytes of memory for each of them."""
_turn = threading.Lock()


@contextmanager
def room_for(pixels: int) -> Iterator[None]:
    """Context in which a picture is decoded and scaled down; a large one waits until others are done.

    Otherwise several of them would take gigabytes, which the C library would keep for later.
    """
    if pixels <= MANY_PIXELS:
        yield
        return
    with _turn:
        try:
            yield
        finally:
            _give_back()


def _give_back() -> None:
    """Give free memory back to the system, where the C library has a function for it (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
