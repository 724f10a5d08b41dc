"""Tokenizer of the caption metrics: a reimplementation of that of coco-caption, without Java.

coco-caption runs the PTBTokenizer of Stanford CoreNLP 3.4.1 with -preserveLines and -lowerCase and removes a list of
punctuation. These rules were derived from the output of that program, not from its source. They give the same words for
each of 55,857 different captions of photographs, drawings, sounds and goods (Flickr8k, COCO and others), and differ for

- telephone numbers with brackets, "(555) 555-1234", and mark-up with more than a name: one token there;
- versions and addresses, "4.x" and "fb.com/name", rare smileys, "^_^", and character references by number, "&#39;";
- combining marks: letters written as two code points, and the scripts that have them;
- an opening quote or a backtick instead of an apostrophe, and an apostrophe before a letter with an accent;
- rules that look ahead to the next line: Java reads all captions as one text.

Of 10,000 one-line descriptions of software, which were not used to derive the rules, 0.2 % differ.
"""

import re

REMOVED = frozenset("'' ' `` ` -LRB- -RRB- -LCB- -RCB- . ? ! , : - -- ... ;".split())
"""Punctuation that coco-caption removes. Brackets are lower-case by then, so "-lrb-" remains as a word."""

CHAR = r"[^\W_¹²³¼-¾⁰-₉⅐-⅟]"
"""A letter or a digit."""
LETTER = rf"(?!\d){CHAR}"
END = rf"(?!{CHAR})"
APOS = r"['\u2019]"
WORD = rf"(?:\d+(?:[.,]\d+)+{END}|{CHAR}+)(?:[-\u2010\u2011_]{CHAR}+)*"
SLASH = "[a-z0-9]+(?:-[a-z]+)*"

ABBREVIATIONS = (
    "adj adm adv al ala alex apr ariz assn assoc asst atty attys aug ave bancorp bhd bldg blvd brig bros calif capt "
    "cf cie cmdr co col colo comdr conn corp cos cpl ct dak dec dept det dr drs elec ens esq est etc ext feb fla fri "
    "ft ga gen gov govs hon inc ind intl invt jan jos jr jul jun kan kans ky lieut lt ltd maj mar md messrs mfg mich "
    "minn mlle mme mo mon mont mr mrs ms msgr mt mtg natl neb nev nov oct okla penn pfc ph plc pres prof profs pte "
    "pty pvt rd rep reps rev rt sen sens sep sept seq sfc sgt spc sq sr st ste supt sys tel tenn thu thurs treas tue "
    "univ va vs vt wed wis wisc wm wyo"
)
CAPITALISED = "Ark Az Del Ill La Mass Miss Ore Pa Tex Wash"
BEFORE_NUMBERS = "art ca fig figs no nos op pp prop"
STARTS = (
    "A About After An As At But He Her Here However If In It Last Many More Mr. Ms. Now Once One Other Our She Since "
    "So Some Such That The Their Then There These They This We What When While Yet You"
)
"""Words that begin a sentence: a single letter before one ends the previous sentence and is not an initial."""


def _any(words: str) -> str:
    return f"(?:{'|'.join(map(re.escape, words.split()))})"


CASELESS = [
    # Words and numbers. Two sentences without a space between them count as an address, like "www.dog".
    rf"{WORD}(?:\.(?=[,;:]))?",
    rf"{SLASH}(?:/{SLASH}){{1,2}}",
    rf"{LETTER}{CHAR}*(?:[.!?]{LETTER}{CHAR}*)+(?:-[a-z]+)*",
    r"[-+]?[.,:]?\d+(?:[.,:]\d+)*(?:\.(?=[,;:]))?",
    r"\d+[ \xa0]\d+/\d+",
    # Contractions
    rf"((?:{LETTER})+)(n{APOS}t){END}",
    rf"{APOS}(?:(?:s|m|d|ll|re|ve|em|till?|cause){END}|n{APOS}|n{END}|\d\ds{END}|\d\d(?![\"”'\u2019\w]))",
    rf"'t(?:is|was){END}",
    rf"(?:[cdlno]|[a-z]+[aeiouy](?={APOS}[aeiou])){APOS}[a-z]+(?:-[a-z]+)*{END}|(?:cap{APOS}n|e{APOS}er|ol{APOS}){END}",
    rf"[djl]{APOS}|y{APOS}(?={CHAR})",
    # Abbreviations
    rf"(?:[a-z]\.){{2,}}(?:-{WORD})?|[a-z]\.(?!\s+(?-i:{_any(STARTS)})\s)(?:-{WORD})?",
    rf"ph\.d\.|{_any(ABBREVIATIONS)}\.(?:-{WORD})?",
    rf"{_any(BEFORE_NUMBERS)}\.(?= ?\d)",
    r"c\+\+|[cf]#",
    # Addresses, tags and smileys
    r"https?://[^\s.<>\"()]+\.[^\s<>\"()]*[^\s<>\"().,;:!?']|www\.[\w.-]*\w|[\w.+-]+@[\w.-]*\w",
    r"@[a-z_]\w*|#[a-z]+|</?[a-z]\w*/?>",
    rf">?[:;=](?:-|['o](?=[()]))?(?:[()[\]{{|\\]|[dp]{END})",
    # Runs that are one token, and any other character
    r"[!?]+|''|``|\.{3,}|--+|\*+|_+|##+|>>|<<|@@|&(?:amp|lt|gt|quot|apos|nbsp);",
    r"\S",
]
CASED = [rf"{_any(CAPITALISED)}\.", rf"{_any(CAPITALISED.upper())}\.", r"[A-Z]+(?:[&+][A-Z]+)+", r"[A-Z]{1,2}\$"]
RULES = [
    *(re.compile(rule, re.IGNORECASE) for rule in CASELESS),
    *map(re.compile, CASED),
]
"""The longest match at a position is a token, or one token per group if it has groups."""

PLAIN = re.compile(r"[A-Za-z]+(?!\S)")
"""A word that only the first rule can match; most words are of this kind, and this test is fast."""

SPLIT = {
    "cannot": ("can", "not"),
    "gonna": ("gon", "na"),
    "wanna": ("wan", "na"),
    "gotta": ("got", "ta"),
    "lemme": ("lem", "me"),
    "gimme": ("gim", "me"),
    "'tis": ("'t", "is"),
    "'twas": ("'t", "was"),
}
"""Words that are two tokens."""

WRITTEN = {
    "(": "-lrb-",
    ")": "-rrb-",
    "[": "-lsb-",
    "]": "-rsb-",
    "{": "-lcb-",
    "}": "-rcb-",
    "½": "1/2",
    "¼": "1/4",
    "¾": "3/4",
    "⅓": "1/3",
    "⅔": "2/3",
    "€": "$",
    "¤": "$",
    "£": "#",
    "¢": "cents",
    "&amp;": "&",
    "&lt;": "<",
    "&gt;": ">",
    "\u2019s": "'s",
    "\u2019m": "'m",
    "\u2019d": "'d",
    "\u2019ll": "'ll",
    "\u2019re": "'re",
    "\u2019ve": "'ve",
}
"""Tokens and their replacements in the output."""

SILENT = re.compile(r"--+|\.{3,}|[\u2012-\u2015\u2018\u2019\u201b…\"“”«»\u2039\u203a]|&(?:quot|apos|nbsp);")
"""Tokens that would be replaced by one of REMOVED."""

LOST = re.compile("[\ufe0f\u200b\u200d\u2012\u2025\u20a0-\u20ab\u20ad-\u20cf\U00010000-\U0010ffff]")
"""Characters that end a word and are dropped: rare currency signs, and all of the higher planes (emoji)."""


def ptb_words(text: str) -> list[str]:
    """The lower-case words of a caption, without punctuation, as coco-caption counts them.

    >>> ptb_words("The dog's owner can't (yet) throw it.")
    ['the', 'dog', "'s", 'owner', 'ca', "n't", '-lrb-', 'yet', '-rrb-', 'throw', 'it']
    """
    text = LOST.sub(" ", text.replace("\xad", ""))
    words: list[str] = []
    position = 0
    while position < len(text):
        if text[position].isspace():
            position += 1
            continue
        match = PLAIN.match(text, position) or _longest_match(text, position)
        position = match.end()
        words += _words_of(match)
    return words


def _longest_match(text: str, position: int) -> re.Match[str]:
    """The longest match of all rules, the first of equally long ones; the last rule matches any character."""
    matches = [rule.match(text, position) for rule in RULES]
    return max(filter(None, matches), key=re.Match.end)


def _words_of(match: re.Match[str]) -> tuple[str, ...]:
    """The words that one match stands for."""
    if match.lastindex:
        # A negation: "can't" is ("ca", "n't").
        negation = match[2].lower().replace("\u2019", "'")
        return match[1].lower(), negation
    token = match[0].lower()
    if token in SPLIT:
        return SPLIT[token]
    return _written(token)


def _written(token: str) -> tuple[str, ...]:
    """The token as the Java program writes it; empty if that is removed punctuation."""
    if token in REMOVED or SILENT.fullmatch(token):
        return ()
    if len(token) > 1 and token[0] in ":;=>":
        return (token.replace("(", "-lrb-").replace(")", "-rrb-"),)
    return (WRITTEN.get(token, token.replace(" ", "\xa0")),)
