"""Conditions on file metadata, written as Python expressions and evaluated by SQLite.

    width >= 1000 and duration < 2*min and "beach" in path
    kind in ("image", "video") and not date < "2024-05" or metadata.year == 2020 and caption is None
    camera = "X100V" and keyword = "beach" and near(48.1, 11.6, 20*km)

Conditions are parsed with Python's ast: names are fields, units are constants, and anything else is an error with its
column. No user text becomes SQL. A field that a file lacks is None (NULL) and satisfies no comparison.
"""

import ast
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, NamedTuple

from onepeace.errors import UsageError, UserError, one_line
from onepeace.index.functions import compile_globs

KINDS = {
    **dict.fromkeys(("image", "images", "picture", "pictures", "photo", "photos"), "image"),
    **dict.fromkeys(("audio", "audios", "sound", "sounds"), "audio"),
    **{"text": "text", "texts": "text", "video": "video", "videos": "video"},
}
"""Kind of file by name, with synonyms."""
LENGTHS = {"km": 1e3, "m": 1.0}
"""Units of the radius of near(...)."""
UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "s": 1.0, "min": 60.0, "h": 3600.0}
PERIODS: dict[str, tuple[timedelta, dict[str, Any]]] = {
    "%Y": (timedelta(366), {"month": 1, "day": 1}),
    "%Y-%m": (timedelta(31), {"day": 1}),
    "%Y-%m-%d": (timedelta(1), {}),
    "%Y-%m-%dT%H:%M": (timedelta(minutes=1), {}),
}
"""Formats of dates -> step from the start of a period into the next, and fields to reset to reach its start."""
STRING_OR_EQUALS = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|(?<![=<>!])=(?!=)""")
SURROGATES = re.compile("[\ud800-\udfff]")
NEAR = 0.75
"""Minimum similarity of a word that is suggested instead of an unknown one."""
MAX_LENGTH, LARGEST = 10_000, 2**62
"""Maximum characters of a condition, and the largest number in it."""


class Condition(NamedTuple):
    """SQL over the table `files`, with "?" for its parameters."""

    sql: str
    params: tuple[Any, ...] = ()
    kind: str = ""
    """Kind of the values of a field: number, date, text, path, kind, label (a text without regard to case), labels (a
    list of them) or any."""


def _tag(name: str, kind: str) -> Condition:
    return Condition(f"json_extract(tags, '$.{name}')", (), kind)


FIELDS = {
    **{name: Condition(name, (), "number") for name in ("size", "width", "height", "duration")},
    **{"date": Condition("date", (), "date"), "mtime": Condition("mtime_ns / 1e9", (), "date")},
    **{"path": Condition("path", (), "path"), "caption": Condition("caption", (), "text")},
    "kind": Condition("modality", (), "kind"),
    **{name: _tag(name, "label") for name in ("camera", "make", "lens", "title", "description")},
    **{name: _tag(name, "label") for name in ("artist", "album", "genre")},
    **{"keyword": _tag("keywords", "labels"), "place": _tag("place", "labels")},
    "rating": _tag("rating", "number"),
}
"""Fields by name; those of `metadata` are its keys."""
TYPES: dict[str, Any] = {"number": (int, float), "any": object}
"""Types of the values that a field of a kind is compared with; str for the other kinds."""
NAMES_OF_KINDS = {"path": "text", "label": "text", "labels": "text"}
"""What the values of fields are called in messages."""
SAME = {"label": "is_same", "labels": "has_same"}
"""SQL functions that compare fields without regard to case."""
SIGNS = {ast.Lt: "<", ast.LtE: "<=", ast.Eq: "=", ast.GtE: ">=", ast.Gt: ">"}
TURNED = {"<": ">", "<=": ">=", "=": "=", ">=": "<=", ">": "<"}
OPPOSITES: dict[type[ast.cmpop], ast.cmpop] = {ast.NotEq: ast.Eq(), ast.NotIn: ast.In(), ast.IsNot: ast.Is()}


def kind_of(name: str) -> str:
    """The kind of file for a name: image, audio, text or video.

    Raises:
        UsageError: the name is unknown; suggests the nearest one.
    """
    if (kind := KINDS.get(name.lower())) is not None:
        return kind
    near = get_close_matches(name.lower(), KINDS, 1, NEAR)
    hint = f"; did you mean {near[0]}?" if near else f"; it can be {', '.join(dict.fromkeys(KINDS.values()))}"
    raise UsageError(f"{name!r} is not a kind of file{hint}")


def short_forms(
    where: str | None = None, after: str | None = None, before: str | None = None, path: str | None = None
) -> str | None:
    """Combine `where` with its short forms `after`, `before` and `path` into one condition.

    Raises:
        UsageError: a condition or a date cannot be parsed.
    """
    if where is not None:
        compile_condition(where)  # alone first, so that errors name columns of the user's text
    for option, date in (("after", after), ("before", before)):
        if date is not None:
            try:
                period(date)
            except UsageError as error:
                raise UsageError(f"{option}: {error}") from error
    forms = {"({}\n)": where, "date >= {!r}": after, "date < {!r}": before, "path.match({!r})": path}
    return " and ".join(form.format(value) for form, value in forms.items() if value is not None) or None


def period(text: str) -> tuple[float, float]:
    """Start of a year, month, day or minute of local time in unix seconds, and the first moment after it.

    Raises:
        UsageError: not a date, or one outside the range of the system clock.
    """
    for layout, (step, first) in PERIODS.items():
        with suppress(ValueError, OverflowError, OSError):  # the error depends on the platform
            start = datetime.strptime(text, layout)
            return start.timestamp(), (start + step).replace(**first).timestamp()
    raise UsageError(f"{text[:40]!r} is not a date; write 2024, 2024-05, 2024-05-01 or 2024-05-01T12:30")


@lru_cache(64)
def compile_condition(where: str) -> Condition:
    """Compile an expression to a condition; `register` adds the SQL functions that it calls to a connection.

    Raises:
        UsageError: not an expression, or an unknown name, value or operator, with its column.
    """
    if len(where) > MAX_LENGTH:
        raise UsageError(f"where: a condition has at most {MAX_LENGTH:,} characters, not {len(where):,}")
    where = where.strip()
    inserted: list[int] = []
    try:
        return _condition(_parsed(where, inserted))
    except SyntaxError as error:
        joined = re.search(rf"([\d.]+) ?({'|'.join({**UNITS, **LENGTHS})})\b", where)
        hint = f"; write {joined[1]}*{joined[2]}" if joined else ""
        column = (error.offset or 1) - sum(place < (error.offset or 1) for place in inserted)
        raise UsageError(f"where: {where!r}: {error.msg} at column {column}{hint}") from None
    except (RecursionError, MemoryError, ValueError) as error:
        raise UsageError(f"where: cannot be read ({one_line(error)})") from None


def _parsed(where: str, inserted: list[int]) -> ast.expr:
    """Syntax tree of an expression, in which = is ==; the places of the added characters go into ``inserted``."""

    def doubled(match: re.Match[str]) -> str:
        if match[0] != "=":
            return match[0]
        inserted.append(match.start() + len(inserted) + 1)
        return "=="

    tree = ast.parse(STRING_OR_EQUALS.sub(doubled, where), mode="eval").body
    for node in ast.walk(tree):
        if isinstance(node, ast.expr):
            node.col_offset -= sum(place <= node.col_offset for place in inserted)
    return tree


def _condition(node: ast.expr) -> Condition:
    match node:
        case ast.BoolOp(op, values):
            return _joined(" AND " if isinstance(op, ast.And) else " OR ", map(_condition, values))
        case ast.UnaryOp(ast.Not(), operand):
            return _negated(_condition(operand))
        case ast.Compare(left, ops, comparators):
            return _joined(" AND ", map(_compared, [left, *comparators], ops, comparators))
        case ast.Call(ast.Attribute(ast.Name("path"), "match"), [ast.Constant(str(pattern))], []):
            try:
                compile_globs(pattern)
            except UserError as error:
                reason = str(error).removeprefix("path.match: ")
                raise _error(node, f"has no pattern that can be read ({reason})") from error
            return Condition("path_fits(path, ?)", (pattern,))
        case ast.Call(ast.Name("near"), values, []):
            return _near(node, values)
    raise _error(node, "is not a condition; write one as in width >= 1000, or path.match('*.jpg')")


def _near(node: ast.expr, values: list[ast.expr]) -> Condition:
    """Condition for files that were made within a radius of a position."""
    if len(values) != 3:
        raise _error(node, "takes a latitude, a longitude and a radius; write near(48.1, 11.6, 20*km)")
    position = []
    for value, name, largest in zip(values, ("latitude", "longitude"), (90, 180), strict=False):
        degrees = _value(value, {})
        if not isinstance(degrees, (int, float)) or abs(degrees) > largest:
            raise _error(value, f"is no {name}; give degrees from -{largest} to {largest}")
        position.append(float(degrees))
    radius = _value(values[2], LENGTHS)
    if not isinstance(radius, (int, float)) or isinstance(values[2], ast.Constant) or radius < 0:
        raise _error(values[2], "is no radius; give a number of km or m, such as 20*km")
    place = "json_extract(tags, '$.latitude'), json_extract(tags, '$.longitude')"
    return Condition(f"distance({place}, ?, ?) <= ?", (*position, float(radius)))


def _joined(word: str, parts: Iterable[Condition]) -> Condition:
    """Conditions joined by " AND " or " OR ", halves within halves, as SQLite takes expressions of a depth of 1000."""
    parts = list(parts)
    if len(parts) <= 1:
        return parts[0] if parts else Condition("0")
    middle = len(parts) // 2
    first = _joined(word, parts[:middle])
    second = _joined(word, parts[middle:])
    return Condition(f"({first.sql}){word}({second.sql})", first.params + second.params)


def _negated(part: Condition) -> Condition:
    return Condition(f"NOT ({part.sql})", part.params)


def _compared(left: ast.expr, op: ast.cmpop, right: ast.expr) -> Condition:
    match op, right:
        case ((ast.NotEq() | ast.NotIn() | ast.IsNot()), _):
            return _negated(_compared(left, OPPOSITES[type(op)], right))
        case ast.Is(), ast.Constant(None):
            field = _field(left)
            return Condition(f"{field.sql} IS NULL", field.params)
        case ast.Is(), _:
            raise _error(right, "is not None; other values are compared with ==")
        case ast.In(), ast.Tuple(values) | ast.List(values) | ast.Set(values):
            return _joined(" OR ", (_comparison(left, "=", value) for value in values))
        case ast.In(), _:
            field = _field(right)
            part = _value(left)
            if field.kind not in ("text", "path", "label", "labels", "any") or not isinstance(part, str):
                raise _error(right, "contains no text; `in` is for path, caption, tags, metadata and lists")
            _check_characters(left, part)
            function = "has_containing" if field.kind == "labels" else "contains"
            return Condition(f"{function}({field.sql}, ?)", (*field.params, part))
    sign = SIGNS[type(op)]
    is_field = isinstance(left, (ast.Attribute, ast.Subscript)) or (isinstance(left, ast.Name) and left.id not in UNITS)
    return _comparison(left, sign, right) if is_field else _comparison(right, TURNED[sign], left)


def _comparison(left: ast.expr, sign: str, right: ast.expr) -> Condition:
    """Condition that compares a field with a value."""
    (sql, params, kind), value = _field(left), _value(right)
    if not isinstance(value, TYPES.get(kind, str)):
        raise _error(right, f"is no {NAMES_OF_KINDS.get(kind, kind)}, and {ast.unparse(left)} is one")
    if kind in SAME:
        if sign != "=":
            raise _error(left, "is compared with = or in, not by size")
        _check_characters(right, value)
        return Condition(f"{SAME[kind]}({sql}, ?)", (*params, value))
    if isinstance(value, str) and kind != "path":
        _check_characters(right, value)
    try:
        if kind == "any" and not isinstance(value, str):
            sql = f"number({sql})"
        elif kind == "path":
            value = os.fsencode(value)
        elif kind == "kind":
            value = kind_of(value)
        elif kind == "date":  # a period, which < and > exclude and <= and >= include as a whole
            start, end = period(value)
            if sign == "=":
                return Condition(f"{sql} >= ? AND {sql} < ?", (start, end))
            sign, value = ("<" if sign[0] == "<" else ">="), (start if sign in ("<", ">=") else end)
    except (UsageError, ValueError) as error:
        raise _error(right, f"is no {kind} ({one_line(error)})") from error
    return Condition(f"{sql} {sign} ?", (*params, value))


def _field(node: ast.expr) -> Condition:
    match node:
        case ast.Name(name) if name in FIELDS:
            return FIELDS[name]
        case ast.Attribute(ast.Name("metadata"), key) | ast.Subscript(ast.Name("metadata"), ast.Constant(str(key))):
            _check_characters(node, key)
            escaped = key.replace("\\", "\\\\").replace('"', '\\"')
            return Condition("json_extract(metadata, ?)", (f'$."{escaped}"',), "any")
    near = get_close_matches(ast.unparse(node), [*FIELDS, "metadata"], 1, NEAR)
    hint = f"did you mean {near[0]}?" if near else f"fields are {', '.join(FIELDS)}, metadata.NAME"
    raise _error(node, f"is not a field; {hint}")


def _value(node: ast.expr, units: Mapping[str, float] = UNITS) -> Any:
    match node:
        case ast.Constant(str(text)):
            return text
        case ast.Constant(int(number) | float(number)) if abs(number) <= LARGEST:
            return number
        case ast.UnaryOp(ast.USub(), ast.Constant(int() | float()) as number):
            return -_value(number)
        case ast.Name(unit) if unit in units:
            return units[unit]
        case ast.BinOp(ast.Constant(int() | float()) as number, ast.Mult(), ast.Name(unit)) if unit in units:
            return _value(number) * units[unit]
    raise _error(node, "is not a value; write a number, a number times a unit (2*min), or a text in quotes")


def _check_characters(node: ast.expr, text: str) -> None:
    """Raise `UsageError` for a character that SQLite does not take."""
    if "\0" in text or SURROGATES.search(text):
        raise _error(node, "has a NUL or half of a surrogate pair, which no text of an index has")


def _error(node: ast.expr, what: str) -> UsageError:
    return UsageError(f"where: {ast.unparse(node)!r} at column {node.col_offset + 1} {what}")
