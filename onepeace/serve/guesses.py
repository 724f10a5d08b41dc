"""Wrong passwords: counted by client, so that one who guesses locks nobody else out."""

import ipaddress
import time
from collections import OrderedDict, deque

GUESSES = 10
"""Wrong passwords of a client that are checked within `WINDOW`."""
WINDOW = 60.0
"""Seconds for which a wrong password counts."""
ALL_GUESSES = 1000
"""Wrong passwords of all clients together that are checked within the same time."""
CLIENTS = 10_000
"""Maximum number of clients whose wrong passwords are counted."""


class Guesses:
    """Counts of the wrong passwords of the last `WINDOW` seconds.

    A client is an IPv4 address, or the /64 network of an IPv6 address, of which a single host may have all.
    """

    def __init__(self) -> None:
        self._by_client: OrderedDict[str, deque[float]] = OrderedDict()
        self._all: deque[float] = deque()
        self._right: OrderedDict[str, None] = OrderedDict()

    def seconds_to_wait(self, address: str) -> float:
        """Seconds until the next password of a client is checked; 0 = now."""
        client = client_of(address)
        if client in self._right:
            return 0.0
        return max(_wait(self._by_client.get(client), GUESSES), _wait(self._all, ALL_GUESSES))

    def right(self, address: str) -> None:
        """A client gave the right password: its next ones are checked whatever others guess."""
        _remember(self._right, client_of(address), None)

    def wrong(self, address: str) -> None:
        """A client gave a wrong password."""
        client = client_of(address)
        self._right.pop(client, None)
        now = time.monotonic()
        times = self._by_client.get(client, deque(maxlen=GUESSES))
        times.append(now)
        _remember(self._by_client, client, times)
        self._all.append(now)
        while self._all[0] < now - WINDOW:
            self._all.popleft()


def client_of(address: str) -> str:
    """The client that an address belongs to, see `Guesses`."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:  # no address, as of a socket of the file system
        return address
    if parsed.version == 4:
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))


def _wait(times: deque[float] | None, most: int) -> float:
    if times is None or len(times) < most:
        return 0.0
    return max(0.0, times[-most] + WINDOW - time.monotonic())


def _remember(clients: OrderedDict, client: str, value: object) -> None:
    clients[client] = value
    clients.move_to_end(client)
    if len(clients) > CLIENTS:
        clients.popitem(last=False)
