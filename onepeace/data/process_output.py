"""The output of a process as a stream that does not wait without end."""

import io
import os
import subprocess
from collections.abc import Collection
from multiprocessing.connection import wait
from typing import Any

STALLED = 60.0
"""Seconds without one byte after which a process is given up."""


class ProcessOutput(io.RawIOBase):
    """What a process writes to its standard output; it ends early, and the process with it, after a stall.

    Only the time spent waiting for the process counts: a reader may pause as long as it likes.

    Args:
        process: started with ``stdout=subprocess.PIPE``, and nothing has been read from it.
        good_codes: exit codes of a process that has written all it should.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", good_codes: Collection[int] = (0,)) -> None:
        self.process, self.good_codes = process, good_codes
        self.output: Any = process.stdout
        self.stalled = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not wait([self.output], STALLED):
            self.give_up()
        return 0 if self.stalled else os.readv(self.output.fileno(), [buffer])

    def give_up(self) -> None:
        self.stalled = True
        self.process.kill()

    def finish(self) -> str:
        """Close the stream, wait for the process, and return in a few words what went wrong with it, if anything."""
        self.output.close()
        try:
            code = self.process.wait(STALLED)
        except subprocess.TimeoutExpired:
            self.give_up()
            code = self.process.wait()
        if self.stalled:
            return f"no byte came for {STALLED:g} seconds"
        if code in self.good_codes:
            return ""
        args: Any = self.process.args
        return f"{'the command' if isinstance(args, str) else args[0]} gave exit code {code}"
