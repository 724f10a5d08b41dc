"""The server of an index: listens on an address, and runs the application until it is stopped."""

import asyncio
import contextlib
import ipaddress
import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from onepeace.errors import UsageError
from onepeace.index import Index
from onepeace.serve.app import create_app
from onepeace.serve.service import Service

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
MOST_CONNECTIONS = 100
"""Connections above which requests are answered with 503; it bounds the memory of uploads."""
ARRIVAL_SECONDS = 120.0
"""Seconds in which a request has to arrive. uvicorn itself waits without end, until no file can be opened any more."""


class Connection(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """A connection of uvicorn that is closed if a request does not arrive in time."""

    transport: Any
    cycle: Any
    """The request that is answered, or was answered last; None before the first."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._timer: asyncio.TimerHandle | None = None
        self._expect_request()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        request = self.cycle
        if request is None or request.response_complete or request.more_body:
            self._expect_request()
        else:
            self._stop_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _expect_request(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(ARRIVAL_SECONDS, self.transport.abort)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def run(
    index: Index, *, host: str = "127.0.0.1", port: int = 7860, auth: str | None = None, generator: str | None = None
) -> int:
    """Serve an index until Ctrl-C or SIGTERM; prints the URL to stdout.

    Args:
        host, port: address to listen on; port 0 picks a free one.
        auth: password required from clients; mandatory on any address but a loopback address.
        generator: name of a generative model for captions, answers and boxes.

    Raises:
        UsageError: the address is in use or not local, or it needs a password and there is none.
    """
    if auth is None and not is_loopback(host):
        raise UsageError("other machines can reach this address; give --password", where=host)
    # A password keeps out pages of other sites, and lets a proxy on this machine pass its own host name.
    hosts = ["*"] if auth else [*LOOPBACK, host]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # handled like Ctrl-C
    with _listening(host, port) as listener:
        service = Service(index, generator)
        _ = index.embedder  # now instead of with the first request
        config = uvicorn.Config(
            create_app(service, hosts=hosts, password=auth),
            log_level="warning",
            access_log=False,
            server_header=False,
            http=Connection,
            limit_concurrency=MOST_CONNECTIONS,
            ws="none",
            timeout_graceful_shutdown=1,
        )
        name = f"[{host}]" if ":" in host else host
        print(f"onepeace at http://{name}:{listener.getsockname()[1]}; stop with Ctrl-C", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])
    return 0


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a host name, which may resolve to any address
        return False


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    try:
        family, socket_type, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket_type, protocol)
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()  # now, so that two servers that start at once cannot both have the port
    except OSError as error:
        raise UsageError(f"cannot listen on {host}, port {port} ({error.strerror or error}); choose others") from error
    with listener:
        yield listener
