"""The server of an index or a model: listens on an address, and runs the application until it is stopped."""

import asyncio
import contextlib
import ipaddress
import os
import signal
import socket
from collections.abc import Collection, Iterator
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from onepeace.errors import UsageError
from onepeace.serve.app import create_app
from onepeace.serve.model import ModelService

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
KEEP_ALIVE_SECONDS = 75
"""Seconds after which a connection without requests is ended."""
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


class Server(uvicorn.Server):
    """A server that answers what it has accepted before it ends; a second signal ends it at once."""

    def __init__(self, config: uvicorn.Config, service: ModelService) -> None:
        super().__init__(config)
        self.service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            os._exit(1)
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        self.service.queues.stop()


def run(
    service: ModelService,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    keys: Collection[str] = (),
    origins: Collection[str] = (),
    root_path: str = "",
    drain: int = 10,
) -> int:
    """Serve an index or a model until Ctrl-C or SIGTERM; prints the URL to stdout.

    Args:
        host, port: address to listen on; port 0 picks a free one.
        keys: passwords of which clients need one; mandatory on any address but a loopback address.
        origins: sites whose pages may send requests, such as "https://example.org".
        root_path: path at which a proxy offers the server, without which it passes requests on.
        drain: seconds in which requests are still answered that were accepted before the end.

    Raises:
        UsageError: the address is in use or not local, or it needs a key and there is none.
    """
    if not keys and not is_loopback(host):
        raise UsageError("other machines can reach this address; give --password or --keys", where=host)
    # A key keeps out pages of other sites, and lets a proxy on this machine pass its own host name.
    hosts = ["*"] if keys else [*LOOPBACK, host]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # handled like Ctrl-C
    _allow_many_connections()
    with _listening(host, port) as listener:
        service.queue()  # loads the model now instead of with the first request
        config = uvicorn.Config(
            create_app(service, hosts=hosts, keys=keys, origins=origins),
            log_level="warning",
            access_log=False,
            server_header=False,
            http=Connection,
            ws="none",
            root_path=root_path,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=drain,
        )
        name = f"[{host}]" if ":" in host else host
        print(f"onepeace at http://{name}:{listener.getsockname()[1]}; stop with Ctrl-C", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            Server(config, service).run(sockets=[listener])
    return 0


def _allow_many_connections() -> None:
    """Raise the number of files that this process may open as far as it may."""
    if os.name == "posix":
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(OSError, ValueError):  # macOS has a lower limit than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


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
