"""Content of the files of an index: read once when they are indexed, and again for display or computation.

A file is hashed first, and decoded later if its content is new. In between, another program may write it or put another
file in its place; `Reading.is_current` says afterwards whether one did.
"""

import errno
import gzip
import hashlib
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from onepeace.errors import UserError
from onepeace.files.metadata import Description, describe_media
from onepeace.files.source import MAX_BYTES, MAX_TEXT_BYTES, NamedBytes, decode_text, open_regular
from onepeace.index.items import Item, is_shard, mtime_of, shard_of, whole_of
from onepeace.index.sources import Entry, Root, state_of
from onepeace.index.words import LONGEST_TEXT, words_in
from onepeace.progress import Progress

Result = TypeVar("Result")

CHUNK = 1 << 20
LIMITS = {"text": MAX_TEXT_BYTES, "image": MAX_BYTES}
"""Bytes above which a file of a kind is not decoded; sounds and videos are read piece by piece."""
CHANGES = "changes while it is read"
GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Reading:
    """An entry that was read."""

    entry: Entry
    """The entry as it was scanned."""
    item: Item
    """Its item with hash, date and size in pixels or seconds; or with a problem."""
    value: Any = None
    """Path of a file, else the content."""
    text: str = ""
    """Words of a text file (`words_in`)."""
    state: tuple[int, ...] | None = None
    """`_state` of the file when it was hashed; None for content in memory, and for a problem."""

    def is_current(self) -> bool:
        """Whether the file was not written since it was hashed, so that whoever decoded it meanwhile had the same."""
        if self.state is None:
            return True
        try:
            return _state(os.stat(self.value)) == self.state
        except OSError:
            return False


def _state(status: os.stat_result) -> tuple[int, ...]:
    """Facts that differ after a file was written, or another got its name; the inode is left out, as some network file
    systems number files anew at every look."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def read_entry(entry: Entry) -> Reading:
    """Read an entry: adds hash, date and size in pixels or seconds to its item, or a problem."""
    try:
        if isinstance(entry.value, Path):
            return _read_file(entry, entry.value)
        value = entry.value() if callable(entry.value) else entry.value
        content = value
        description = Description()
        if isinstance(value, str):
            content = value.encode("utf-8", "surrogatepass")
        else:
            description = describe_media(_as_file(value), entry.item.kind)
        digest = hashlib.blake2b(content, digest_size=16).digest()
        item = replace(entry.item, hash=digest)
        return Reading(entry, _described(item, description), value)
    except (OSError, UserError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return Reading(entry, replace(entry.item, problem=reason))


def _as_file(content: NamedBytes) -> BinaryIO:
    file = io.BytesIO(content)
    file.name = content.name
    return file


def _hash(file: BinaryIO) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    while chunk := file.read(CHUNK):
        digest.update(chunk)
    return digest.digest()


def _read_file(entry: Entry, path: Path) -> Reading:
    """Hash a file. One that no decoder would read is not hashed either."""
    kind = entry.item.kind
    limit = LIMITS.get(kind)
    with open(path, "rb", opener=open_regular) as file:
        status = os.fstat(file.fileno())
        if limit is not None and status.st_size > limit:
            raise UserError(f"{status.st_size} bytes are above the limit of {limit}")
        digest = _hash(file)
    item = replace(entry.item, size=status.st_size, mtime_ns=mtime_of(status), hash=digest)
    return Reading(
        entry=entry,
        item=_described(item, describe_media(path, kind)),
        value=path,
        text=_words_of_file(path) if kind == "text" else "",
        state=_state(status),
    )


def _words_of_file(path: Path) -> str:
    """Words of a text file; one in an unknown encoding is refused when it is embedded."""
    with open(path, "rb", opener=open_regular) as file:
        return words_in(decode_text(file.read(4 * LONGEST_TEXT), "replace"))


def _described(item: Item, description: Description) -> Item:
    """The item with what its header says; the date of a file that names none is that of its last change."""
    item = replace(item, **vars(description))
    if item.date is None and item.mtime_ns:
        item = replace(item, date=item.mtime_ns / 1e9)
    return item


def content(item: Item, roots: Mapping[str, Root]) -> Path | bytes | str:
    """The path of a file, the bytes of a sample in a shard, or the text of a row in a table.

    Args:
        roots: see `Index.roots`; a link that leads out of its folder is refused unless the root follows links.

    Raises:
        UserError: the content no longer exists, or a link now leads out of its folder.
    """
    path = Path(item.path)
    if path.is_file():
        _real_path(item.path, roots)
        return path
    return _part_of_whole(item)


def open_content(item: Item, roots: Mapping[str, Root]) -> BinaryIO | bytes | str:
    """`content`, with an open file in place of a path: what was checked is what is read, whatever the path means later.

    Raises:
        UserError: as `content`.
        OSError: the file cannot be opened, or was replaced just now.
    """
    path = Path(item.path)
    if not path.is_file():
        return _part_of_whole(item)
    with ExitStack() as stack:
        file = stack.enter_context(open(path, "rb", opener=open_regular))
        real = _real_path(item.path, roots)
        if not os.path.samestat(os.fstat(file.fileno()), os.lstat(real)):
            raise FileNotFoundError(errno.ENOENT, "replaced by a link", item.path)
        stack.pop_all()
        return file


def _part_of_whole(item: Item) -> bytes | str:
    """The bytes of a sample in a shard, or the text of a row in a table."""
    whole = whole_of(item.path)
    if whole is None or not Path(whole).is_file():
        raise UserError("no such file now; run onepeace index update", where=item.path)
    if item.offset is None:
        return (item.caption or "").partition("\n")[0]
    if not is_shard(whole):
        raise UserError("no such sample now; run onepeace index update", where=item.path)
    return _member(whole, item)


def _member(shard: str, item: Item) -> NamedBytes:
    """The bytes of a sample, read at their place in the shard; a compressed shard is unpacked up to there."""
    with open(shard, "rb", opener=open_regular) as file:
        is_compressed = file.read(len(GZIP)) == GZIP
        file.seek(0)
        if mtime_of(os.fstat(file.fileno())) != item.mtime_ns:
            raise UserError("the shard has changed; run onepeace index update", where=item.path)
        with gzip.open(file) if is_compressed else nullcontext(file) as tar:
            tar.seek(item.offset or 0)
            content = tar.read(item.size)
    if len(content) != item.size:
        raise UserError("the shard has changed; run onepeace index update", where=item.path)
    return NamedBytes(content, item.path)


def _real_path(path: str, roots: Mapping[str, Root]) -> str:
    """The path without links.

    Raises:
        UserError: a link leads out of the indexed folders that the file is in, and is not followed there.
    """
    real = os.path.realpath(path)
    folders = [root for root in roots.values() if root.type == "folder" and Path(path).is_relative_to(root.path)]
    if not folders or any(root.follow_links for root in folders):
        return real
    if not any(Path(real).is_relative_to(os.path.realpath(root.path)) for root in folders):
        raise UserError("a link that leads out of its folder now, and is not followed", where=path)
    return real


def map_content(
    items: Sequence[Item],
    roots: Mapping[str, Root],
    function: Callable[[Any], Result],
) -> Iterator[tuple[int, Result]]:
    """Yield (place, result) of a function for each item whose file is unchanged.

    Left out: samples of shards, and items for which the function raises `UserError` or `OSError`.

    Args:
        roots: see `Index.roots`.
        function: takes a path or a text; called from several threads.
    """

    def result_of(item: Item) -> Result | None:
        if shard_of(item.path):
            return None
        with suppress(UserError, OSError):
            value = content(item, roots)
            is_changed = isinstance(value, Path) and state_of(str(value)) != (item.size, item.mtime_ns)
            if not is_changed:
                return function(value)
        return None

    with ThreadPoolExecutor(os.cpu_count()) as pool, Progress(len(items)) as progress:
        for i, result in enumerate(pool.map(result_of, items)):
            progress.update()
            if result is not None:
                yield i, result
