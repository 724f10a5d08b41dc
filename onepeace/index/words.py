"""Files that have the words of a query: in the names of the file and its folders, its caption, its tags or its text.

A word is found as a whole word, without regard to case and accents. Only if no file of the index has it, and the index
is not large, words are found of which it is a part: "rechnung" in Stromrechnung.pdf. The ending of a file does not
count as a word, unless it is typed with its dot. Nothing in a query is an operator: SQLite gets texts in quotes.
"""

import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from onepeace.index.database import Store
from onepeace.index.sources import modalities_by_suffix
from onepeace.index.tokens import parts_of_name, plain, separated, split_ending

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


class WordSearch:
    """The words of a query in an index.

    Args:
        store: open for reading.
        query: its words; "" for none.
        num_files: number of files of the index.

    Attributes:
        expressions: expression of FTS5 by word, as typed; None for a word that no file has.

    Raises:
        Damaged: the index of words is damaged.
    """

    def __init__(self, store: Store, query: str, num_files: int) -> None:
        self.store = store
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
        ((ids,),) = self.store.select(sql, (all_words,))
        return np.sort(np.fromstring(ids or "", np.int64, sep=","))

    @property
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
                for (file_id,) in self.store.select(sql, (expression, ids_as_json)):
                    words[file_id].append(word)
        return {file_id: tuple(texts) for file_id, texts in words.items()}

    def has(self, word: str) -> bool:
        """Whether a file of the index has a word, which need not be one of the query."""
        if word in self.expressions:
            return self.expressions[word] is not None
        return self._expression(word) is not None

    def _expression(self, word: str) -> str | None:
        """Expression for a word if a file has it, else for the words of which it is a part."""
        expression = _expression_of(word)
        if self._finds(expression):
            return expression
        wholes = self._words_with(_folded(word))
        if wholes and self._finds(_in_texts(wholes)):
            return _in_texts(wholes)
        return None

    def _finds(self, expression: str) -> bool:
        """Whether an expression finds a file."""
        return bool(self.store.select("SELECT 1 FROM word_index WHERE word_index MATCH ? LIMIT 1", (expression,)))

    def _words_with(self, part: str) -> list[str]:
        """Words of the index that have a part."""
        if len(part) < MIN_PART or not part.isalnum():
            return []
        return re.findall(f"^.*{part}.*$", self.store.vocabulary, re.MULTILINE)[:MAX_WHOLES]


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
