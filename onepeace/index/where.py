"""Conditions on the stored fields of files, as people write them, to SQL in which nothing of their text occurs.

    duration < 5 and width >= 1000 or not (caption ~ 'dog')

    condition  = conjunction {"or" conjunction}
    conjunction = term {"and" term}
    term       = "not" term | "(" condition ")" | comparison
    comparison = field ("<" | "<=" | "=" | "!=" | ">=" | ">" | "~") value
               | field ["not"] "in" "(" value {"," value} ")"
               | field "is" ["not"] "null"
    field      = size | mtime | date | width | height | duration | modality | path | caption | metadata.NAME

Words are read in any case, but for the NAMEs of metadata; metadata.camera.model is a field of a field, and
metadata."taken by" a name that is no word. A value is

- for width and height a number; for size one with or without B, kB, MB or GB (powers of 1000); for duration, which is
  in seconds, one with or without s, min or h;
- for date and mtime 2024, 2024-05, 2024-05-01 or 2024-05-01T12:30:05, in local time without an offset of its own. It
  is a period: = is within it, < before its start, > from its end on, <= and >= include it;
- for modality, path and caption a text in single or double quotes, which are doubled inside (''). ~ is "contains",
  whether letters are capital or not; all else is exact. A path is the whole path;
- for metadata a number or a text, which is compared with what is stored as a number or as a text: 7 finds "7" too.

What a file does not have is null, and a comparison with it is never true, nor is its opposite, as in SQL: neither
`caption ~ 'dog'` nor `not caption ~ 'dog'` finds a file without caption; `caption is null` does.
"""

import difflib
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn

from onepeace.errors import UsageError
from onepeace.index.period import EXAMPLES, period

MAX_LENGTH = 4000
"""Characters of a condition; SQLite bounds the patterns and expressions that they become."""
MAX_DEPTH = 50
"""Parentheses and nots inside each other."""
COMPARISONS = ("<", "<=", "=", "!=", ">=", ">")
RESERVED = ("and", "or", "not", "in", "is", "null")
BYTES = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}
SECONDS = {"s": 1, "min": 60, "h": 3600}

Parameter = float | str | bytes
Value = float | str | tuple[float, float]
"""A number, a text, or start and end of a date."""


@dataclass(frozen=True)
class Condition:
    """An SQL expression over the table `files`, and the values of its question marks in their order."""

    sql: str
    params: tuple[Parameter, ...] = ()


@dataclass(frozen=True)
class Field:
    """What can be asked about."""

    column: str
    """The SQL expression that gives it."""
    kind: str
    """number, date, text, path (bytes in the table), or metadata, where numbers and texts occur."""
    params: tuple[str, ...] = ()
    """Of `column`."""
    units: Mapping[str, float] = field(default_factory=dict)
    """Factors of the units of a number."""
    scale: float = 1.0
    """What the column counts in a second, for a date."""
    values: tuple[str, ...] = ()
    """All the texts there are, where these are known."""


FIELDS = {
    "size": Field("files.size", "number", units=BYTES),
    "mtime": Field("files.mtime_ns", "date", scale=1e9),
    "date": Field("files.date", "date"),
    "width": Field("files.width", "number"),
    "height": Field("files.height", "number"),
    "duration": Field("files.duration", "number", units=SECONDS),
    "modality": Field("files.modality", "text", values=("image", "audio", "text", "video")),
    "path": Field("files.path", "path"),
    "caption": Field("files.caption", "text"),
}


def parse(text: str) -> Condition:
    """The SQL of a condition, whose grammar is above.

    Raises:
        UsageError: one line with the position, counted from 1, and what was expected there.
    """
    if len(text) > MAX_LENGTH:
        raise UsageError(f"where: the condition has {len(text):,} characters; at most {MAX_LENGTH:,} are read")
    if wrong := re.search("[\0\ud800-\udfff]", text):
        raise UsageError(f"where, position {wrong.start() + 1}: {wrong[0]!r} is part of no text")
    parser = _Parser(text)
    condition = parser.condition()
    if parser.token.kind != "end":
        parser.fail("and, or or the end")
    return condition


def after(date: str) -> Condition:
    """Files whose date is not before the start of a date as `period` reads it."""
    return Condition("files.date >= ?", (_start(date, "after"),))


def before(date: str) -> Condition:
    """Files whose date is before the start of a date: before 2024 is none of 2024."""
    return Condition("files.date < ?", (_start(date, "before"),))


def joined(operator: str, conditions: Sequence[Condition]) -> Condition:
    """One or more conditions with AND or OR between them, paired again and again: SQLite bounds how deep they nest."""
    if len(conditions) == 1:
        return conditions[0]
    middle = len(conditions) // 2
    left, right = joined(operator, conditions[:middle]), joined(operator, conditions[middle:])
    return Condition(f"({left.sql} {operator} {right.sql})", left.params + right.params)


class _Token(NamedTuple):
    kind: str
    text: str
    at: int


_TOKEN = re.compile(
    r"""\s*(?:
    (?P<date>[0-9]+-[0-9][\w:.+-]*)
    | (?P<number>[+-]?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)
    | (?P<text>'(?:[^']|'')*' | "(?:[^"]|"")*")
    | (?P<word>[^\W\d]\w*(?:\.(?:[\w-]+|"[^"\\]+"))*)
    | (?P<sign><=|>=|!=|[<>=~(),])
    | (?P<end>\Z)
    | (?P<wrong>.)
    )""",
    re.VERBOSE | re.DOTALL,
)


class _Parser:
    """Recursive descent; `token` is the one to be read next."""

    def __init__(self, text: str) -> None:
        matches = ((str(match.lastgroup), match) for match in _TOKEN.finditer(text))
        self._tokens = iter([_Token(kind, match[kind], match.start(kind)) for kind, match in matches])
        self._depth = 0
        self.token = next(self._tokens)

    def fail(self, expected: str) -> NoReturn:
        found = "the end" if self.token.kind == "end" else repr(self.token.text[:40])
        if self.token.kind == "wrong" and self.token.text in "'\"":
            found = f"{found} without another one"
        raise UsageError(f"where, position {self.token.at + 1}: expected {expected}, found {found}")

    def condition(self) -> Condition:
        parts = [self._conjunction()]
        while self._takes("or"):
            parts.append(self._conjunction())
        return joined("OR", parts)

    def _conjunction(self) -> Condition:
        parts = [self._term()]
        while self._takes("and"):
            parts.append(self._term())
        return joined("AND", parts)

    def _term(self) -> Condition:
        if not (self._sees("not") or self._sees("(")):
            return self._comparison()
        if self._depth == MAX_DEPTH:
            self.fail(f"at most {MAX_DEPTH} parentheses and nots inside each other")
        self._depth += 1
        if self._takes("not"):
            result = _opposite(self._term())
        else:
            self._expect("(")
            result = self.condition()
            self._expect(")", "and, or or )")
        self._depth -= 1
        return result

    def _comparison(self) -> Condition:
        name = self.token.text
        asked = self._field()
        if self._takes("is"):
            operator = "IS NOT NULL" if self._takes("not") else "IS NULL"
            self._expect("null", "null" if operator == "IS NOT NULL" else "null or not null")
            return Condition(f"{asked.column} {operator}", asked.params)
        opposite = self._takes("not")
        if self._takes("in"):
            self._expect("(")
            values = [self._value(name, asked)]
            while self._takes(","):
                values.append(self._value(name, asked))
            self._expect(")", ", or )")
            found = joined("OR", [_compared(asked, "=", value) for value in values])
            return _opposite(found) if opposite else found
        operators = (*COMPARISONS, *(() if asked.kind in ("number", "date") else ("~",)))
        if opposite or self.token.text not in operators:
            self.fail("in" if opposite else f"{' '.join(operators)} in, not in or is")
        return _compared(asked, self._take().text, self._value(name, asked))

    def _field(self) -> Field:
        name = self.token.text.lower()
        if self.token.kind != "word" or name in RESERVED:
            self.fail("a field")
        if name.startswith("metadata."):
            keys = re.findall(r'\.(?:"([^"]+)"|([\w-]+))', self._take().text)
            path = "$" + "".join(f'."{quoted or plain}"' for quoted, plain in keys)
            return Field("json_extract(files.metadata, ?)", "metadata", (path,))
        if name not in FIELDS:
            known = [*FIELDS, "metadata.NAME"]
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise UsageError(f"where, position {self.token.at + 1}: no field {self.token.text[:40]!r}; {hint}")
        self._take()
        return FIELDS[name]

    def _value(self, name: str, asked: Field) -> Value:
        if asked.kind == "date":
            return self._date()
        if self.token.kind == "number" and asked.kind in ("number", "metadata"):
            return self._number(name, asked)
        if self.token.kind != "text" or asked.kind == "number":
            self.fail(
                {"number": "a number", "metadata": "a number or a text in quotes"}.get(asked.kind, "a text in quotes")
            )
        value = self._unquoted()
        if asked.values and value not in asked.values:
            self.fail(" or ".join(map(repr, asked.values)))
        self._take()
        return value

    def _number(self, name: str, asked: Field) -> float:
        value = float(self._take().text)
        if self.token.kind != "word" or self._sees("and") or self._sees("or"):
            return value
        factors = [factor for unit, factor in asked.units.items() if unit.lower() == self.token.text.lower()]
        if not factors:
            self.fail(f"{name} in {', '.join(asked.units)}" if asked.units else f"a number without unit for {name}")
        self._take()
        return round(value * factors[0], 6)  # 1.1 kB are 1100 bytes, not a little more

    def _date(self) -> tuple[float, float]:
        if self.token.kind not in ("date", "number", "text"):
            self.fail(f"a date: {EXAMPLES}")
        try:
            dates = period(self._unquoted() if self.token.kind == "text" else self.token.text)
        except ValueError as error:
            raise UsageError(f"where, position {self.token.at + 1}: {error}") from error
        self._take()
        return dates

    def _unquoted(self) -> str:
        quote = self.token.text[0]
        return self.token.text[1:-1].replace(2 * quote, quote)

    def _sees(self, word: str) -> bool:
        return self.token.kind in ("word", "sign") and self.token.text.lower() == word

    def _takes(self, word: str) -> bool:
        return self._sees(word) and bool(self._take())

    def _take(self) -> _Token:
        token = self.token
        self.token = next(self._tokens)
        return token

    def _expect(self, word: str, expected: str | None = None) -> None:
        if not self._takes(word):
            self.fail(expected or word)


def _compared(asked: Field, operator: str, value: Value) -> Condition:
    column, params = asked.column, asked.params
    if isinstance(value, tuple):
        start, end = (edge * asked.scale for edge in value)
        if operator in ("=", "!="):
            inside = Condition(f"({column} >= ? AND {column} < ?)", (start, end))
            return inside if operator == "=" else _opposite(inside)
        return Condition(
            f"{column} {'<' if operator.startswith('<') else '>='} ?", (start if operator in ("<", ">=") else end,)
        )
    if operator == "~":
        test, pattern = _contains(str(value))
        return Condition(f"CAST({column} AS TEXT) {test}", (*params, pattern))
    if asked.kind == "path":
        return Condition(f"{column} {operator} ?", (os.fsencode(str(value)),))
    if asked.kind != "metadata":
        return Condition(f"{column} {operator} ?", (value,))
    if isinstance(value, str):
        return Condition(f"CAST({column} AS TEXT) {operator} ?", (*params, value))
    # Beside a REAL, SQLite takes a text that looks like a number for one. All other texts are above every number.
    real = "CAST(? AS REAL)"
    sql = f"(CASE WHEN {column} <= {real} THEN {column} {operator} {real} END)"
    return Condition(sql, (*params, math.inf, *params, value))


def _contains(text: str) -> tuple[str, str]:
    """The operator for a text somewhere inside, in capital letters or small ones, and its pattern.

    LIKE is five times as fast, but takes only ASCII letters for what they are.
    """
    if text.isascii():
        return "LIKE ? ESCAPE '!'", "%" + re.sub("([%_!])", r"!\1", text) + "%"
    return "GLOB ?", "*" + "".join(map(_either_case, text)) + "*"


def _either_case(letter: str) -> str:
    forms = {letter, letter.lower(), letter.upper(), letter.casefold()}
    single = sorted(form for form in forms if len(form) == 1)
    return f"[{''.join(single)}]" if len(single) > 1 or letter in "*?[" else letter


def _opposite(condition: Condition) -> Condition:
    return Condition(f"(NOT {condition.sql})", condition.params)


def _start(date: str, option: str) -> float:
    try:
        return period(date)[0]
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from error
