"""Content of an item of an index, read again for display or further computation."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from onepeace.errors import UserError
from onepeace.files.regular import open_regular
from onepeace.index.entries import state_of, value_of
from onepeace.index.items import Item
from onepeace.index.paths import is_shard, shard_of, whole_of
from onepeace.index.roots import Root
from onepeace.index.shards import read_shard
from onepeace.progress import Progress

Result = TypeVar("Result")


def content(item: Item, roots: Mapping[str, Root]) -> Path | bytes | str:
    """The path of a file, the bytes of a sample in a shard, or the text of a row in a table.

    Args:
        roots: see `Index.roots`; a link that leads out of its folder is refused unless the root follows links.

    Raises:
        UserError: the content no longer exists, or a link now leads out of its folder.
    """
    path = Path(item.path)
    if path.is_file():
        _place_in_folder(item.path, roots)
        return path
    return _part_of_whole(item)


def open_content(item: Item, roots: Mapping[str, Root]) -> BinaryIO | bytes | str:
    """`content`, with an open file in place of a path: what was checked is what is read, whatever the path means later.

    Raises:
        UserError: as `content`.
        OSError: the file cannot be opened.
    """
    path = Path(item.path)
    if not path.is_file():
        return _part_of_whole(item)
    folder_and_names = _place_in_folder(item.path, roots)
    if folder_and_names is None or os.open not in os.supports_dir_fd:  # the latter on Windows
        return open(path, "rb", opener=open_regular)
    folder, names = folder_and_names

    def opener(_: str, flags: int) -> int:
        return _open_below(folder, names, flags)

    return open(path, "rb", opener=opener)


def _open_below(folder: Path, names: Sequence[str], flags: int) -> int:
    """Open a file below a folder, by the names on the way to it, without following a link.

    Raises:
        OSError: there is no such file, or one of the names is a link by now.
    """
    parent = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    for name in names[:-1]:
        try:
            child = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
        finally:
            os.close(parent)
        parent = child
    try:
        return os.open(names[-1], flags | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=parent)
    finally:
        os.close(parent)


def _part_of_whole(item: Item) -> bytes | str:
    """The bytes of a sample in a shard, or the text of a row in a table."""
    whole = whole_of(item.path)
    if whole is None or not Path(whole).is_file():
        raise UserError("no such file now; run onepeace index update", where=item.path)
    if not is_shard(whole):
        return (item.caption or "").partition("\n")[0]
    for entry in read_shard(whole):
        if entry.item.path == item.path:
            return value_of(entry)
    raise UserError("no such sample now; run onepeace index update", where=item.path)


def _place_in_folder(path: str, roots: Mapping[str, Root]) -> tuple[Path, tuple[str, ...]] | None:
    """Real path of the indexed folder that a file may not leave by links, and the names on the way from it to the file;
    None if the file is in no such folder, or in one whose links are followed.

    Raises:
        UserError: a link leads out of the folder.
    """
    folders = []
    for root in roots.values():
        if root.type == "folder" and Path(path).is_relative_to(root.path):
            folders.append(root)
    if not folders or any(root.follow_links for root in folders):
        return None
    real = Path(os.path.realpath(path))
    for root in folders:
        folder = Path(os.path.realpath(root.path))
        if real.is_relative_to(folder):
            return folder, real.relative_to(folder).parts
    raise UserError("a link that leads out of its folder now, and is not followed", where=path)


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
