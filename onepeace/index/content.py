"""What an item of an index is made of, read again: to show it, or to embed it anew."""

from pathlib import Path

from onepeace.errors import UserError
from onepeace.files.source import scheme
from onepeace.index.sources import is_shard, read_shard, wholes
from onepeace.index.store import Item


def content(item: Item) -> Path | bytes | str:
    """The path of a file, the address of one, the bytes of a sample of a shard, or the words of a row of a table.

    Raises:
        UserError: it is not there any more.
    """
    if scheme(item.path):
        return item.path
    path = Path(item.path)
    if path.is_file():
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
