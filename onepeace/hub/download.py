"""Downloads one file over https: resumed after a cut, and given its name only when complete."""

import json
import os
import shutil
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from onepeace.errors import UserError, one_line
from onepeace.files.atomic import sync

CHUNK = 1 << 20
TIMEOUT = 30.0
TRIES = 5
"""Attempts in a row without a new byte before giving up."""


def fetch(url: str, path: Path) -> Path:
    """Download `url` to `path` unless it is there already; a bar shows how far it is if stderr is a terminal.

    Bytes go to PATH.part, which a later call resumes if the server still has the same file (by its ETag or date).
    The file gets its name only when it has the length that the server stated.

    Raises:
        UserError: no network, refused address, wrong length, full disk; it says what to do.
    """
    _check_address(url)
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part, note = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.json")
    idle = 0
    while True:
        before = _size(part)
        try:
            if _transfer(url, part, note):
                break
            reason: object = "the connection was closed early, or the file changed"
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):
                raise UserError(f"{url}: the server says {error.code} {error.reason}{_by_hand(path)}") from error
            reason = f"{error.code} {error.reason}"
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", None) or error
        idle = 0 if _size(part) > before else idle + 1
        if idle >= TRIES:
            raise UserError(f"{url}: not downloaded ({one_line(reason)}){_by_hand(path)}")
        time.sleep(_pause(idle))
    os.replace(part, path)
    sync(path.parent)
    _delete(note)
    return path


def from_hub(
    repository: str, patterns: list[str], what: str, remedy: str, cache: str | os.PathLike[str] | None = None
) -> Path:
    """The local copy of a Hugging Face repository's files; UserError says `what` is not there, why, and the remedy."""
    from huggingface_hub import snapshot_download

    try:
        folder = None if cache is None else Path(cache)
        return Path(snapshot_download(repository, allow_patterns=patterns, cache_dir=folder))
    except Exception as error:  # its errors come from several HTTP packages
        reason = one_line(error)[:200]
        raise UserError(
            f"{what} ({repository} of the Hugging Face Hub) could not be fetched ({reason}); {remedy}"
        ) from error


def _check_address(url: str) -> None:
    address = urlsplit(url)
    if address.scheme != "https" and not (address.scheme == "http" and address.hostname in ("127.0.0.1", "localhost")):
        raise UserError(f"{url}: only https addresses are downloaded")


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
        _check_address(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _transfer(url: str, part: Path, note: Path) -> bool:
    """Append what the partial download lacks; return whether it is complete."""
    from tqdm import tqdm

    known = _read_note(note, url)
    have = _size(part) if known else 0
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity"})  # noqa: S310 (address was checked)
    if have:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", known)
    opener = urllib.request.build_opener(_SafeRedirects)
    try:
        response = opener.open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        # The server has no more bytes: the partial download is complete, or of another file.
        complete = error.headers.get("Content-Range") == f"bytes */{have}"
        return complete or _delete(part, note)
    with response:
        # Only a strong ETag promises the same bytes; without one, the date is used.
        etag = response.headers.get("ETag") or ""
        validator = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")
        span, _, length = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        start = have if response.status == 206 else 0
        if start and (validator != known or not span.startswith(f"{have}-")):
            return _delete(part, note)
        length = length if response.status == 206 else response.headers.get("Content-Length") or ""
        if not length.isdigit():
            raise UserError(f"{url}: the server does not say how long the file is, so a cut could not be noticed")
        total, free = int(length), shutil.disk_usage(part.parent).free
        if total - start > free:
            raise UserError(f"{part.parent}: {free} bytes free, {total - start} needed")
        note.write_text(json.dumps({"url": url, "validator": validator}), encoding="utf-8")
        with (
            open(part, "ab" if start else "wb") as file,
            tqdm(total=total, initial=start, unit="B", unit_scale=True,
                 desc=part.name.removesuffix(".part"), disable=None) as bar,
        ):  # fmt: skip
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    sync(part)
    if _size(part) > total:
        _delete(part, note)
        raise UserError(f"{url}: more bytes arrived than the {total} announced; deleted")
    return _size(part) == total


def _read_note(note: Path, url: str) -> str:
    """The validator of the partial download; "" if it is of another address or has none: then the download restarts."""
    try:
        content: Any = json.loads(note.read_text(encoding="utf-8"))
        return str(content["validator"] or "") if content["url"] == url else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _delete(*paths: Path) -> bool:
    """False, as nothing of the file is there then."""
    for path in paths:
        path.unlink(missing_ok=True)
    return False


def _pause(idle: int) -> float:
    """Seconds to wait before the next attempt."""
    return 2.0**idle - 1


def _by_hand(path: Path) -> str:
    return (
        f"; check the network, or fetch it elsewhere and save it as {path}, "
        f"or make a model folder of it: onepeace convert {path.name} -o OUT"
    )
