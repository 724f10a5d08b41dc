"""The server of an index: listens on an address, and runs the application until it is stopped."""

import contextlib
import ipaddress
import os
import signal
import socket
from collections.abc import Iterator

from onepeace.errors import UsageError
from onepeace.index import Index
from onepeace.serve.app import create_app
from onepeace.serve.generator import SharedGenerator
from onepeace.serve.service import Service

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


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
    import uvicorn

    from onepeace.serve.connections import ACCEPTED, Connection

    if auth is None and not is_loopback(host):
        raise UsageError("other machines can reach this address; give --password", where=host)
    hosts = ["*"]
    if is_loopback(host):
        hosts = [*LOOPBACK, host]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # handled like Ctrl-C
    with _listening(host, port) as listener:
        service = Service(index, SharedGenerator(generator) if generator else None)
        _ = index.embedder  # now instead of with the first request
        config = uvicorn.Config(
            create_app(service, hosts=hosts, password=auth),
            log_level="warning",
            access_log=False,
            server_header=False,
            http=Connection,
            backlog=ACCEPTED,
            # The address of a client that a proxy on this machine names; elsewhere by $FORWARDED_ALLOW_IPS.
            proxy_headers=True,
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
