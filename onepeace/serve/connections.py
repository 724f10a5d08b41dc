"""Connections that end by themselves: uvicorn waits for a request, and for a client that reads nothing, without end."""

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

HEAD_SECONDS = 15.0
"""Seconds from the start of a connection, or the first byte of a later request on it, to the end of its headers."""
BODY_SECONDS = 300.0
"""Seconds in which the content of a request has to arrive."""
IDLE_SECONDS = 15.0
"""Maximum seconds without data while the content of a request arrives."""
UNREAD_SECONDS = 60.0
"""Maximum seconds in which a client reads nothing of a response."""
DEFAULT_MOST = 1000
"""Maximum number of connections."""
ACCEPTED = 32
"""Connections accepted in one turn of the event loop; after some turns the first of them can be closed."""


def most_connections() -> int:
    """A third of the files that this process may have open: others are accepted before the first can be closed."""
    try:
        import resource
    except ImportError:  # Windows
        return DEFAULT_MOST
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return DEFAULT_MOST if files == resource.RLIM_INFINITY else min(DEFAULT_MOST, files // 3)


class Connection(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """A connection of uvicorn with time limits for the client.

    If there are more than `most` connections, the one that has waited longest for the headers of a request is closed,
    so that unfinished ones keep nobody out.
    """

    most = most_connections()

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        self._phase_started = self._loop.time()
        self._is_in_body = False
        self._close_within(HEAD_SECONDS)
        self._close_longest_waiting()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._waits_for_headers():
            self._enter_phase(is_in_body=False, seconds=HEAD_SECONDS)
        elif self.cycle.more_body:
            self._enter_phase(is_in_body=True, seconds=BODY_SECONDS)
        else:
            self._stop_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self.resume_writing()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread_timer = self._loop.call_later(UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None
        super().resume_writing()

    def _waits_for_headers(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _enter_phase(self, *, is_in_body: bool, seconds: float) -> None:
        """Go on in a phase, or begin it: headers or content."""
        now = self._loop.time()
        if self._timer is None or is_in_body != self._is_in_body:
            self._phase_started = now
            self._is_in_body = is_in_body
        left = self._phase_started + seconds - now
        self._close_within(min(left, IDLE_SECONDS) if is_in_body else left)

    def _close_within(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = self._loop.call_later(max(seconds, 0.0), self.transport.abort)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close_longest_waiting(self) -> None:
        """Close a connection if there are too many."""
        usable = [other for other in self.connections if not other.transport.is_closing()]
        waiting = [other for other in usable if other is not self and other._waits_for_headers()]
        if len(usable) > self.most and waiting:
            min(waiting, key=lambda other: other._phase_started).transport.abort()
