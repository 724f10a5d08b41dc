"""Content of a path, an http(s) URL, an open file or a bytes value of any format, and short names of all inputs for
messages."""

import codecs
import errno
import http.client
import io
import os
import re
import stat
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from concurrent import futures
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard, TypeVar

from onepeace.errors import UserError, reason_of

MAX_BYTES = 1 << 30
MAX_TEXT_BYTES = 1 << 20
_READING_OPEN_FILE = threading.Lock()
"""Held while an open file is read, which two threads cannot do at once."""

# "C:\\x" has one letter before the colon and is a path; "note: a dog" has a space after it and is text.
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+)://|(data|pipe|file|javascript|mailto):(?=\S)", re.IGNORECASE)
TIMEOUT = 30.0
"""Seconds in which a server must answer, and in which more of the content must come."""
MAX_SECONDS = 600.0
"""Seconds in which all of the content must come."""
CHUNK = 1 << 20
Result = TypeVar("Result")


class NamedBytes(bytes):
    """Bytes with a name for messages, such as the content of a file inside another file."""

    name: str

    def __new__(cls, content: bytes, name: str) -> "NamedBytes":
        named = super().__new__(cls, content)
        named.name = name
        return named

    def __getnewargs__(self) -> tuple[bytes, str]:  # type: ignore[override]
        """Arguments that recreate it in another process."""
        return bytes(self), self.name


def scheme(item: object) -> str | None:
    """The lower-case URL scheme of a string ("https", "file", "data"), None for anything else."""
    if not isinstance(item, str):
        return None
    match = _SCHEME.match(item.lstrip())
    if match is None:
        return None
    return (match[1] or match[2]).lower()


def is_open_file(item: object) -> TypeGuard[BinaryIO]:
    """Whether an input is a file that was opened for reading bytes."""
    return isinstance(item, io.BufferedIOBase)


def suffix(item: object) -> str:
    """The lower-case file ending of a path, a URL or an open file with its dot, "" if there is none."""
    if is_open_file(item):
        item = getattr(item, "name", "")
    if isinstance(item, str) and scheme(item):
        item = _public(item).partition("://")[2].partition("/")[2]
    if isinstance(item, (str, os.PathLike)):
        return os.path.splitext(os.fsdecode(os.fspath(item)))[1].lower()
    return ""


def describe(item: Any) -> str:
    """A short name of any input: the path, the URL without query and password, or the type, with an array's shape."""
    if is_open_file(item) or isinstance(item, NamedBytes):
        item = getattr(item, "name", item)
    elif isinstance(item, dict):  # a sound of datasets (Hugging Face)
        item = item.get("path") or item.get("array", item)
    elif isinstance(item, tuple) and len(item) == 2:  # samples and their rate
        item = item[0]
    else:
        item = getattr(item, "filename", None) or item  # of an opened PIL image
    if isinstance(item, str) and scheme(item):
        item = _public(item)
    if isinstance(item, (str, os.PathLike)):
        return _shortened(os.fsdecode(os.fspath(item)))
    if isinstance(item, (bytes, bytearray, memoryview)):
        return f"bytes ({len(item)})"
    if hasattr(item, "shape") and hasattr(item, "dtype"):
        return f"{type(item).__name__} {tuple(item.shape)} {item.dtype}"
    return type(item).__name__


def _shortened(name: str) -> str:
    """A name without unprintable characters, at most 200."""
    printable = "".join(character if character.isprintable() else "?" for character in name)
    if len(printable) <= 200:
        return printable
    return f"{printable[:100]}...{printable[-97:]}"


def local_path(item: "str | os.PathLike[str]") -> Path:
    """The item as the path of an existing regular file; otherwise a `UserError` with the reason."""
    path = Path(item)
    name = describe(item)
    if os.fspath(item) == "":
        raise UserError("the path is empty")
    try:
        if path.is_dir():
            raise UserError("is a folder, not a file", where=name)
        if path.is_file():
            return path
        exists = path.exists()
    except (OSError, ValueError) as error:  # ValueError: a NUL character inside
        raise UserError(f"cannot be opened ({reason_of(error)})", where=name) from error
    reason = "not a regular file" if exists else "no such file"
    raise UserError(f"{reason}", where=name)


def read_bytes(item: object, *, max_bytes: int = MAX_BYTES) -> bytes:
    """All bytes of a path (str, os.PathLike), an http(s) URL (str), an open file or bytes; at most `max_bytes`."""
    name = describe(item)
    if isinstance(item, (bytes, bytearray, memoryview)):
        return bytes(item)
    if is_open_file(item):
        if not item.seekable():
            raise UserError("cannot be read from its beginning; give the bytes: .read()", where=name)
        with _READING_OPEN_FILE:
            return _read_open(item, name, max_bytes)
    if isinstance(item, io.TextIOBase):
        raise UserError("opened for reading text; open it with mode 'rb'", where=name)
    if not isinstance(item, (str, os.PathLike)):
        raise UserError("expected a path, an http(s) address or bytes", where=name)
    if isinstance(item, str) and scheme(item):
        if scheme(item) not in ("http", "https"):  # file:, ftp:, data: and the like are not opened
            raise UserError(f"addresses must be http or https, not {scheme(item)}; give a path for a file", where=name)
        return fetch(item.strip(), name, max_bytes)
    path = local_path(item)
    try:
        with open(path, "rb") as file:
            return _read_open(file, name, max_bytes)
    except OSError as error:
        raise UserError(f"cannot be read ({reason_of(error)})", where=name) from error


def decode_text(content: bytes, errors: str = "strict") -> str:
    """Text in UTF-8, or in UTF-16 if it begins with a byte order mark.

    Args:
        errors: as of `bytes.decode`.
    """
    is_utf_16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if is_utf_16 else "utf-8-sig", errors)


def _read_open(file: BinaryIO, name: str, max_bytes: int) -> bytes:
    """The bytes that an open file has now, from its beginning; it may grow meanwhile."""
    file.seek(0, os.SEEK_END)
    size = file.tell()
    if size > max_bytes:
        raise UserError(f"{size} bytes are above the limit of {max_bytes}", where=name)
    file.seek(0)
    return file.read(size)


def _public(url: str) -> str:
    """The URL without user name, password, query and fragment, which may be secret; a data: URL without its data."""
    # Not urlsplit: it raises on malformed URLs, and messages must name these too.
    url = re.split(r"[?#]", url.strip(), maxsplit=1)[0]
    return f"{url[:25]}..." if scheme(url) == "data" else re.sub(r"(?<=://)[^/]*@", "", url)


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
        return within(MAX_SECONDS, partial(_read_answer, answer, name, max_bytes))
    except urllib.error.HTTPError as error:
        raise UserError(f"the server answered {error.code} {error.reason}", where=name) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UserError(f"cannot be fetched ({reason_of(error)})", where=name) from error


def _read_answer(answer: Any, name: str, max_bytes: int) -> bytes:
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
            if time.monotonic() > deadline:
                raise TimeoutError(f"not answered within {MAX_SECONDS:.0f} seconds")
    if len(data) < length:
        raise UserError(f"the connection ended after {len(data)} of {length} bytes", where=name)
    return bytes(data)


def within(seconds: float, call: Callable[[], Result]) -> Result:
    """What a call returns or raises.

    Raises:
        TimeoutError: it takes longer. It then goes on in its thread, which does not outlive the process.
    """
    future = start_request(call)
    finished, _ = futures.wait([future], seconds)
    if not finished:
        raise TimeoutError(f"not answered within {seconds:.0f} seconds")
    return future.result()


def start_request(call: Callable[[], Result]) -> futures.Future[Result]:
    """The future result of a call, or its error; it runs in a thread that does not outlive the process."""
    future: futures.Future[Result] = futures.Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="onepeace-request", daemon=True).start()
    return future


def open_regular(path: str, flags: int) -> int:
    """Descriptor of a regular file: the opener of `open`.

    Raises:
        OSError: the path cannot be opened, or is a pipe, a device or a folder.
    """
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return descriptor
