"""Normalisation of VQA answers (Antol et al., ICCV 2015).

The rules are those of visualqa.org/evaluation.html as its evaluation code applies them, including a known bug.
"""

import re

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
"""Without the full stop, which has a separate rule, and apostrophe and colon, which are kept (girl's, 2:50)."""
ARTICLES = frozenset({"a", "an", "the"})
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {"none": "0", **{word: str(number) for number, word in enumerate(NUMBERS)}}
WITH_APOSTROPHE = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""


def _contractions() -> dict[str, str]:
    """Words by their spelling with one apostrophe missing."""
    words = {}
    for word in WITH_APOSTROPHE.split():
        for position, letter in enumerate(word):
            if letter == "'":
                without = word[:position] + word[position + 1 :]
                words[without] = word
    words["somebody'd"] = "somebodyd"  # the bug: the two are swapped
    return words


CONTRACTIONS = _contractions()


def normalize_answer(answer: str) -> str:
    """Normalise an answer: lower case, numbers as digits, no articles and almost no punctuation."""
    text = " ".join(re.split("[\n\t]", answer)).strip()
    is_number = re.search(r"\d,\d", text) is not None  # 100,978
    replacements = {}
    for mark in PUNCTUATION:
        is_beside_space = f"{mark} " in text or f" {mark}" in text
        replacements[ord(mark)] = "" if is_number or is_beside_space else " "
    text = text.translate(replacements)
    text = re.sub(r"\.(?!\d)", "", text)
    words = []
    for word in text.lower().split():
        word = DIGITS.get(word, word)
        if word not in ARTICLES:
            words.append(CONTRACTIONS.get(word, word))
    return " ".join(words)
