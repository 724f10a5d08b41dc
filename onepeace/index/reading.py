"""The content of entries, read ahead of the decoders: its hash, and what its headers say."""

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onepeace.files.metadata import describe_media
from onepeace.index.sources import Entry
from onepeace.index.store import Item

AHEAD = 64
"""Files that are read and hashed before the decoders ask for them."""
CHUNK = 1 << 20


@dataclass(frozen=True)
class Content:
    """Entry whose content has been looked at."""

    entry: Entry
    item: Item
    """With hash, date and size in pixels or seconds."""
    error: str | None = None


def read_content(entry: Entry) -> Content:
    """Hash and describe the content of an entry; an address is left to the embedder."""
    item = entry.item
    value = entry.value
    if isinstance(value, str) and item.modality == "text":
        value = value.encode("utf-8", "surrogatepass")
    elif isinstance(value, str):
        return Content(entry, item)
    try:
        about = hashlib.blake2b(digest_size=16)
        if isinstance(value, Path):
            with open(value, "rb") as file:
                while chunk := file.read(CHUNK):
                    about.update(chunk)
        else:
            about.update(value)
    except OSError as error:
        return Content(entry, item, error.strerror or "cannot be read")
    return Content(entry, replace(item, hash=about.digest(), **_describe(value, item)))


def _describe(value: Path | bytes, item: Item) -> dict[str, Any]:
    """What the headers of a file say; of content inside another file, only when that was changed."""
    changed = item.mtime_ns / 1e9 or None
    if not isinstance(value, Path):
        return {"date": changed}
    known = describe_media(value, item.modality)
    return {**vars(known), "date": changed if known.date is None else known.date}


def read_ahead(entries: Iterable[Entry], read: Callable[[Entry], Content]) -> Generator[Content, None, None]:
    """The content of each in order, read by threads up to AHEAD entries further."""
    with ThreadPoolExecutor(2, "onepeace-read") as pool:
        waiting: deque[Future[Content]] = deque()
        try:
            for entry in entries:
                waiting.append(pool.submit(read, entry))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
