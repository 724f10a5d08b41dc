"""Conditions on file metadata, written as Python expressions and evaluated by SQLite; the functions that it calls.

    width >= 1000 and duration < 2*min and "beach" in path
    kind in ("image", "video") and not date < "2024-05" or metadata.year == 2020 and caption is None
    camera = "X100V" and keyword = "beach" and near(48.1, 11.6, 20*km)

Conditions are parsed with Python's ast: names are fields, units are constants, and anything else is an error. No user
text becomes SQL. A field that a file lacks is None (NULL) and satisfies no comparison.
"""

import ast
import json
import math
import os
import re
import sqlite3
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, NamedTuple

from onepeace.errors import UsageError, UserError, one_line
from onepeace.files.walk import Globs
from onepeace.index.items import IN_LIST, sql_below

SYNONYMS = {
    "image": ("images", "picture", "pictures", "photo", "photos"),
    "audio": ("audios", "sound", "sounds"),
    "text": ("texts",),
    "video": ("videos",),
}
"""Further names of the built-in kinds of files."""
UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "s": 1.0, "min": 60.0, "h": 3600.0}
LENGTHS = {"km": 1e3, "m": 1.0}
"""Units of the radius of near(...)."""
PERIODS: dict[str, tuple[timedelta, dict[str, Any]]] = {
    "%Y": (timedelta(366), {"month": 1, "day": 1}),
    "%Y-%m": (timedelta(31), {"day": 1}),
    "%Y-%m-%d": (timedelta(1), {}),
    "%Y-%m-%dT%H:%M": (timedelta(minutes=1), {}),
}
"""Formats of dates -> step from the start of a period into the next, and fields to reset to reach its start."""
EARTH_RADIUS = 6_371_009.0
"""Mean radius in metres."""
SIMILAR = 0.75
"""Minimum similarity of a word that is suggested instead of an unknown one."""


class Condition(NamedTuple):
    """SQL over the table `files`, with "?" for its parameters."""

    sql: str
    params: tuple[Any, ...] = ()
    type: str = ""
    """Type of the values of a field: number, date, text, path, kind, label (a text without regard to case), labels (a
    list of them) or any."""


def _tag(name: str, value_type: str) -> Condition:
    return Condition(f"json_extract(tags, '$.{name}')", (), value_type)


FIELDS = {
    "size": Condition("size", (), "number"),
    "width": Condition("width", (), "number"),
    "height": Condition("height", (), "number"),
    "duration": Condition("duration", (), "number"),
    "date": Condition("date", (), "date"),
    "mtime": Condition("mtime_ns / 1e9", (), "date"),
    "path": Condition("path", (), "path"),
    "caption": Condition("caption", (), "text"),
    "kind": Condition("kind", (), "kind"),
    "camera": _tag("camera", "label"),
    "make": _tag("make", "label"),
    "lens": _tag("lens", "label"),
    "title": _tag("title", "label"),
    "description": _tag("description", "label"),
    "artist": _tag("artist", "label"),
    "album": _tag("album", "label"),
    "genre": _tag("genre", "label"),
    "keyword": _tag("keywords", "labels"),
    "place": _tag("place", "labels"),
    "rating": _tag("rating", "number"),
}
"""Fields by name. A key of a file's metadata is a field too: metadata.NAME."""
POSITION = "json_extract(tags, '$.latitude'), json_extract(tags, '$.longitude')"

STRING_OR_EQUALS = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|(?<![=<>!])=(?!=)""")
DATE = re.compile(r"\b\d{4}-\d\d?(?:-\d\d?)?\b")
SURROGATES = re.compile("[\ud800-\udfff]")
MAX_LENGTH = 10_000
"""Maximum characters of a condition."""
SHOWN = 200
"""Characters of it in a message."""
LARGEST = 2**62
"""Largest number in a condition."""
TYPES: dict[str, tuple[Any, str]] = {
    "number": ((int, float), "number"),
    "date": (str, 'date in quotes, such as "2024-05"'),
    "any": (object, ""),
}
"""Python types of the values that a field of a type is compared with, and what they are called; others are texts."""
SIGNS = {ast.Lt: "<", ast.LtE: "<=", ast.Eq: "=", ast.GtE: ">=", ast.Gt: ">"}
ALL_FIELDS = f"fields are {', '.join(FIELDS)}, metadata.NAME"
TURNED = {"<": ">", "<=": ">=", "=": "=", ">=": "<=", ">": "<"}
OPPOSITES: dict[type[ast.cmpop], ast.cmpop] = {ast.NotEq: ast.Eq(), ast.NotIn: ast.In(), ast.IsNot: ast.Is()}


def all_of(*conditions: Condition | None) -> Condition | None:
    """One condition that files satisfy that satisfy all of some; None = no condition."""
    given = [condition for condition in conditions if condition is not None]
    return _joined(" AND ", given) if given else None


def embedded(condition: Condition | None = None) -> Condition:
    """The condition for files with vectors, and that satisfy another one."""
    if condition is None:
        return Condition("problem IS NULL")
    return condition._replace(sql=f"problem IS NULL AND ({condition.sql})")


def short_forms(
    where: str | None = None,
    after: str | None = None,
    before: str | None = None,
    path: str | None = None,
) -> Condition | None:
    """Combine `where` with its short forms `after`, `before` and `path` into one condition; None if there is none.

    Raises:
        UsageError: a condition or a date cannot be parsed.
    """
    conditions = [] if where is None else [compile_condition(where)]
    for option, sign, date in (("after", ">=", after), ("before", "<", before)):
        if date is not None:
            try:
                conditions.append(_comparison_of_date(FIELDS["date"], sign, date))
            except UsageError as error:
                raise UsageError(f"{error}", where=option) from error
    if path is not None:
        conditions.append(compile_condition(f"path.match({path!r})"))
    return all_of(*conditions)


def of_kinds(only: str | Iterable[str], modalities: Collection[str] = ()) -> Condition | None:
    """The condition for files of some kinds; None if none is named.

    Args:
        modalities: those of the index, which need not be registered.

    Raises:
        UsageError: a name is unknown.
    """
    names = [only] if isinstance(only, str) else [*only]
    try:
        chosen = [name if name in modalities else kind_of(name) for name in names]
    except UsageError as error:
        raise UsageError(f"{error}", where="only") from error
    return Condition(f"kind {IN_LIST}", (json.dumps(chosen),)) if chosen else None


def below(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> Condition | None:
    """The condition for files at some paths, and in the folders, tables and shards at these, which may be relative, or
    links; None if there is no path.

    Raises:
        UsageError: no file system has such a path.
    """
    places = set()
    for path in [paths] if isinstance(paths, (str, os.PathLike)) else paths:
        try:
            places |= {os.path.abspath(path), os.path.realpath(path)}
            os.fsencode(path)
        except ValueError:
            raise UsageError(f"{path!r:.40} has a NUL, or half of a surrogate pair", where="below") from None
    return Condition(sql_below(sorted(places))) if places else None


@lru_cache(64)
def compile_condition(where: str) -> Condition:
    """Compile an expression to a condition; `register` adds the SQL functions that it calls.

    Raises:
        UsageError: not an expression, or an unknown name, value or operator.
    """
    if len(where) > MAX_LENGTH:
        raise UsageError(f"where: a condition has at most {MAX_LENGTH:,} characters, not {len(where):,}")
    where = where.strip()
    try:
        doubled = STRING_OR_EQUALS.sub(lambda match: "==" if match[0] == "=" else match[0], where)
        condition = _condition(ast.parse(doubled, mode="eval").body)
    except (UserError, SyntaxError, RecursionError, MemoryError, ValueError) as error:
        date = DATE.search(STRING_OR_EQUALS.sub("", where))  # which Python reads as a subtraction of octal numbers
        # Python's own advice, behind the semicolon, is on octal numbers.
        reason = error.msg.partition(";")[0] if isinstance(error, SyntaxError) else one_line(error)
        reason = f'write the date in quotes: "{date[0]}"' if date else f"{reason}{_hint_of_unit(where)}"
        raise UsageError(f"where: {where[:SHOWN]!r}: {reason}") from None
    for value in condition.params:
        if isinstance(value, str) and ("\0" in value or SURROGATES.search(value)):
            raise UsageError(f"where: {where[:SHOWN]!r}: a NUL or half of a surrogate pair, which SQLite does not take")
    return condition


def _hint_of_unit(where: str) -> str:
    joined = re.search(rf"([\d.]+) ?({'|'.join([*UNITS, *LENGTHS])})\b", where)
    return f"; write {joined[1]}*{joined[2]}" if joined else ""


def _condition(node: ast.expr) -> Condition:
    match node:
        case ast.BoolOp(ast.And(), values):
            return _joined(" AND ", map(_condition, values))
        case ast.BoolOp(ast.Or(), values):
            return _joined(" OR ", map(_condition, values))
        case ast.UnaryOp(ast.Not(), operand):
            operand_condition = _condition(operand)
            return operand_condition._replace(sql=f"NOT ({operand_condition.sql})")
        case ast.Compare(left, operators, comparators):
            return _joined(" AND ", map(_compared, [left, *comparators], operators, comparators))
        case ast.Call(ast.Attribute(ast.Name("path"), "match"), [ast.Constant(str(pattern))], []):
            compile_globs(pattern)
            return Condition("path_fits(path, ?)", (pattern,))
        case ast.Call(ast.Name("near"), values, []):
            return _near(node, values)
    raise _error(node, "is not a condition; write one as in width >= 1000, or path.match('*.jpg')")


def _joined(word: str, parts: Iterable[Condition]) -> Condition:
    """Conditions joined by " AND " or " OR ", halves within halves, as SQLite takes expressions of a depth of 1000."""
    parts = list(parts)
    if len(parts) == 1:
        return parts[0]
    middle = len(parts) // 2
    first = _joined(word, parts[:middle])
    second = _joined(word, parts[middle:])
    return Condition(f"({first.sql}){word}({second.sql})", first.params + second.params)


def _near(node: ast.expr, values: list[ast.expr]) -> Condition:
    """Condition for files that were made within a radius of a position."""
    if len(values) != 3:
        raise _error(node, "takes a latitude, a longitude and a radius; write near(48.1, 11.6, 20*km)")
    latitude = _degrees(values[0], "latitude", 90)
    longitude = _degrees(values[1], "longitude", 180)
    radius = _value(values[2], LENGTHS)
    has_unit = not isinstance(values[2], (ast.Constant, ast.UnaryOp))
    if not has_unit or radius < 0:
        raise _error(values[2], "is not a radius; give a number of km or m, such as 20*km")
    return Condition(f"distance({POSITION}, ?, ?) <= ?", (latitude, longitude, radius))


def _degrees(node: ast.expr, name: str, largest: float) -> float:
    degrees = _value(node, {})
    if not isinstance(degrees, (int, float)) or abs(degrees) > largest:
        raise _error(node, f"is not a {name}; give degrees from -{largest} to {largest}")
    return float(degrees)


def _compared(left: ast.expr, operator: ast.cmpop, right: ast.expr) -> Condition:
    match operator, right:
        case ((ast.NotEq() | ast.NotIn() | ast.IsNot()), _):
            opposite = _compared(left, OPPOSITES[type(operator)], right)
            return opposite._replace(sql=f"NOT ({opposite.sql})")
        case ast.Is(), ast.Constant(None):
            field = _field(left)
            return Condition(f"{field.sql} IS NULL", field.params)
        case ast.Is(), _:
            raise _error(right, "is not None; other values are compared with ==")
        case ast.In(), ast.Tuple([]) | ast.List([]):
            raise _error(right, f"is empty; name the values of {ast.unparse(left)}")
        case ast.In(), ast.Tuple(values) | ast.List(values) | ast.Set(values):
            return _joined(" OR ", (_comparison(left, "=", value) for value in values))
        case ast.In(), _:
            return _contained(left, right)
    sign = SIGNS[type(operator)]
    if _is_field(left):
        return _comparison(left, sign, right)
    return _comparison(right, TURNED[sign], left)


def _is_field(node: ast.expr) -> bool:
    if isinstance(node, ast.Name):
        return node.id not in UNITS
    return isinstance(node, (ast.Attribute, ast.Subscript))


def _contained(left: ast.expr, right: ast.expr) -> Condition:
    """Condition for fields that contain a text."""
    field = _field(right)
    part = _value(left)
    if field.type in ("number", "date", "kind") or not isinstance(part, str):
        raise _error(right, "contains no text; `in` is for path, caption, tags, metadata and lists")
    return _called("contains", field, part)


def _comparison(left: ast.expr, sign: str, right: ast.expr) -> Condition:
    """Condition that compares a field with a value."""
    field = _field(left)
    value = _value(right)
    types, name = TYPES.get(field.type, (str, "text in quotes"))
    if not isinstance(value, types):
        raise _error(right, f"is not a {name}; compare {ast.unparse(left)} with one")
    if field.type in ("kind", "label", "labels") and sign != "=":
        raise _error(left, "is a text; compare it with = or in")
    if field.type in ("label", "labels"):
        return _called("is_same", field, value)
    if field.type == "date":
        return _comparison_of_date(field, sign, value)
    sql = field.sql
    if field.type == "path":
        value = os.fsencode(value)
    elif field.type == "kind":
        value = kind_of(value)
    elif field.type == "any" and not isinstance(value, str):
        sql = f"number({sql})"
    return Condition(f"{sql} {sign} ?", (*field.params, value))


def _called(function: str, field: Condition, text: str) -> Condition:
    """Condition by a function of a field and a text; of a list, one value must satisfy it."""
    sql = f"{function}({field.sql}, ?)"
    if field.type == "labels":
        of_one = f"EXISTS (SELECT 1 FROM json_each({field.sql}) WHERE {function}(value, ?))"  # noqa: S608 (our own code)
        sql = f"CASE WHEN {field.sql} IS NOT NULL THEN {of_one} END"
    return Condition(sql, (*field.params, text))


def _comparison_of_date(field: Condition, sign: str, date: str) -> Condition:
    """A date is a period, which < and > exclude and <= and >= include as a whole."""
    start, end = period(date)
    if sign == "=":
        return Condition(f"{field.sql} >= ? AND {field.sql} < ?", (start, end))
    limit = start if sign in ("<", ">=") else end
    sign = "<" if sign.startswith("<") else ">="
    return Condition(f"{field.sql} {sign} ?", (limit,))


def _field(node: ast.expr) -> Condition:
    match node:
        case ast.Name(name) if name in FIELDS:
            return FIELDS[name]
        case ast.Attribute(ast.Name("metadata"), key) | ast.Subscript(ast.Name("metadata"), ast.Constant(str(key))):
            value = "(SELECT value FROM json_each(metadata) WHERE key = ?)"  # json_extract finds no quoted quotes
            return Condition(value, (key,), "any")
    hint = suggestion(ast.unparse(node), [*FIELDS, "metadata"])
    raise _error(node, f"is not a field; {hint or ALL_FIELDS}")


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


def _error(node: ast.expr, what: str) -> UsageError:
    return UsageError(f"{ast.unparse(node)!r} {what}")


def kinds() -> list[str]:
    """The kinds of files: the built-in ones, and the modalities that were registered."""
    from onepeace.index.sources import modalities_by_suffix  # not above: the help of commands needs no numpy

    return list(dict.fromkeys([*SYNONYMS, *modalities_by_suffix().values()]))


def kind_of(name: str) -> str:
    """The kind of file for a name, such as image or pictures.

    Raises:
        UsageError: the name is unknown; suggests the nearest one.
    """
    kind_by_name = {kind: kind for kind in kinds()}
    for kind, synonyms in SYNONYMS.items():
        kind_by_name |= dict.fromkeys(synonyms, kind)
    if name.lower() in kind_by_name:
        return kind_by_name[name.lower()]
    hint = suggestion(name.lower(), kind_by_name) or f"it can be {', '.join(kinds())}"
    raise UsageError(f"{name!r} is not a kind of file; {hint}")


def suggestion(word: str, words: Iterable[str]) -> str:
    """A question for the nearest of some words; "" if none is near."""
    near = get_close_matches(word, list(words), 1, SIMILAR)
    return f"did you mean {near[0]}?" if near else ""


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
def compile_globs(pattern: str) -> Globs:
    """Compile the pattern of path.match; UserError if it is not exactly one."""
    globs = Globs([pattern], "path.match")
    if globs.includes != 1:
        raise UserError("path.match: empty, a comment, or begins with !; write not path.match(...)")
    return globs


def register(connection: sqlite3.Connection, roots: Iterable[str] = ()) -> None:
    """Register the functions with a connection.

    Args:
        roots: indexed folders; patterns match paths relative to them, and whole paths.
    """
    folders = [_composed(root.rstrip(os.sep) + os.sep) for root in roots]

    def path_fits(path: bytes, pattern: str) -> bool:
        name = _composed(os.fsdecode(path))
        globs = compile_globs(_composed(pattern))
        forms = [name.lstrip(os.sep)]
        for folder in folders:
            if name.startswith(folder):
                forms.append(name.removeprefix(folder))
        return any(globs.matches(form.replace(os.sep, "/")) for form in forms)

    functions: list[Callable[..., Any]] = [path_fits, contains, is_same, number, distance]
    for function in functions:
        connection.create_function(function.__name__, -1, function, deterministic=True)


def contains(text: object, part: str) -> bool | None:
    """Whether a text, or a path in bytes, contains a part, without regard to case."""
    if not isinstance(text, (str, bytes)):  # a number in the metadata contains no text
        return None
    return _folded(part) in _folded(os.fsdecode(text))


def is_same(text: object, other: str) -> bool | None:
    """Whether two texts are the same, without regard to case."""
    if not isinstance(text, str):
        return None
    return _folded(text) == _folded(other)


def number(value: Any) -> float | None:
    """A number, or the number that a text is, as in a cell of a .csv file."""
    with suppress(ValueError, TypeError):
        return value if isinstance(value, int) else float(value)
    return None


def distance(
    latitude: float | None,
    longitude: float | None,
    latitude2: float,
    longitude2: float,
) -> float | None:
    """Metres between two positions in degrees, on a sphere (haversine formula)."""
    if latitude is None or longitude is None:
        return None
    phi = math.radians(latitude)
    phi2 = math.radians(latitude2)
    north = math.sin((phi2 - phi) / 2)
    east = math.sin(math.radians(longitude2 - longitude) / 2)
    square = north**2 + math.cos(phi) * math.cos(phi2) * east**2
    return 2 * EARTH_RADIUS * math.asin(min(1.0, math.sqrt(square)))


def _composed(text: str) -> str:
    """Compose letters with their accents into single characters; macOS decomposes them in file names."""
    return unicodedata.normalize("NFC", text)


def _folded(text: str) -> str:
    return _composed(text).casefold()
