"""Conditions on what is known of files, written as Python expressions and computed by SQLite.

    width >= 1000 and duration < 2*min and "beach" in path
    kind in ("image", "video") and not date < "2024-05" or metadata.year == 2020 and caption is None

Python's own parser reads them; names are fields, units are constants, anything else is refused with its column. A text
of the user's never becomes SQL. A field that a file does not have is None, and no comparison finds it.
"""

import ast
import os
import re
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from onepeace.errors import UsageError, one_line

KINDS = {
    "image": ("image", "images", "picture", "pictures", "photo", "photos"),
    "audio": ("audio", "audios", "sound", "sounds"),
    "text": ("text", "texts"),
    "video": ("video", "videos"),
}
"""Kinds of files, each with the words that mean it."""
UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "s": 1.0, "min": 60.0, "h": 3600.0}
NUMBERS = ("size", "width", "height", "duration")
DATES = {"date": "date", "mtime": "mtime_ns / 1e9"}
TEXTS = ("path", "caption")
FIELDS = (*NUMBERS, *DATES, *TEXTS, "kind", "metadata")
PERIODS: dict[str, tuple[timedelta, dict[str, Any]]] = {
    "%Y": (timedelta(366), {"month": 1, "day": 1}),
    "%Y-%m": (timedelta(31), {"day": 1}),
    "%Y-%m-%d": (timedelta(1), {}),
    "%Y-%m-%dT%H:%M": (timedelta(minutes=1), {}),
}
"""Dates as people write them -> what leads from the start of one into the next, and to its start."""
MAX_LENGTH = 10_000
"""Characters of a condition."""
_COMPARISONS = {ast.Lt: "<", ast.LtE: "<=", ast.Eq: "=", ast.NotEq: "!=", ast.GtE: ">=", ast.Gt: ">"}
_TURNED = {"<": ">", "<=": ">=", "=": "=", "!=": "!=", ">=": "<=", ">": "<"}
_ARITHMETIC = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
}


@dataclass(frozen=True)
class Condition:
    """SQL over the table `files`, with "?" for its parameters."""

    sql: str
    params: tuple[Any, ...] = ()


def kind_of(name: str) -> str:
    """Kind of file that a word means: image, audio, text or video.

    Raises:
        UsageError: it means none; with the nearest word.
    """
    words = {word: kind for kind, names in KINDS.items() for word in names}
    if name.lower() in words:
        return words[name.lower()]
    near = get_close_matches(name.lower(), words, 1)
    hint = f"; did you mean {near[0]}?" if near else f"; it can be {', '.join(KINDS)}"
    raise UsageError(f"{name!r} is no kind of file{hint}")


def short_forms(
    where: str | None = None, after: str | None = None, before: str | None = None, path: str | None = None
) -> str | None:
    """One condition of the options that are short forms of it: dates from and up to, a pattern of paths.

    Raises:
        UsageError: a date that cannot be read.
    """
    parts = [] if where is None else [f"({where}\n)"]
    for option, value, sign in (("after", after, ">="), ("before", before, "<")):
        if value is not None:
            try:
                period(value)
            except ValueError as error:
                raise UsageError(f"--{option}: {error}") from error
            parts.append(f"date {sign} {value!r}")
    if path is not None:
        parts.append(f"path.match({path!r})")
    if where is not None:
        compile_condition(where)  # an error names a column of what was written
    return " and ".join(parts) or None


def period(text: str) -> tuple[float, float]:
    """Start of a year, month, day or minute of local time in unix seconds, and the first moment after it.

    Raises:
        ValueError: not a date, or one that the clock of this system cannot tell.
    """
    for layout, (step, first) in PERIODS.items():
        with suppress(ValueError, OverflowError, OSError):  # systems differ in how they say so
            start = datetime.strptime(text, layout)
            return start.timestamp(), (start + step).replace(**first).timestamp()
    raise ValueError(f"{text[:40]!r} is not a date; write 2024, 2024-05, 2024-05-01 or 2024-05-01T12:30")


@lru_cache(64)
def compile_condition(where: str) -> Condition:
    """Condition of an expression; `register` makes the functions that it calls known to a connection.

    Raises:
        UsageError: not an expression, or a name, a value or an operator that is not known, with its column.
    """
    if len(where) > MAX_LENGTH:
        raise UsageError(f"--where: a condition has at most {MAX_LENGTH:,} characters, not {len(where):,}")
    try:
        tree = ast.parse(where.strip(), mode="eval").body
        return _Compiler().visit(tree)
    except SyntaxError as error:
        hint = "; equal is ==" if re.search(r"[^<>=!]=[^=]", where) else ""
        raise UsageError(f"--where: {where.strip()!r}: {error.msg} at column {error.offset or 1}{hint}") from None
    except (RecursionError, MemoryError, ValueError) as error:
        raise UsageError(f"--where: cannot be read ({one_line(error)})") from None


def register(connection: sqlite3.Connection, roots: Iterable[str] = ()) -> None:
    """Make the functions of conditions known to a connection.

    Args:
        roots: folders that were indexed; patterns fit paths below them, and whole paths.
    """
    folders = sorted((root.rstrip(os.sep) + os.sep for root in roots), key=len, reverse=True)

    def fits(path: bytes, pattern: str) -> bool:
        name, match = os.fsdecode(path), _pattern(pattern)
        below = (name[len(folder) :] for folder in folders if name.startswith(folder))
        return any(match(place.replace(os.sep, "/")) for place in (*below, name.lstrip(os.sep)))

    def contains(text: str | bytes | None, part: str) -> bool | None:
        if text is None:
            return None
        return part.casefold() in (os.fsdecode(text) if isinstance(text, bytes) else text).casefold()

    connection.create_function("path_fits", 2, fits, deterministic=True)
    connection.create_function("contains", 2, contains, deterministic=True)


@lru_cache(64)
def _pattern(pattern: str) -> Callable[[str], object]:
    from pathspec import GitIgnoreSpec

    (compiled,) = GitIgnoreSpec.from_lines([pattern]).patterns
    return compiled.regex.match  # type: ignore[union-attr]


class _Compiler:
    """Turns the nodes of an expression into conditions."""

    def visit(self, node: ast.expr) -> Condition:
        if isinstance(node, ast.BoolOp):
            word = " AND " if isinstance(node.op, ast.And) else " OR "
            parts = [self.visit(value) for value in node.values]
            sql = word.join(f"({part.sql})" for part in parts)
            return Condition(sql, tuple(value for part in parts for value in part.params))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            part = self.visit(node.operand)
            return Condition(f"NOT ({part.sql})", part.params)
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            parts = [self._compared(a, op, b) for a, op, b in zip(sides, node.ops, sides[1:], strict=False)]
            params = tuple(value for part in parts for value in part.params)
            return Condition(" AND ".join(f"({part.sql})" for part in parts), params)
        if isinstance(node, ast.Call):
            return self._match(node)
        raise _error(node, "is no condition; compare a field with a value, as in width >= 1000")

    def _match(self, node: ast.Call) -> Condition:
        called = ast.unparse(node.func)
        if called != "path.match" or node.keywords or len(node.args) != 1:
            raise _error(node, "is not known; a pattern is path.match('*.jpg')")
        pattern = self._value(node.args[0])
        try:
            _pattern(pattern)
        except (ValueError, TypeError, AttributeError) as error:
            raise _error(node, f"has no pattern that can be read ({one_line(error)})") from error
        return Condition("path_fits(path, ?)", (pattern,))

    def _compared(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Condition:
        if isinstance(op, (ast.In, ast.NotIn)):
            found = self._in(left, right)
            return Condition(f"NOT ({found.sql})", found.params) if isinstance(op, ast.NotIn) else found
        if isinstance(op, (ast.Is, ast.IsNot)) and _is_none(right):
            sql, params, _ = self._field(left)
            return Condition(f"{sql} IS {'NOT ' if isinstance(op, ast.IsNot) else ''}NULL", params)
        sign = _COMPARISONS.get(type(op))
        if sign is None:
            raise _error(left, "is compared in a way that is not known")
        if not _is_field(left):
            left, right, sign = right, left, _TURNED[sign]
        if _is_none(right):
            raise _error(right, "is compared with `is` and `is not`")
        return self._comparison(left, sign, self._value(right), right)

    def _comparison(self, left: ast.expr, sign: str, value: Any, right: ast.expr) -> Condition:
        sql, params, kind = self._field(left)
        if kind == "date":
            try:
                start, end = (value, value) if isinstance(value, (int, float)) else period(value)
            except (ValueError, TypeError) as error:
                raise _error(right, f"is no date ({error})") from error
            if sign in ("=", "!="):
                inside = f"{sql} >= ? AND {sql} < ?" if end > start else f"{sql} BETWEEN ? AND ?"
                return Condition(inside if sign == "=" else f"NOT ({inside})", (start, end))
            return Condition(f"{sql} {'<' if sign in ('<', '<=') else '>='} ?",
                             (start if sign in ("<", ">=") else end,))  # fmt: skip
        if kind == "kind":
            return Condition(f"{sql} {sign} ?", (self._kind(value, right),))
        if kind == "number" and not isinstance(value, (int, float)):
            raise _error(right, f"is no number, and {ast.unparse(left)} is one")
        if kind == "text" and not isinstance(value, str):
            raise _error(right, f"is no text, and {ast.unparse(left)} is one")
        if ast.unparse(left) == "path":
            value = os.fsencode(value)
        return Condition(f"{sql} {sign} ?", (*params, value))

    def _in(self, left: ast.expr, right: ast.expr) -> Condition:
        if isinstance(right, (ast.Tuple, ast.List, ast.Set)):  # field in (a, b)
            parts = [self._comparison(left, "=", self._value(one), one) for one in right.elts]
            params = tuple(value for part in parts for value in part.params)
            return Condition(" OR ".join(f"({part.sql})" for part in parts) or "0", params)
        sql, params, kind = self._field(right)  # "text" in field
        value = self._value(left)
        if kind not in ("text", "any") or not isinstance(value, str):
            raise _error(right, "contains no text; `in` is for path, caption, metadata and lists")
        return Condition(f"contains({sql}, ?)", (*params, value))

    def _field(self, node: ast.expr) -> tuple[str, tuple[Any, ...], str]:
        """SQL, parameters and kind of value of a field."""
        if isinstance(node, ast.Name):
            if node.id in NUMBERS:
                return node.id, (), "number"
            if node.id in DATES:
                return DATES[node.id], (), "date"
            if node.id in TEXTS:
                return node.id, (), "text"
            if node.id == "kind":
                return "modality", (), "kind"
        if isinstance(node, ast.Attribute) and _is_metadata(node.value):
            return "json_extract(metadata, ?)", (_json_path(node.attr),), "any"
        if isinstance(node, ast.Subscript) and _is_metadata(node.value):
            return "json_extract(metadata, ?)", (_json_path(self._value(node.slice)),), "any"
        name = node.id if isinstance(node, ast.Name) else ast.unparse(node)
        near = get_close_matches(name, FIELDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"fields are {', '.join(FIELDS[:-1])}, metadata.NAME"
        raise _error(node, f"is no field; {hint}")

    def _value(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Constant) and isinstance(node.value, (int, float, str)):
            if isinstance(node.value, (int, float)) and abs(node.value) > 2**62:
                raise _error(node, "is too large")
            return node.value
        if isinstance(node, ast.Name) and node.id in UNITS:
            return UNITS[node.id]
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -self._number(node.operand)
        if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            a, b = self._number(node.left), self._number(node.right)
            try:
                return _ARITHMETIC[type(node.op)](a, b)
            except ArithmeticError as error:
                raise _error(node, f"cannot be computed ({one_line(error)})") from error
        raise _error(node, "is no value; write a number, a number times a unit (2*min), or a text in quotes")

    def _number(self, node: ast.expr) -> float:
        value = self._value(node)
        if not isinstance(value, (int, float)):
            raise _error(node, "is no number")
        return value

    def _kind(self, value: Any, node: ast.expr) -> str:
        try:
            return kind_of(value)
        except (UsageError, AttributeError) as error:
            raise _error(node, f"is no kind of file ({one_line(error)})") from error


def _is_field(node: ast.expr) -> bool:
    return isinstance(node, (ast.Attribute, ast.Subscript)) or (isinstance(node, ast.Name) and node.id not in UNITS)


def _is_metadata(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "metadata"


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _json_path(name: Any) -> str:
    escaped = str(name).replace("\\", "\\\\").replace('"', '\\"')
    return f'$."{escaped}"'


def _error(node: ast.expr, what: str) -> UsageError:
    return UsageError(f"--where: {ast.unparse(node)!r} at column {node.col_offset + 1} {what}")
