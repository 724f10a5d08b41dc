"""The texts by whose words a file is found: of its names, captions, tags and content.

SQLite's tokenizer splits at everything but letters and digits, and ignores case and accents. What it does not do is
done here, to files and queries alike: names also end where a small letter is followed by a capital one, or a letter by
a digit (MyHoliday2024), and scripts that are written without spaces are words of one character, found as phrases.
"""

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from onepeace.index.items import SEPARATOR, Item, Words, whole_of, without_surrogates

LONGEST = 100_000
"""Maximum characters of a caption with the other things said about a file."""
LONGEST_TEXT = 10_000
"""Maximum characters of a text file, from its beginning: a whole book has most words, and is about few of them."""
ENDING = re.compile(r"\.([^\W_]{1,5})$")
WITHOUT_SPACES = re.compile(
    "([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])"
)
"""Characters of Thai, Lao, Burmese, Khmer, Japanese and Chinese."""
NAME_ENDS = re.compile("(?<=a)(?=A)|(?<=A)(?=Aa)|(?<=[aA])(?=1)|(?<=1)(?=[aA])")
"""Ends of words within a name, in the form of `_shape`."""


def words_of(item: Item, folders: Sequence[str], text: str = "") -> Words:
    """The texts by whose words a file is found.

    Args:
        folders: indexed folders; of a path below one, the names from that of the folder on count.
        text: content of a text file.
    """
    name, ending = split_ending(_names(item.path, folders))
    texts = [item.caption or "", *_cells(item.metadata), *_cells(item.tags)]
    return Words(
        name=_with_parts(plain(name)),
        ending=plain(ending),
        about=separated(plain(" \n ".join(texts)[:LONGEST])),
        text=separated(plain(text[:LONGEST_TEXT])),
    )


def plain(text: str) -> str:
    """A text that SQLite takes, with one code for characters that look alike, such as wide letters and digits."""
    return unicodedata.normalize("NFKC", without_surrogates(text)).replace("\0", " ")


def split_ending(name: str) -> tuple[str, str]:
    """A name without its ending, and the ending without the dot; "" if it has none."""
    match = ENDING.search(name)
    if match is None:
        return name, ""
    return name[: match.start()], match[1]


def separated(text: str) -> str:
    """A text with spaces around each character of a script that is written without them."""
    if text.isascii():
        return text
    return WITHOUT_SPACES.sub(r" \1 ", text)


def parts_of_name(name: str) -> str:
    """A name with spaces where words within it end: MyHoliday2024 is My Holiday 2024."""
    shape = "".join(map(_shape, name))
    pieces = []
    start = 0
    for match in NAME_ENDS.finditer(shape):
        end = match.start()
        pieces.append(name[start:end])
        start = end
    pieces.append(name[start:])
    return separated(" ".join(pieces))


def _shape(character: str) -> str:
    if character.isdigit():
        return "1"
    if not character.isalpha():
        return " "
    return "A" if character.isupper() else "a"


def _with_parts(names: str) -> str:
    """Names of folders and a file, and those that have parts a second time by them."""
    texts = []
    parts_of_names = []
    for name in names.split(os.sep):
        text = separated(name)
        parts = parts_of_name(name)
        texts.append(text)
        if parts != text:
            parts_of_names.append(parts)
    return " / ".join([*texts, *parts_of_names])


def _names(path: str, folders: Iterable[str]) -> str:
    """The part of a path that names a file: from the outermost indexed folder on, and without lines of a table."""
    shard_or_table = whole_of(path)
    above = []
    for folder in folders:
        if path.startswith(os.path.join(folder, "")):
            above.append(os.path.dirname(folder))
    if not above:
        above.append(os.path.dirname(shard_or_table or path))
    start = min(map(len, above))
    names = path[start:]
    if shard_or_table is not None:
        container, _ = split_ending(shard_or_table[start:])
        part = path[len(shard_or_table) :]
        is_line = part.removeprefix(SEPARATOR).isdigit()
        names = container if is_line else container + part
    return names


def _cells(value: Any) -> Iterator[str]:
    """The texts and whole numbers in JSON."""
    waiting = [value]  # in place of recursion, whose depth is limited
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            waiting += reversed(part.values())
        elif isinstance(part, list):
            waiting += reversed(part)
        elif isinstance(part, (str, int)) and not isinstance(part, bool):
            yield str(part)
