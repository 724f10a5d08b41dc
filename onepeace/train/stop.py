"""Signals that stop a run after a checkpoint: SIGTERM, which schedulers send before they end a job, and Ctrl-C."""

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger(__name__)


@contextmanager
def noticed_stop() -> Iterator[Callable[[], bool]]:
    """Context in which SIGTERM and the first Ctrl-C are deferred; yields a function that tells whether there was one.

    Raises:
        KeyboardInterrupt: at the end of the block after Ctrl-C; at once if it is pressed again.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def note(number: int, _: Any) -> None:
        if signal.SIGINT in came:
            raise KeyboardInterrupt
        came.append(number)
        if number == signal.SIGINT:
            log.warning("saving after this step (Ctrl-C again: stop at once)")

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if signal.SIGINT in came:
        raise KeyboardInterrupt
