"""Download of http(s) URLs."""

import http.client
import time
import urllib.error
import urllib.parse
import urllib.request

from onepeace.errors import UserError, reason_of

TIMEOUT = 30.0
"""Seconds without an answer before a download is given up."""
MAX_SECONDS = 600.0
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
        UserError: it cannot be fetched, is too large, or takes too long.
    """
    deadline = time.monotonic() + MAX_SECONDS
    data = bytearray()
    try:
        # Pasted URLs often contain spaces and letters outside ASCII; existing escapes are kept.
        request = urllib.request.Request(  # noqa: S310 (scheme checked by the caller)
            urllib.parse.quote(url, safe="%/:=&?~#+!$,;'@()*[]"), headers={"User-Agent": "onepeace"}
        )
        with urllib.request.build_opener(NoFTP).open(request, timeout=TIMEOUT) as answer:
            length = int(answer.headers.get("Content-Length") or 0)
            if length > max_bytes:
                raise UserError(f"{length} bytes are above the limit of {max_bytes}", where=name)
            while chunk := answer.read1(CHUNK):  # partial data, so that the deadline below is checked
                data += chunk
                if len(data) > max_bytes:
                    raise UserError(f"more than the limit of {max_bytes} bytes", where=name)
                if time.monotonic() > deadline:
                    raise UserError(f"not complete after {MAX_SECONDS:.0f} seconds", where=name)
    except urllib.error.HTTPError as error:
        raise UserError(f"the server answered {error.code} {error.reason}", where=name) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UserError(f"cannot be fetched ({reason_of(error)})", where=name) from error
    if length and len(data) < length:
        raise UserError(f"the connection ended after {len(data)} of {length} bytes", where=name)
    return bytes(data)
