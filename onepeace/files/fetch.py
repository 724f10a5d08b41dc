"""Download of http(s) URLs."""

import http.client
import time
import urllib.error
import urllib.parse
import urllib.request
from functools import partial
from typing import Any

from onepeace.errors import UserError, reason_of
from onepeace.files.deadline import within

TIMEOUT = 30.0
"""Seconds in which a server must answer, and in which more of the content must come."""
MAX_SECONDS = 600.0
"""Seconds in which all of the content must come."""
CHUNK = 1 << 20


class NoFTP(urllib.request.FTPHandler):
    """Refuses redirects to ftp: URLs; urllib itself refuses redirects to other schemes."""

    def ftp_open(self, req: urllib.request.Request) -> None:  # type: ignore[override]
        raise urllib.error.URLError("unknown url type: ftp")


def fetch(url: str, name: str, max_bytes: int) -> bytes:
    """Content of an http(s) URL.

    Args:
        name: its name in messages.
        max_bytes: maximum size.

    Raises:
        UserError: it cannot be fetched, is too large, or takes too long, whatever the server does meanwhile.
    """
    # Pasted URLs often contain spaces and letters outside ASCII; existing escapes are kept.
    address = urllib.parse.quote(url, safe="%/:=&?~#+!$,;'@()*[]")
    open_url = urllib.request.build_opener(NoFTP).open
    try:
        request = urllib.request.Request(address, headers={"User-Agent": "onepeace"})  # noqa: S310 (checked by callers)
        answer = within(TIMEOUT, partial(open_url, request, timeout=TIMEOUT))
        return within(MAX_SECONDS, partial(_read, answer, name, max_bytes))
    except urllib.error.HTTPError as error:
        raise UserError(f"the server answered {error.code} {error.reason}", where=name) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UserError(f"cannot be fetched ({reason_of(error)})", where=name) from error


def _read(answer: Any, name: str, max_bytes: int) -> bytes:
    """The content of an answer, which is closed."""
    deadline = time.monotonic() + MAX_SECONDS
    data = bytearray()
    with answer:
        length = int(answer.headers.get("Content-Length") or 0)
        if length > max_bytes:
            raise UserError(f"{length} bytes are above the limit of {max_bytes}", where=name)
        while chunk := answer.read1(CHUNK):
            data += chunk
            if len(data) > max_bytes:
                raise UserError(f"more than the limit of {max_bytes} bytes", where=name)
            if time.monotonic() > deadline:  # nobody waits for the rest
                break
    if len(data) < length:
        raise UserError(f"the connection ended after {len(data)} of {length} bytes", where=name)
    return bytes(data)
