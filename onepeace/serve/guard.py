"""What stands before everything that is served: who may ask, from where, how much, and which doors there are.

A page in somebody's browser can send requests to servers on that person's machine. So on a loopback address only its
own names count as this host (no other name that an attacker lets point here), and requests that another site's page
makes are refused. Elsewhere a password is asked for, with every request, as HTTP Basic (any user name) or as a Bearer
token. Responses forbid the browser to load anything from another host.
"""

import asyncio
import base64
import binascii
import hmac
import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN = {"/health"}
"""Paths that need no password."""
PAGE = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)|/(assets|static|svelte)/.+|"
    r"/gradio_api/(info|startup-events|upload|upload_progress|reset|cancel|theme\.css|queue/(join|data)|heartbeat/\w+|"
    r"file=([A-Za-z]:)?/[^/].*)"
)
"""The paths of Gradio that the page needs. Its others are closed; some fetch any address that they are given."""
JOIN = "/gradio_api/queue/join"
WRONG_PASSWORD_SECONDS = 0.3
"""A wrong password is answered only then, so that not many can be tried."""
HEADERS = {
    "content-security-policy": "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Guard:
    """ASGI middleware.

    Args:
        app: what is guarded.
        own_paths: pattern of the paths of our own routes; PAGE are open beside them.
        hosts: names under which this server may be asked; None = any.
        password: to be asked for; None = none.
        max_body: bytes of a request.
        uploads: the folder of what was uploaded to Gradio; the page's requests may name its files and no others.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        own_paths: re.Pattern[str],
        hosts: frozenset[str] | None,
        password: str | None,
        max_body: int,
        uploads: Path,
    ) -> None:
        self.app, self.own_paths, self.hosts, self.max_body = app, own_paths, hosts, max_body
        self.uploads = os.path.realpath(uploads)
        self.password = None if password is None else password.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # nothing here speaks over websockets
            return
        refusal = await self._refusal(scope)
        if refusal is None and scope["path"] == JOIN:
            body = await _whole(receive)
            receive = _again(body, receive)
            if _names_other_files(body, self.uploads):
                refusal = _refuse(400, "a path is not opened and an address not fetched; upload the file")
        await (refusal or self.app)(scope, receive, _with_headers(send))

    async def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers, path = Headers(scope=scope), scope["path"]
        host = headers.get("host", "")
        if self.hosts is not None and _hostname(host) not in self.hosts:
            return _refuse(421, f"this server is not {host[:100]!r}; it answers to {', '.join(sorted(self.hosts))}")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            return _refuse(403, "requests of other sites' pages are not answered")
        if self.password is not None and path not in OPEN and not self._knows_password(headers):
            await asyncio.sleep(WRONG_PASSWORD_SECONDS)
            asked = {"www-authenticate": 'Basic realm="onepeace", charset="UTF-8"'}
            return _refuse(401, "give the password, as HTTP Basic or as a Bearer token", asked)
        if not (PAGE.fullmatch(path) or self.own_paths.fullmatch(path)):
            return _refuse(404, "there is nothing here; see /docs")
        if "transfer-encoding" in headers:
            return _refuse(411, "say the length of the request (Content-Length)")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self.max_body:
            return _refuse(413, f"{length[:20]} bytes are above the limit of {self.max_body} of a request")
        return None

    def _knows_password(self, headers: Headers) -> bool:
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True).decode().partition(":")[2]
            except (binascii.Error, UnicodeDecodeError):
                return False
        elif kind.lower() != "bearer":
            return False
        return hmac.compare_digest(given.encode(), self.password or b"")


def _refuse(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": {"message": message}}, status, headers)


def _hostname(host: str) -> str | None:
    """Of a Host header, without the port."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:  # half a bracket
        return None


def _with_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return send_with_headers


async def _whole(receive: Receive) -> bytes:
    body, more = bytearray(), True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return bytes(body)


def _again(body: bytes, receive: Receive) -> Receive:
    """What gives a body that was read to whoever reads it next."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return waiting.pop() if waiting else await receive()

    return receive_again


def _names_other_files(body: bytes, uploads: str) -> bool:
    """Whether something in the body is a file for Gradio, and none that was uploaded: Gradio would copy or fetch it."""

    def looks_so(value: Any) -> bool:
        if isinstance(value, dict):
            path = value.get("path")
            return (isinstance(path, str) and not _lies_in(path, uploads)) or any(map(looks_so, value.values()))
        return isinstance(value, list) and any(map(looks_so, value))

    try:
        return looks_so(json.loads(body))
    except RecursionError:  # too deep to look through
        return True
    except ValueError:  # no JSON, so Gradio reads nothing from it
        return False


def _lies_in(path: str, folder: str) -> bool:
    try:
        return os.path.realpath(path).startswith(folder + os.sep)
    except ValueError:  # a NUL character
        return False
