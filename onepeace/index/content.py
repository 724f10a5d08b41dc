"""Content of an item of an index, read again for display or further computation."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from onepeace.errors import UserError
from onepeace.index.items import Item
from onepeace.index.sources import Root, is_shard, read_shard, shard_of, state_of, whole_of
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
        _refuse_link(item.path, roots)
        return path
    whole = whole_of(item.path)
    if whole is None or not Path(whole).is_file():
        raise UserError(f"{item.path}: no such file now; run onepeace index update")
    if not is_shard(whole):
        return (item.caption or "").partition("\n")[0]
    for entry in read_shard(whole):
        if entry.item.path == item.path:
            return entry.value() if callable(entry.value) else entry.value
    raise UserError(f"{item.path}: no such sample now; run onepeace index update")


def _refuse_link(path: str, roots: Mapping[str, Root]) -> None:
    """Raise UserError for a file in an indexed folder whose real path is outside, if links are not followed."""
    real = Path(os.path.realpath(path))
    above = [root for root in roots.values() if root.kind == "folder" and Path(path).is_relative_to(root.path)]
    is_inside = any(root.follow_links or real.is_relative_to(os.path.realpath(root.path)) for root in above)
    if above and not is_inside:
        raise UserError(f"{path}: a link that leads out of its folder now, and is not followed")


def map_content(
    items: Sequence[Item], roots: Mapping[str, Root], function: Callable[[Any], Result]
) -> Iterator[tuple[int, Result]]:
    """Yield (place, result) of a function for each item whose file is unchanged.

    Left out: samples of shards, and items for which the function raises `UserError` or `OSError`.

    Args:
        roots: see `Index.roots`.
        function: takes a path or a text; called from several threads.
    """

    def result(item: Item) -> Result | None:
        with suppress(UserError, OSError):
            if shard_of(item.path):
                return None
            value = content(item, roots)
            if not isinstance(value, Path) or state_of(str(value)) == (item.size, item.mtime_ns):
                return function(value)
        return None

    with ThreadPoolExecutor(os.cpu_count()) as pool, Progress(len(items)) as progress:
        for i, made in enumerate(pool.map(result, items)):
            progress.update()
            if made is not None:
                yield i, made
