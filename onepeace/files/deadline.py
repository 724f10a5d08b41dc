"""A time limit for whatever a server may draw out: a byte now and then for ever, which no timeout of a socket sees."""

import threading
from collections.abc import Callable
from concurrent import futures
from typing import TypeVar

Result = TypeVar("Result")


def within(seconds: float, call: Callable[[], Result]) -> Result:
    """What a call returns or raises.

    Raises:
        TimeoutError: it takes longer. It then goes on in its thread, which does not outlive the process.
    """
    future: futures.Future[Result] = futures.Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="onepeace-request", daemon=True).start()
    finished, _ = futures.wait([future], seconds)
    if not finished:
        raise TimeoutError(f"not answered within {seconds:.0f} seconds")
    return future.result()
