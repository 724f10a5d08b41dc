"""A sign of life from long runs: a bar on a terminal, a line now and then in a log."""

import sys
import time
from types import TracebackType

EVERY = 30.0
"""Seconds between two lines of a log."""


def status(line: str) -> None:
    """One line to stderr, at once."""
    print(line, file=sys.stderr, flush=True)


class Progress:
    """Counts what is done: ``with Progress(len(files)) as progress: ... progress.update()``.

    Args:
        total: how many there are; None if that is not known.
        what: one of what is counted.
        shown: False = silent, True = also where stderr is closed; None = a bar on a terminal, else lines.
    """

    def __init__(self, total: int | None, what: str = "file", *, shown: bool | None = None) -> None:
        self.total, self.what, self.done = total, what, 0
        self._is_silent = shown is False or sys.stderr is None
        self._bar = None
        if not self._is_silent and sys.stderr.isatty():
            from tqdm.auto import tqdm

            self._bar = tqdm(total=total, unit=what)
        self._start = self._said = time.monotonic()

    def update(self, count: int = 1) -> None:
        """Count what was done since the last call."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
        elif not self._is_silent and (now := time.monotonic()) - self._said >= EVERY:
            self._said = now
            status(self._line(now - self._start))

    def _line(self, seconds: float) -> str:
        rate = self.done / seconds
        of = "" if self.total is None else f" of {self.total:,}"
        left = f", {_span((self.total - self.done) / rate)} left" if self.total and rate else ""
        return f"{self.done:,}{of} {self.what}s, {rate:.1f} a second{left}"

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: "type[BaseException] | BaseException | TracebackType | None") -> None:
        if self._bar is not None:
            self._bar.close()


def _span(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"
