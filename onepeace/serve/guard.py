"""Middleware that checks every request before its content is read: its origin, password and size.

A web page in a browser can send requests to servers on the same machine. So a server without a password accepts only
host names of this machine (Starlette's TrustedHostMiddleware), and no server accepts requests from pages of other
sites. On addresses that others reach, every request needs a password, as HTTP Basic (any user name) or as a Bearer
token. Response headers forbid the browser to load anything from another host.
"""

import base64
import binascii
import hmac

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN = {"/health"}
"""Paths that need no password."""
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
    """ASGI middleware that refuses requests from other sites, without the password, or above the size limits.

    Args:
        app: the wrapped application.
        password: required from clients; None = no password.
        max_body: maximum bytes of a request.
    """

    def __init__(self, app: ASGIApp, *, password: str | None, max_body: int) -> None:
        self.app = app
        self.max_body = max_body
        self.password = None if password is None else password.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # websockets are not used
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        send = _with_headers(send)
        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers)
        await (refusal or self.app)(scope, receive, send)

    def _refusal(self, scope: Scope, headers: Headers) -> JSONResponse | None:
        """The response to a request that is refused; None for others."""
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != headers.get("host", ""):
            return refuse(403, "requests from pages of other sites are refused")
        if self.password is not None and scope["path"] not in OPEN:
            authorization = headers.get("authorization")
            challenge = {"www-authenticate": 'Basic realm="onepeace", charset="UTF-8"'}
            if authorization is None:
                return refuse(401, "password required, as HTTP Basic or as a Bearer token", challenge)
            if not hmac.compare_digest(_password(authorization), self.password):
                return refuse(401, "wrong password", challenge)
        if "transfer-encoding" in headers:
            return refuse(411, "the request needs a Content-Length header")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self.max_body:
            return refuse(413, f"{length[:20]} bytes are above the limit of {self.max_body} per request")
        return None


def refuse(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Error response in the format of all errors; the connection is closed, as the content was not read."""
    return JSONResponse({"error": {"message": message}}, status, {**(headers or {}), "connection": "close"})


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
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return send_with_headers
