"""Hints about the texts of a query: words that the model may not know, and negations. Nothing is changed by them.

A model has learned the words that its tokenizer keeps whole; one that is cut to pieces is rare, misspelt or of another
language. A frequent word of the tokenizer that is one letter away is proposed in its place, except beside an article or
a preposition of another language. The rules were chosen on captions and class names, and measured on others
(docs/results/search.md).
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from string import ascii_lowercase
from typing import Any, NamedTuple

MAX_CHARACTERS = 1000
MAX_UNWANTED = 3
"""Maximum number of words after a negation that are proposed to be left out; more are not all negated."""
SHORTEST = 4
"""Minimum characters of an English word that gets a hint."""
SHORTEST_MISSPELT = 5
SHORTEST_STEM = 3
NOT_ENGLISH = frozenset(
    "al alla auf aus aux avec bei che com da dans das de del dem der des di do du een ein eine einem einen el em et "
    "gli het il im la le les lo mit na nel och og os qui sul sur um uma un una und une zum zur".split()
)
"""Articles, prepositions and the like of other languages, without those that are English words as well."""
ENDINGS = ("s", "es", "ed", "ing", "er", "ers", "y", "ly")
DOUBLES = re.compile("[^aeiou]+[aeiou][^aeiouwxy]")
"""Stems whose last letter is doubled before most endings, as of running."""
SPACE = "\u0120"
"""What stands for the space before a word in the tokens of a byte-level tokenizer."""

NEGATION = re.compile(
    r"\b(?:(?:but|and|with)\s+(?:no|not|without)|not|without|\w+n['\u2019]t)\s+(?:any\s+)?", re.IGNORECASE
)
MARKS = ".,;:!?\"'()[]\u2018\u2019\u201c\u201d\u201e\u00ab\u00bb"
LOOSE_END = re.compile(r"(?:[\s,;.]|\b(?:but|and|that|which|who|is|are|was|were|do|does|with))+$", re.IGNORECASE)
"""What is left at the end of a text when its negation is cut off."""
CANNOT_NEGATE = "the model cannot negate; name what to leave out with: --without WORDS"

Vocabulary = Mapping[str, int]
"""Places of the words that a tokenizer keeps whole, by word; the most frequent ones come first. `INSIDE` for those that
it keeps inside of longer words alone."""
INSIDE = -1


class Suggestion(NamedTuple):
    """A query that may be meant."""

    text: str
    without: str = ""
    """What the hits should not show."""


class Hints(NamedTuple):
    """What to tell a user about a query."""

    lines: tuple[str, ...] = ()
    suggestion: Suggestion | None = None
    """The query that the lines propose, if the query is one text."""


def whole_words(tokenizer: Any) -> Vocabulary:
    """The words that a byte-level tokenizer of the package tokenizers keeps whole: " beach", "clip" of paperclip."""
    vocabulary: dict[str, int] = {}
    for token, place in tokenizer.get_vocab().items():
        word = token.removeprefix(SPACE)
        if word != token and word.isalpha():
            vocabulary[word] = place
        elif word.isalpha():
            vocabulary.setdefault(word, INSIDE)
    return vocabulary


def hints(texts: Sequence[str], vocabulary: Vocabulary, occurs: Callable[[str], bool]) -> Hints:
    """Hints about the texts of a query.

    Args:
        texts: the texts.
        vocabulary: whole words of the tokenizer; empty if the model has none, so that there are hints about negations
            alone.
        occurs: whether a word is in the name, caption, tags or text of a file that is searched; such a word is meant
            as it is. It is called for words that would get a hint.
    """
    results = [_hints_of_text(text, vocabulary, occurs) for text in texts if len(text) <= MAX_CHARACTERS]
    lines = dict.fromkeys(line for result in results for line in result.lines)
    return Hints(tuple(lines), results[0].suggestion if len(results) == len(texts) == 1 else None)


def _hints_of_text(text: str, vocabulary: Vocabulary, occurs: Callable[[str], bool]) -> Hints:
    words = [piece.strip(MARKS) for piece in text.replace("-", " ").split()]
    corrections: dict[str, str] = {}
    unknown = []
    for word in _unknown_words(words, vocabulary, occurs) if vocabulary else ():
        correction = _correction(word, vocabulary)
        if correction is not None:
            corrections[word] = correction
        elif not _is_compound(word.lower(), vocabulary):
            unknown.append(word)
    foreign = _foreign_words(words, {*corrections, *unknown}, occurs) if vocabulary else []
    if foreign:
        lines, suggestion = _negation(text)
        return Hints((*lines, _unknown(foreign)), suggestion)
    corrected = re.sub(r"\w+", lambda match: corrections.get(match[0], match[0]), text)
    lines, suggestion = _negation(corrected)
    if corrections:
        question = f'did you mean "{corrected}"? {_unknown([*corrections, *unknown])}'
        return Hints((question, *lines), suggestion or Suggestion(corrected))
    return Hints((*lines, _unknown(unknown)) if _are_most(unknown, words) else lines, suggestion)


def _foreign_words(words: Sequence[str], unknown: AbstractSet[str], occurs: Callable[[str], bool]) -> list[str]:
    """Words of another language, if one of them is an article or the like; a single one may be in a name: la paz."""
    articles = {word for word in words if word.lower() in NOT_ENGLISH and not occurs(word)}
    foreign = [word for word in words if word in articles | unknown]
    return foreign if articles and len(foreign) > 1 else []


def _unknown_words(words: Sequence[str], vocabulary: Vocabulary, occurs: Callable[[str], bool]) -> Iterator[str]:
    """Words that the vocabulary does not have and no file has; short ones are left out."""
    for word in words:
        is_short = word.isascii() and len(word) < SHORTEST
        if word.isalpha() and not is_short and not _is_known(word.lower(), vocabulary) and not occurs(word):
            yield word


def _are_most(unknown: Sequence[str], words: Sequence[str]) -> bool:
    """Whether more than half of the words are unknown, or half of them if one has a letter that English lacks."""
    num_words = sum(word.isalpha() and not (word.isascii() and len(word) < SHORTEST - 1) for word in words)
    is_foreign = not all(word.isascii() for word in unknown)
    return 2 * len(unknown) + is_foreign > num_words


def _unknown(words: Sequence[str]) -> str:
    listed = " and ".join(f'"{word}"' for word in words)
    return f"the model may not know {listed}, and it may know only English"


def _is_known(word: str, vocabulary: Vocabulary) -> bool:
    """Whether a word is whole, or a whole one with an ending: donkeys."""
    return word in vocabulary or any(stem in vocabulary for stem in _stems(word))


def _stems(word: str) -> Iterator[str]:
    """Words to which one ending may have been added."""
    for ending in ENDINGS:
        stem = word.removesuffix(ending)
        if stem != word and len(stem) >= SHORTEST_STEM:
            yield f"{stem}e"
            if ending in ("s", "es", "ly") or not DOUBLES.fullmatch(stem):
                yield stem
            if stem[-1] == stem[-2]:
                yield stem[:-1]


def _is_compound(word: str, vocabulary: Vocabulary) -> bool:
    """Whether a word is two words, as streetlamp is."""
    ends = range(SHORTEST_STEM, len(word) - SHORTEST_STEM + 1)
    return any(_is_known(word[:end], vocabulary) and _is_known(word[end:], vocabulary) for end in ends)


def _correction(word: str, vocabulary: Vocabulary) -> str | None:
    """The most frequent whole word with the same first letter that is one letter away; None if there is none.

    A name, which has a capital, is not corrected.
    """
    if len(word) < SHORTEST_MISSPELT or word != word.lower():
        return None
    inflected = {word + ending for ending in (*ENDINGS, "r", "d")}
    near = []
    for candidate in _one_letter_away(word) - inflected:
        is_word = vocabulary.get(candidate, INSIDE) != INSIDE
        if is_word and candidate[0] == word[0] and not _is_beginning(candidate, vocabulary):
            near.append(candidate)
    return min(near, key=vocabulary.__getitem__, default=None)


def _one_letter_away(word: str) -> set[str]:
    """Words that differ by a letter that is left out, added or another, or by two that changed places."""
    near = set()
    for place in range(len(word) + 1):
        before = word[:place]
        after = word[place:]
        near.add(before + after[1:])
        near.add(before + after[1:2] + after[:1] + after[2:])
        for letter in ascii_lowercase:
            near.add(before + letter + after)
            near.add(before + letter + after[1:])
    return near - {word}


def _is_beginning(word: str, vocabulary: Vocabulary) -> bool:
    """Whether a token is only the beginning of longer words, as umbrel is of umbrella: it has no plural."""
    if f"{word}s" in vocabulary:
        return False
    return any(other.startswith(word) for other in vocabulary if other != word)


def _negation(text: str) -> Hints:
    """What to do in place of a negation; nothing if there is none."""
    match = NEGATION.search(text)
    if match is None:
        return Hints()
    kept = LOOSE_END.sub("", text[: match.start()])
    left_out = text[match.end() :].strip(" ,;.")
    if not left_out:
        return Hints()
    if not kept or len(left_out.split()) > MAX_UNWANTED:
        return Hints((CANNOT_NEGATE,))
    option = f'--text "{kept}" --without "{left_out}"'
    return Hints((f"the model cannot negate; use: {option}",), Suggestion(kept, left_out))
