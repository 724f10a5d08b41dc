"""Files that have the words of a query: in the names of the file and its folders, its caption, its tags or its text.

A word is found as a whole word, without regard to case and accents. Only if no file of the index has it, and the index
is not large, words are found of which it is a part: "rechnung" in Stromrechnung.pdf. The ending of a file does not
count as a word, unless it is typed with its dot. Nothing in a query is an operator: SQLite gets texts in quotes.

SQLite's tokenizer splits at everything but letters and digits, and ignores case and accents. What it does not do is
done here, to files and queries alike: names also end where a small letter is followed by a capital one, or a letter by
a digit (MyHoliday2024), and scripts that are written without spaces are words of one character, found as phrases.
"""

import itertools
import json
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from onepeace.index.items import SEPARATOR, Item, Words, whole_of, without_surrogates
from onepeace.index.sources import modalities_by_suffix

if TYPE_CHECKING:
    from onepeace.index.state import State

MAX_WORDS = 8
"""Words of a query above which it is a sentence, which is found by its meaning alone."""
MAX_CHARACTERS = 1000
SMALL_WORDS = frozenset(
    "a an and any are as at be but by for from has have he her his i in into is it its me my of on or our she some "
    "that the their them there these they this those to was we were with you your".split()
)
"""English words that nearly every text has."""
MIN_PART = 6
"""Minimum characters of a part of a word; shorter ones are parts of unrelated words, as phone is of saxophone."""
MAX_WHOLES = 100
"""Maximum number of different words that are found by one part."""
ALWAYS_FEW = 3
FEW = 20
FEW_OF_ALL = 0.05
"""Words are rare if no more than three files have all of them, or no more than 20 and one in twenty of the index."""
EDGES = re.compile(r"^[^\w.]+|[\W_]+$")
TEXTS = "{name about text}"
"""Columns of `word_index` in which a word is found; `ending` is the other one."""

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


class WordSearch:
    """The words of a query in an index.

    Args:
        state: of the index.
        query: its words; "" for none.
        num_files: number of files of the index.

    Attributes:
        expressions: expression of FTS5 by word, as typed; None for a word that no file has.

    Raises:
        Damaged: the index of words is damaged.
    """

    def __init__(self, state: "State", query: str, num_files: int) -> None:
        self.state = state
        self.num_files = num_files
        self.expressions = {word: self._expression(word) for word in words_of_query(query)}

    @cached_property
    def file_ids(self) -> np.ndarray:
        """(n,) int64, ascending ids of the files that have all words; none if the query has no words."""
        expressions = [expression for expression in self.expressions.values() if expression is not None]
        if not expressions or len(expressions) < len(self.expressions):
            return np.empty(0, np.int64)
        all_words = " AND ".join(f"({expression})" for expression in expressions)
        # As one text, which takes a fifth of the time of as many rows.
        sql = "SELECT group_concat(rowid) FROM word_index WHERE word_index MATCH ?"
        ((ids,),) = self.state.store.select(sql, (all_words,))
        return np.sort(np.fromstring(ids or "", np.int64, sep=","))

    @cached_property
    def are_rare(self) -> bool:
        """Whether a file has all words, and few files do."""
        return 0 < len(self.file_ids) <= max(ALWAYS_FEW, min(FEW, FEW_OF_ALL * self.num_files))

    def words_by_file(self, ids: Sequence[int]) -> dict[int, tuple[str, ...]]:
        """The words that files have, by id; files without any are left out."""
        sql = "SELECT rowid FROM word_index WHERE word_index MATCH ? AND rowid IN (SELECT value FROM json_each(?))"
        ids_as_json = json.dumps(list(ids))
        words = defaultdict(list)
        for word, expression in self.expressions.items():
            if expression is not None:
                for (file_id,) in self.state.store.select(sql, (expression, ids_as_json)):
                    words[file_id].append(word)
        return {file_id: tuple(texts) for file_id, texts in words.items()}

    def has(self, word: str) -> bool:
        """Whether a file of the index has a word, which need not be one of the query."""
        return self.expressions.get(word) is not None or self._expression(word) is not None

    def _expression(self, word: str) -> str | None:
        """Expression for a word if a file has it, else for the words of which it is a part; None if no file has one."""
        expression = _expression_of(word)
        part = _folded(word)
        if not self._finds(expression) and len(part) >= MIN_PART and part.isalnum():
            wholes = re.findall(f"^.*{part}.*$", self.state.terms, re.MULTILINE)[:MAX_WHOLES]
            expression = _in_texts(wholes or [word])
        return expression if self._finds(expression) else None

    def _finds(self, expression: str) -> bool:
        """Whether an expression finds a file."""
        return bool(self.state.store.select("SELECT 1 FROM word_index WHERE word_index MATCH ? LIMIT 1", (expression,)))


def words_of_query(query: str) -> list[str]:
    """The words of a query by which files are found; none if there are more than `MAX_WORDS`, or only small ones."""
    if len(query) > MAX_CHARACTERS:
        return []
    words: dict[str, str] = {}
    for chunk in plain(query).split():
        word = EDGES.sub("", chunk)
        key = word.casefold()
        if key not in SMALL_WORDS and any(map(str.isalnum, key)):
            words.setdefault(key, word)
    return [*words.values()] if len(words) <= MAX_WORDS else []


def _expression_of(word: str) -> str:
    """Expression for a word: as typed, by the parts of a name, or as the name and the ending of a file."""
    expression = _in_texts([separated(word), parts_of_name(word)])
    name, ending = split_ending(word)
    if f".{ending.lower()}" not in modalities_by_suffix():
        return expression
    of_file = f"ending : {quoted(ending)}"
    if any(map(str.isalnum, name)):
        of_file = f"{_in_texts([separated(name), parts_of_name(name)])} AND {of_file}"
    return f"({expression}) OR ({of_file})"


def _in_texts(forms: Sequence[str]) -> str:
    """Expression for files that have one of several words or phrases."""
    return f"{TEXTS} : ({' OR '.join(map(quoted, dict.fromkeys(forms)))})"


def quoted(text: str) -> str:
    """A text as a string of FTS5, which its tokenizer splits into a phrase."""
    return '"' + text.replace('"', '""') + '"'


def _folded(word: str) -> str:
    """A word as the index of words has it: in small letters without accents."""
    letters = unicodedata.normalize("NFKD", word.lower())
    return "".join(letter for letter in letters if not unicodedata.combining(letter))


def words_of(item: Item, folders: Sequence[str], text: str = "") -> Words:
    """The texts by whose words a file is found.

    Args:
        folders: indexed folders; of a path below one, the names from that of the folder on count.
        text: `words_in` the content of a text file.
    """
    name, ending = split_ending(_names(item.path, folders))
    texts = [item.caption or "", *_cells(item.metadata), *_cells(item.tags)]
    return Words(
        name=_with_parts(plain(name)),
        ending=plain(ending),
        about=separated(plain(" \n ".join(texts)[:LONGEST])),
        text=text,
    )


def words_in(content: str) -> str:
    """The beginning of a text file, in the form in which its words are stored."""
    return separated(plain(content[:LONGEST_TEXT]))


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
    ends = [match.start() for match in NAME_ENDS.finditer(shape)]
    pieces = [name[start:end] for start, end in itertools.pairwise([0, *ends, len(name)])]
    return separated(" ".join(pieces))


def _shape(character: str) -> str:
    if character.isdigit():
        return "1"
    if not character.isalpha():
        return " "
    return "A" if character.isupper() else "a"


def _with_parts(names: str) -> str:
    """Names of folders and a file, and those that have parts a second time by them."""
    texts = [separated(name) for name in names.split(os.sep)]
    parts = [parts_of_name(name) for name in names.split(os.sep)]
    return " / ".join([*texts, *(part for part in parts if part not in texts)])


def _names(path: str, folders: Iterable[str]) -> str:
    """The part of a path that names a file: from the outermost indexed folder on, and without lines of a table."""
    shard_or_table = whole_of(path)
    above = [os.path.dirname(folder) for folder in folders if path.startswith(os.path.join(folder, ""))]
    start = min(map(len, above), default=len(os.path.dirname(shard_or_table or path)))
    if shard_or_table is None:
        return path[start:]
    container, _ = split_ending(shard_or_table[start:])
    part = path[len(shard_or_table) :]
    is_line = part.removeprefix(SEPARATOR).isdigit()
    return container if is_line else container + part


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
