"""Progress of long operations: a bar on a terminal, else a line in the log every 30 s; and status messages."""

import logging
import sys
import time
from types import TracebackType
from typing import Any

log = logging.getLogger(__name__)

EVERY = 30.0
"""Seconds between two lines in a log."""


class Progress:
    """Progress of a loop; a context manager.

    Args:
        total: expected count; None if unknown.
        what: name of the counted items, in the singular.
        shown: True always draws a bar, False shows nothing. None draws a bar if stderr is a terminal; otherwise a
            line with rate and time left, counted from the first `update`, goes to the log (level INFO) every 30 s.
        start: count at the beginning, from an earlier run.
    """

    def __init__(self, total: int | None, what: str = "file", shown: bool | None = None, start: int = 0) -> None:
        self.total = total
        self.what = what
        self.count = self._first = start
        self._note = ""
        self._bar: Any = None
        self._is_logged = shown is None
        self._start: float | None = None
        self._last = time.monotonic()
        if shown or (shown is None and sys.stderr is not None and sys.stderr.isatty()):
            from tqdm.auto import tqdm

            self._bar = tqdm(desc=f"{what}s", total=total, unit=f" {what}s", dynamic_ncols=True, initial=start)
            self._is_logged = False

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()

    def update(self, n: int = 1, note: str = "") -> None:
        """Count `n` more; `note` is shown after the numbers."""
        if self._start is None:  # the time before includes one-time work, such as loading a model
            self._first = self.count + n
            self._start = time.monotonic()
            if self._bar is not None:
                self._bar.unpause()
        self.count += n
        self._note = note
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(n)
        elif self._is_logged and time.monotonic() - self._last >= EVERY:
            self._last = time.monotonic()
            log.info("%s", self._line(self._last - self._start))

    def _line(self, elapsed: float) -> str:
        rate = (self.count - self._first) / elapsed if elapsed else 0.0
        total = "" if self.total is None else f" of {self.total:,}"
        parts = [f"{self.count:,}{total} {self.what}s"]
        if rate >= 1:
            parts.append(f"{rate:.1f} a second")
        elif rate:
            parts.append(f"{1 / rate:.1f} s each")
        if self.total and rate:
            parts.append(f"{_span((self.total - self.count) / rate)} left")
        if self._note:
            parts.append(self._note)
        return ", ".join(parts)


def _span(seconds: float) -> str:
    """A duration in hours and minutes, or in minutes and seconds."""
    minutes, rest = divmod(max(0, int(seconds)), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def status(line: str) -> None:
    """Log the current operation in one line (level INFO), which the command line writes to stderr at once."""
    log.info("%s", line)
