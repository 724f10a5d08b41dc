"""Downloads with huggingface_hub: a file over https, resumed after an interruption, or the files of a repository."""

import hashlib
import os
import shutil
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from onepeace.errors import UserError, one_line
from onepeace.files.atomic import sync
from onepeace.files.source import within

TIMEOUT = 60.0
"""Seconds in which a server must say what it has."""


def fetch(url: str, path: Path, *, copies: int = 1) -> Path:
    """Download `url` to `path` unless that exists; shows a progress bar if stderr is a terminal.

    Data goes to a .part file in the same folder, named after the server's ETag, so that a later call resumes the
    download if the server still has the same file. It is renamed once it has the length that the server stated.

    Args:
        copies: how many times its size is needed on the disk: 2 for a file that is converted before it is deleted.

    Raises:
        UserError: no network, refused address, wrong length, full disk; the message says what to do.
    """
    from huggingface_hub import get_hf_file_metadata
    from huggingface_hub.file_download import http_get

    address = urlsplit(url)
    if address.scheme != "https" and not (address.scheme == "http" and address.hostname in ("127.0.0.1", "localhost")):
        raise UserError("only https addresses are downloaded", where=url)
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        metadata = within(TIMEOUT, partial(get_hf_file_metadata, url, token=False))
        if metadata.size is None or metadata.etag is None:
            raise UserError(
                "the server sends no size or ETag, so an incomplete download could not be detected", where=url
            )
        part = path.with_name(f"{path.name}.{hashlib.sha256(metadata.etag.encode()).hexdigest()[:16]}.part")
        with open(part, "ab") as file:
            have, free = file.tell(), shutil.disk_usage(path.parent).free
            needed = copies * metadata.size - have
            if needed > free:
                raise UserError(f"{free} bytes free, {needed} needed", where=path.parent)
            http_get(url, file, resume_size=have, expected_size=metadata.size, displayed_filename=path.name)
    except UserError:
        raise
    except Exception as error:  # huggingface_hub raises errors of several HTTP packages
        raise UserError(
            f"not downloaded ({one_line(error)[:200]}); check the network, or fetch it elsewhere and save it as "
            f"{path}, or make a model folder of it: onepeace convert {path.name} -o OUT",
            where=url,
        ) from error
    sync(part)
    os.replace(part, path)
    sync(path.parent)
    return path


def from_hub(
    repository: str,
    patterns: list[str],
    what: str,
    remedy: str,
    cache: str | os.PathLike[str] | None = None,
    revision: str | None = None,
) -> Path:
    """Local folder of a Hugging Face repository's files, downloaded if needed; UserError names `what` and `remedy`."""
    from huggingface_hub import snapshot_download

    try:
        folder = None if cache is None else Path(cache)
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns, cache_dir=folder))
    except Exception as error:  # huggingface_hub raises errors of several HTTP packages
        reason = one_line(error)[:200]
        raise UserError(
            f"{what} ({repository} of the Hugging Face Hub) could not be fetched ({reason}); {remedy}"
        ) from error
