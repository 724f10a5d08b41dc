"""Hints about the texts of a query: words that are misspelt or not English, and negations. Nothing is changed by them.

Models for search learn from English captions, and answer any text with confidence. `wordfreq` has how often a word is
used in each language; the list of `spellchecker` has rare English words too, which get no hints; `jellyfish` compares
how words are written and how they sound. They are in the extra "hints"; without them there are only hints about
negations. The thresholds were chosen on captions and class names of training sets, and measured on others
(docs/results/search.md).
"""

import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from spellchecker import SpellChecker

LANGUAGES = {
    "cs": "Czech",
    "da": "Danish",
    "de": "German",
    "es": "Spanish",
    "fi": "Finnish",
    "fr": "French",
    "hu": "Hungarian",
    "it": "Italian",
    "nb": "Norwegian",
    "nl": "Dutch",
    "pl": "Polish",
    "pt": "Portuguese",
    "ro": "Romanian",
    "sv": "Swedish",
    "tr": "Turkish",
}
"""Names of the languages that are recognised, by wordfreq's codes; others only by their script."""
UNKNOWN = 2.2
"""Zipf frequency (the decimal logarithm of the uses in a billion words) below which an English word may be a typo."""
LEAST_GAIN = 1.5
"""Minimum by which the Zipf frequency of a correction exceeds that of the typed word."""
SHORTEST = 4
"""Minimum characters of a word with one wrong letter."""
SHORTEST_FOR_TWO = 7
"""The same with two wrong letters."""
LIKE_ANOTHER = 6
"""Minimum characters of a foreign word that is taken for a misspelt English one, if it sounds like it."""
FOREIGN = 1.3
"""Minimum mean by which words are more frequent, in Zipf frequencies, in another language than in English."""
NAME = 2.0
"""Maximum Zipf frequency of a word that the list of a language lacks."""
USUAL = 3.2
"""Zipf frequency from which a single word is English, whatever else it is."""
ENGLISH = 4.5
"""Mean Zipf frequency from which several words are English, whatever else they are."""
PACKAGES = ("wordfreq", "spellchecker", "jellyfish")
MAX_CHARACTERS = 1000
MAX_UNWANTED = 3
"""Maximum number of words after a negation that are proposed to be left out; more are not all negated."""
MAX_UNKNOWN = 5
"""Maximum number of unknown words for which corrections are sought."""

WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")
NEGATION = re.compile(
    r"\b(?:(?:but|and|with)\s+(?:no|not|without)|not|without|\w+n['\u2019]t)\s+(?:any\s+)?", re.IGNORECASE
)
MARKS = ".,;:!?\"'()[]\u2018\u2019\u201c\u201d\u201e\u00ab\u00bb"
LOOSE_END = re.compile(r"(?:[\s,;.]|\b(?:but|and|that|which|who|is|are|was|were|do|does|with))+$", re.IGNORECASE)
"""What is left at the end of a text when its negation is cut off."""


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


def hints(texts: Sequence[str], occurs: Callable[[str], bool]) -> Hints:
    """Hints about the texts of a query.

    Args:
        texts: the texts.
        occurs: whether a word is in the name, caption, tags or text of a file that is searched; such a word is meant
            as it is. It is called for words that would get a hint.
    """
    results = [_hints_of_text(text, occurs) for text in texts if len(text) <= MAX_CHARACTERS]
    lines: list[str] = []
    for result in results:
        lines += result.lines
    suggestion = results[0].suggestion if len(results) == len(texts) == 1 else None
    return Hints(tuple(dict.fromkeys(lines)), suggestion)


def _hints_of_text(text: str, occurs: Callable[[str], bool]) -> Hints:
    words = list(_words(text))
    if _is_other_script(words):
        return _foreign("this is not in the Latin script", is_meant=all(map(occurs, words)))
    if not all(map(find_spec, PACKAGES)):
        return _negation(text)
    corrections = _corrections(words, occurs)
    language = _language(words, occurs)
    if language is not None and not _is_misspelt(words, corrections):
        return _foreign(f"this looks like {language}")
    if not corrections:
        return _negation(text)

    corrected = WORD.sub(lambda match: corrections.get(match[0], match[0]), text)
    question = f'did you mean "{corrected}"?'
    negation = _negation(corrected)
    return Hints((question, *negation.lines), negation.suggestion or Suggestion(corrected))


def _foreign(finding: str, is_meant: bool = False) -> Hints:
    if is_meant:
        return Hints()
    return Hints((f"{finding}, and the model may know only English: try English words",))


def _words(text: str) -> Iterator[str]:
    """The words of a text; pieces with digits, dots or underscores, such as names of files, are none."""
    for piece in text.split():
        word = piece.strip(MARKS)
        if WORD.fullmatch(word):
            yield word


def _is_other_script(words: Sequence[str]) -> bool:
    """Whether most letters are not Latin."""
    letters = "".join(words)
    num_latin = sum(unicodedata.name(letter, "").startswith("LATIN") for letter in letters)
    return num_latin < len(letters) / 2


def _negation(text: str) -> Hints:
    """What to do in place of a negation; nothing if there is none."""
    match = NEGATION.search(text)
    if match is None:
        return Hints()
    kept = LOOSE_END.sub("", text[: match.start()])
    left_out = text[match.end() :].strip(" ,;.")
    if not left_out:
        return Hints()
    if len(left_out.split()) > MAX_UNWANTED:
        return Hints(("the model cannot negate; name what to leave out with: --without WORDS",))
    if not kept:
        return Hints((f"the model cannot negate; leave something out with: --without {_quoted(left_out)}",))
    option = f"--text {_quoted(kept)} --without {_quoted(left_out)}"
    return Hints((f"the model cannot negate; use: {option}",), Suggestion(kept, left_out))


def _quoted(text: str) -> str:
    return f'"{text}"'


def _language(words: Sequence[str], occurs: Callable[[str], bool]) -> str | None:
    """The language in which words are far more frequent than in English; None if there is none, or if all words have a
    capital letter, as names do."""
    if not any(map(str.islower, words)):
        return None
    words = [word.lower() for word in words]
    if _are_english(words):
        return None
    words = [word for word in words if not occurs(word)]
    if _are_english(words):
        return None
    gain_by_language = {code: _mean_gain(words, code) for code in LANGUAGES}
    code = max(gain_by_language, key=lambda code: gain_by_language[code])
    return LANGUAGES[code] if gain_by_language[code] >= FOREIGN else None


def _mean_gain(words: Sequence[str], language: str) -> float:
    """Mean by which words are more frequent in a language than in English, in Zipf frequencies."""
    gain = 0.0
    for word in words:
        in_english = _zipf(word, "en", "large")
        in_language = _zipf(word, language, "small")
        if not in_language:  # as frequent as a name is in any language
            in_language = min(in_english, NAME)
        gain += in_language - in_english
    return gain / len(words)


def _are_english(words: Sequence[str]) -> bool:
    """Whether words in small letters are English, by the lists that are quick to read if they say so."""
    if not words:
        return True
    frequencies = [_zipf(word, "en", "small") for word in words]
    if sum(frequencies) / len(words) >= (USUAL if len(words) == 1 else ENGLISH):
        return True
    return all(map(_is_listed, words))


def _corrections(words: Sequence[str], occurs: Callable[[str], bool]) -> dict[str, str]:
    """Corrections of the words that are not English, by word; those with a capital letter are taken for names."""
    unknown = list(filter(_is_unknown, words))
    corrections = {}
    for word in unknown[:MAX_UNKNOWN]:
        is_meant = _zipf(word, "en", "large") >= UNKNOWN or occurs(word)
        correction = None if is_meant else _correction(word)
        if correction is not None:
            corrections[word] = correction
    return corrections


def _is_unknown(word: str) -> bool:
    """Whether a word in small letters is in no list of English words."""
    if not (word.islower() and word.isalpha() and len(word) >= SHORTEST):
        return False
    return not _zipf(word, "en", "small") and not _is_listed(word)


def _correction(word: str) -> str | None:
    """The usual English word that is most like a word; None if none is like it."""
    import jellyfish

    least_frequency = _zipf(word, "en", "large") + LEAST_GAIN
    sound = jellyfish.metaphone(word)
    best = None
    lowest_cost = math.inf
    for length in range(len(word) - 2, len(word) + 3):
        for candidate, frequency in _usual_words()[length]:
            distance = jellyfish.damerau_levenshtein_distance(word, candidate)
            if distance > 2 or frequency < least_frequency:
                continue
            same_sound = jellyfish.metaphone(candidate) == sound
            same_start = candidate[0] == word[0]
            is_similar = len(word) >= SHORTEST_FOR_TWO and (same_start or same_sound)
            if distance == 2 and not is_similar:
                continue
            cost = distance - same_sound - 0.5 * same_start - 0.3 * frequency
            if cost < lowest_cost:
                lowest_cost = cost
                best = candidate
    return best


def _is_misspelt(words: Sequence[str], corrections: Mapping[str, str]) -> bool:
    """Whether a single word of another language is rather an English one, which sounds like it, as elefant does."""
    import jellyfish

    if len(words) > 1 or not corrections:
        return False
    (word,) = words
    return len(word) >= LIKE_ANOTHER and jellyfish.metaphone(word) == jellyfish.metaphone(corrections[word])


def _zipf(
    word: str,
    language: str,
    size: str,
) -> float:
    """Decimal logarithm of how often a word is used in a billion words of a language; 0 if it is not in the list.

    Args:
        size: "small", the words of which there are more than 1,000 in a billion; or "large", more than 10. The large
            list takes long to read, so it is read only for words that the small one lacks.
    """
    import wordfreq

    frequency = wordfreq.get_frequency_dict(language, "small").get(word, 0.0)
    if not frequency and size == "large":
        frequency = wordfreq.get_frequency_dict(language, "large").get(word, 0.0)
    return math.log10(frequency * 1e9) if frequency else 0.0


def _is_listed(word: str) -> bool:
    """Whether a word is in a list of English words that also has rare ones."""
    return bool(_speller().known([word]))


@cache
def _speller() -> "SpellChecker":
    from spellchecker import SpellChecker

    return SpellChecker("en")


@cache
def _usual_words() -> defaultdict[int, list[tuple[str, float]]]:
    """The words of the small English list with their Zipf frequencies, by length."""
    import wordfreq

    words = defaultdict(list)
    for word, frequency in wordfreq.get_frequency_dict("en", "small").items():
        if word.isalpha():
            words[len(word)].append((word, math.log10(frequency * 1e9)))
    return words
