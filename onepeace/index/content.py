"""What an item of an index is made of, read again: to show it, or to compute something anew."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from onepeace.errors import UserError
from onepeace.files.source import scheme
from onepeace.index.sources import is_shard, read_shard, shard_of, state_of, wholes
from onepeace.index.store import Item, Root
from onepeace.progress import Progress

AT_ONCE = 256
"""Items of shards that are in memory at once."""

Result = TypeVar("Result")


def content(item: Item, roots: Mapping[str, Root]) -> Path | bytes | str:
    """The path of a file, the address of one, the bytes of a sample of a shard, or the words of a row of a table.

    Args:
        roots: see `Index.roots`; a link that leads out of its folder is refused where links are not followed.

    Raises:
        UserError: it is not there any more, or lies elsewhere now.
    """
    if scheme(item.path):
        return item.path
    path = Path(item.path)
    if path.is_file():
        _refuse_link(item.path, roots)
        return path
    whole = next((place for place in wholes(item.path) if Path(place).is_file()), None)
    if whole is None:
        raise UserError(f"{item.path}: no such file now; run onepeace index update")
    if not is_shard(whole):
        return (item.caption or "").partition("\n")[0]
    for entry in read_shard(whole, []):
        if entry.item.path == item.path:
            return entry.value
    raise UserError(f"{item.path}: no such sample now; run onepeace index update")


def _refuse_link(path: str, roots: Mapping[str, Root]) -> None:
    """UserError for a file below a folder of the index that really lies outside of it."""
    real = os.path.realpath(path)
    above = [root for root, about in roots.items() if about.kind == "folder" and _is_in(path, root)]
    followed = any(roots[root].follow_links for root in above)
    if above and not followed and not any(_is_in(real, os.path.realpath(root)) for root in above):
        raise UserError(f"{path}: a link that leads out of its folder now, and is not followed")


def _is_in(path: str, folder: str) -> bool:
    return path.startswith(os.path.join(folder, ""))


def each(
    items: Sequence[Item],
    roots: Mapping[str, Root],
    function: Callable[[Any], Result],
    shown: bool | None = None,
) -> Iterator[tuple[int, Result]]:
    """Place among the items, and what a function makes of the content, of those that are as they were embedded.

    Addresses are left out, as nothing is fetched, and those of which the function raises a `UserError` or `OSError`.

    Args:
        roots: of the index.
        function: of a path, bytes or words; it is called in several threads.
        shown: progress; None = on a terminal, and now and then in a log.
    """

    def result(value: Path | bytes | str) -> Result | None:
        try:
            return function(value)
        except (UserError, OSError):
            return None

    found = _unchanged(items, roots)
    with ThreadPoolExecutor(os.cpu_count()) as pool, Progress(len(items), shown=shown) as progress:
        while some := list(islice(found, AT_ONCE)):
            for (i, _), made in zip(some, pool.map(result, [value for _, value in some]), strict=True):
                if made is not None:
                    yield i, made
            progress.update(len(some))


def _unchanged(items: Iterable[Item], roots: Mapping[str, Root]) -> Iterator[tuple[int, Path | bytes | str]]:
    """Each shard is read once, after everything else."""
    in_shards: dict[str, dict[str, int]] = defaultdict(dict)
    for i, item in enumerate(items):
        if scheme(item.path):
            continue
        shard = shard_of(item.path)
        if shard is not None:
            if os.stat(shard).st_mtime_ns == item.mtime_ns:
                in_shards[shard][item.path] = i
            continue
        with suppress(UserError, OSError):  # it is not there any more
            value = content(item, roots)
            if not isinstance(value, Path) or state_of(str(value)) == (item.size, item.mtime_ns):
                yield i, value
    for shard, places in in_shards.items():
        for entry in read_shard(shard, []):
            if entry.item.path in places:
                yield places[entry.item.path], entry.value
