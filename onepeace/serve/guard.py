"""Middleware that checks every request: its origin, password and size.

A web page in a browser can send requests to servers on the same machine. So a server on a loopback address accepts
only its own host names, and no requests from pages of other sites. On other addresses, every request needs a password,
as HTTP Basic (any user name) or as a Bearer token. Response headers forbid the browser to load anything from another
host.
"""

import base64
import binascii
import hmac
import re
import time
from collections import deque
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN = {"/health"}
"""Paths that need no password."""
GUESSES, WINDOW = 10, 60.0
"""Wrong passwords accepted within this many seconds, over all connections."""
KNOWN = 1000
"""Maximum number of remembered client addresses that gave the right password."""
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",  # so that a browser reloads the page after an update
}


class Guard:
    """ASGI middleware that refuses requests from other sites, without the password, or above the size limit.

    Args:
        app: the wrapped application.
        hosts: allowed values of the Host header, lower case and without the port; "*" = any.
        password: required from clients; None = no password.
        max_body: maximum bytes of a request.
    """

    def __init__(self, app: ASGIApp, *, hosts: Collection[str], password: str | None, max_body: int) -> None:
        self.app, self.hosts, self.max_body = app, hosts, max_body
        self.password = None if password is None else password.encode()
        self._wrong: deque[float] = deque(maxlen=GUESSES)
        self._known: dict[str, None] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # websockets are not used
            return
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        await (refusal or self.app)(scope, receive, _with_headers(send))

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        host = re.sub(r":\d*$", "", headers.get("host", "").lower())
        if "*" not in self.hosts and host not in self.hosts:
            return refuse(400, f"host {host[:100]!r}: not a name of this server")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != headers.get("host", ""):
            return refuse(403, "requests from pages of other sites are refused")
        if self.password is not None and scope["path"] not in OPEN and (refusal := self._unauthorized(scope, headers)):
            return refusal
        if "transfer-encoding" in headers:
            return refuse(411, "the request needs a Content-Length header")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self.max_body:
            return refuse(413, f"{length[:20]} bytes are above the limit of {self.max_body} per request")
        return None

    def _unauthorized(self, scope: Scope, headers: Headers) -> JSONResponse | None:
        """The refusal of a client without the right password; None if it has given it.

        After GUESSES wrong passwords, further ones are rejected unchecked until WINDOW has passed, except from clients
        that gave the right password before and no wrong one since: another client's guesses do not lock them out.
        """
        given, client = headers.get("authorization"), (scope.get("client") or ("",))[0]
        asked = {"www-authenticate": 'Basic realm="onepeace", charset="UTF-8"'}
        if given is None:
            return refuse(401, "password required, as HTTP Basic or as a Bearer token", asked)
        now = time.monotonic()
        full = len(self._wrong) == GUESSES and now - self._wrong[0] < WINDOW
        if full and client not in self._known:
            wait = {"retry-after": str(int(WINDOW - (now - self._wrong[0])) + 1)}
            return refuse(429, "too many wrong passwords; try again later", wait)
        if hmac.compare_digest(_password(given), self.password or b""):
            if len(self._known) < KNOWN:
                self._known[client] = None
            return None
        self._wrong.append(now)
        self._known.pop(client, None)
        return refuse(401, "wrong password", asked)


def refuse(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Error response in the format of all errors."""
    return JSONResponse({"error": {"message": message}}, status, headers)


def _password(authorization: str) -> bytes:
    """The password in an Authorization header; empty if the header is malformed."""
    kind, _, given = authorization.partition(" ")
    if kind.lower() == "bearer":
        return given.encode("latin-1", "replace")  # as ASGI headers are decoded
    try:
        return base64.b64decode(given, validate=True).partition(b":")[2] if kind.lower() == "basic" else b""
    except (binascii.Error, ValueError):
        return b""


def _with_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return send_with_headers
