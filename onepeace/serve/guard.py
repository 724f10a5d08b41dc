"""Middleware that checks every request before its content is read: its origin, key and size, and what is under way.

A web page in a browser can send requests to servers on the same machine. So a server without a key accepts only host
names of this machine, and no server accepts requests from pages of other sites but those that are named. On addresses
that others reach, every request needs a key, as HTTP Basic (any user name) or as a Bearer token. Response headers
forbid the browser to load anything from another host.
"""

import base64
import binascii
import hmac
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from onepeace.serve.limits import Limits

OPEN = {"/health", "/ready"}
"""Paths that need no key."""
ALWAYS = {*OPEN, "/metrics"}
"""Paths that are answered however much is under way."""
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",  # so that a browser reloads the page after an update
}
RAW_HEADERS = [(name.encode(), value.encode()) for name, value in HEADERS.items()]


class Guard:
    """ASGI middleware that refuses requests from other sites, without a key, or above the limits.

    Args:
        app: the wrapped application.
        hosts: allowed host names of requests; "*" = any.
        keys: one of them is required from clients; none = no key is.
        origins: other sites whose pages may send requests.
        limits: of a request, and of all that are under way.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Collection[str],
        keys: Collection[str],
        origins: Collection[str],
        limits: Limits,
    ) -> None:
        self.app = app
        self.hosts = {host.lower() for host in hosts}
        self.keys = [key.encode() for key in keys]
        self.origins = set(origins)
        self.limits = limits
        self.num_requests = 0
        self.num_bytes = 0
        """Requests under way, and bytes of their bodies."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # websockets are not used
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        send = _with_headers(send)
        headers = Headers(scope=scope)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        length = headers.get("content-length", "0")
        refusal = self._refusal(path, headers) or self._refusal_of_size(path, headers, length)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        self.num_requests += 1
        self.num_bytes += int(length)
        try:
            await self.app(scope, receive, send)
        finally:
            self.num_requests -= 1
            self.num_bytes -= int(length)

    def _refusal(self, path: str, headers: Headers) -> JSONResponse | None:
        """The response to a request from where none are allowed, or without a key; None for others."""
        if "*" not in self.hosts and _host_name(headers.get("host", "")) not in self.hosts:
            return refuse(400, "this host name is not served; give --password or --keys to serve others")
        origin = headers.get("origin")
        is_own = origin is None or origin.partition("://")[2] == headers.get("host", "")
        if not is_own and origin not in self.origins:
            return refuse(403, "requests from pages of other sites are refused; --cors ORIGIN allows those of one")
        if not self.keys or path in OPEN:
            return None
        authorization = headers.get("authorization")
        challenge = {"www-authenticate": 'Basic realm="onepeace", charset="UTF-8"'}
        if authorization is None:
            return refuse(401, "password required, as HTTP Basic or as a Bearer token", challenge)
        given = _password(authorization)
        if not sum(hmac.compare_digest(given, key) for key in self.keys):  # all are compared, in constant time
            return refuse(401, "wrong password", challenge)
        return None

    def _refusal_of_size(self, path: str, headers: Headers, length: str) -> JSONResponse | None:
        """The response to a request that is too large, or comes while too much is under way; None for others."""
        limits = self.limits
        if "transfer-encoding" in headers:
            return refuse(411, "the request needs a Content-Length header")
        if not length.isdecimal() or int(length) > limits.body:
            return refuse(413, f"{length[:20]} bytes are above the limit of {limits.body} per request")
        if path in ALWAYS:
            return None
        again = {"retry-after": "1"}
        if self.num_requests >= limits.requests:
            return refuse(503, f"{self.num_requests} requests are under way, the limit; try again later", again)
        if self.num_bytes + int(length) > limits.bodies:
            return refuse(503, f"{self.num_bytes} bytes are under way, near the limit; try again later", again)
        return None


def refuse(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Error response in the format of all errors; the connection is closed, as the content was not read."""
    return JSONResponse({"error": {"message": message}}, status, {**(headers or {}), "connection": "close"})


def _host_name(host: str) -> str:
    """A Host header without its port."""
    name, colon, port = host.lower().rpartition(":")
    return name if colon and port.isdecimal() else host.lower()


def _password(authorization: str) -> bytes:
    """The password in an Authorization header; empty if the header is malformed."""
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return credentials.encode("latin-1", "replace")  # as ASGI headers are decoded
    if scheme.lower() != "basic":
        return b""
    try:
        decoded = base64.b64decode(credentials, validate=True)
    except (binascii.Error, ValueError):
        return b""
    return decoded.partition(b":")[2]


def _with_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = message.get("headers", ())
            names = {name for name, _ in headers}
            message["headers"] = [*headers, *(pair for pair in RAW_HEADERS if pair[0] not in names)]
        await send(message)

    return send_with_headers
