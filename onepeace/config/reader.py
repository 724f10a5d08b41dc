"""Frozen dataclasses from plain values, converted to the declared types of their fields and compared with their ranges.
No torch here.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, NoReturn, TypeVar, cast

from onepeace.errors import UserError

T = TypeVar("T")
Options = dict[str, Any]


class Range(NamedTuple):
    """Range of a numeric field, in words and as a check: ``Annotated[float, Range(...)]``."""

    words: str
    fits: Callable[[float], bool]


Share = Annotated[float, Range("from 0 to below 1", lambda x: 0 <= x < 1)]
OpenShare = Annotated[float, Range("above 0 and below 1", lambda x: 0 < x < 1)]
Probability = Annotated[float, Range("from 0 to 1", lambda x: 0 <= x <= 1)]
Positive = Annotated[float, Range("above 0", lambda x: x > 0)]
NotNegative = Annotated[float, Range("0 or more", lambda x: x >= 0)]
Natural = Annotated[int, Range("0 or more", lambda x: x >= 0)]
Count = Annotated[int, Range("1 or more", lambda x: x >= 1)]
Depth = Annotated[int, Range("from 1 to 1,000", lambda x: 1 <= x <= 1000)]
"""Number of blocks; a billion of them would be built for hours."""


def nearest(name: object, known: Iterable[str], before: str = "") -> str:
    """Hint for an unknown name: the nearest known name, preceded by the text ``before``, or else all known names."""
    names = list(known)
    matches = difflib.get_close_matches(str(name), names, n=1)
    return f"did you mean {before}{matches[0]}?" if matches else f"known: {', '.join(names)}"


def build(cls: type[T], content: Any, where: str, at: str = "") -> T:
    """Build a dataclass from a mapping; values are converted to the declared types.

    Args:
        cls: a dataclass; its fields may be nested dataclasses, ``X | None``, lists, tuples and dicts of them. A
            ``Literal`` restricts the texts of a field, a type of those below its numbers.
        content: mapping as read from YAML; values that are already dataclasses are kept.
        where: the file, for messages.
        at: path of `content` in that file, for messages.

    Raises:
        UserError: an unknown field (the nearest known one is named), a missing one, or a value of another type.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"{at or 'the file'} should be a mapping of fields, not {content!r}", where=where)
    prefix = f"{at}." if at else ""
    types_of_fields = typing.get_type_hints(cls, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(cast(Any, cls))}
    values = {}
    for name, value in content.items():
        if name not in fields:
            hint = nearest(str(name), fields, prefix)
            raise UserError(f"{prefix}{name} is not a field; {hint}", where=where)
        values[name] = _convert(types_of_fields[name], value, Place(where, f"{prefix}{name}"))
    for name, field in fields.items():
        if name not in values and _is_required(field):
            raise UserError(f"{prefix}{name} is missing", where=where)
    try:
        return cls(**values)
    except UserError as error:
        raise UserError(f"{error}", where=where) from error


def _is_required(field: "dataclasses.Field[Any]") -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


class Place(NamedTuple):
    """Place of a value, for messages."""

    file: str
    path: str

    def fail(self, problem: str) -> NoReturn:
        raise UserError(f"{self.path} {problem}", where=self.file)


def _convert(declared: Any, value: Any, place: Place) -> Any:
    """A value as its declared type: a class, a dataclass, or a type with arguments."""
    if declared is Any or dataclasses.is_dataclass(value):
        return value
    if dataclasses.is_dataclass(declared):
        return build(cast(type, declared), value, place.file, place.path)
    convert = CONVERSIONS.get(typing.get_origin(declared) or declared)
    if convert is None:
        place.fail(f"should be {getattr(declared, '__name__', declared)}, not {value!r}")
    return convert(declared, value, place)


def _to_member(declared: Any, value: Any, place: Place) -> Any:
    """A value of a union: of its first member that fits; else the error is of the one that fits furthest."""
    if value is None and type(None) in typing.get_args(declared):
        return None
    errors: list[UserError] = []
    for member in typing.get_args(declared):
        if member is not type(None):
            try:
                return _convert(member, value, place)
            except UserError as error:
                errors.append(error)
    raise max(reversed(errors), key=lambda error: len(error.reason.split()[0]))  # it begins with the path of the field


def _to_number_in_range(declared: Any, value: Any, place: Place) -> Any:
    number_type, limits = typing.get_args(declared)
    number = _convert(number_type, value, place)
    if not limits.fits(number):
        place.fail(f"is {number}; it should be {limits.words}")
    return number


def _to_literal(declared: Any, value: Any, place: Place) -> Any:
    choices = typing.get_args(declared)
    if value not in choices:
        place.fail(f"{value!r} is not known; known: {', '.join(map(str, choices))}")
    return value


def _to_sequence(declared: Any, value: Any, place: Place) -> Any:
    """A list or tuple, whose values have one type; a tuple may have a fixed length."""
    if not isinstance(value, list | tuple):
        place.fail(f"should be a list, not {value!r}")
    origin = typing.get_origin(declared)
    arguments = typing.get_args(declared)
    is_fixed = origin is tuple and Ellipsis not in arguments
    if is_fixed and len(value) != len(arguments):
        place.fail(f"should be {len(arguments)} values, not {value!r}")
    items = []
    for index, item in enumerate(value):
        items.append(_convert(arguments[0], item, Place(place.file, f"{place.path}[{index}]")))
    return origin(items)


def _to_mapping(declared: Any, value: Any, place: Place) -> Options:
    """A mapping of texts; null removes an entry, unless values may be anything."""
    if not isinstance(value, Mapping):
        place.fail(f"should be a mapping of fields, not {value!r}")
    _, value_type = typing.get_args(declared)
    mapping = {}
    for key, item in value.items():
        if item is not None or value_type is Any:
            mapping[str(key)] = _convert(value_type, item, Place(place.file, f"{place.path}.{key}"))
    return mapping


def _to_boolean(declared: Any, value: Any, place: Place) -> bool:
    if not isinstance(value, bool):
        place.fail(f"should be bool, not {value!r}")
    return value


def _to_text(declared: Any, value: Any, place: Place) -> str:
    if not isinstance(value, str):
        place.fail(f"should be str, not {value!r}")
    return value


def _to_number(declared: Any, value: Any, place: Place) -> int | float:
    """A number; texts count too, as PyYAML reads "1e-6" (no dot) as text."""
    if isinstance(value, int) and not isinstance(value, bool) and declared is int:
        return value
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = float(value)
            if declared is float or number == int(number):
                return declared(number)
        except (ValueError, OverflowError):
            pass
    place.fail(f"should be {declared.__name__}, not {value!r}")


CONVERSIONS: dict[Any, Callable[[Any, Any, Place], Any]] = {
    typing.Union: _to_member,
    types.UnionType: _to_member,
    Annotated: _to_number_in_range,
    Literal: _to_literal,
    list: _to_sequence,
    tuple: _to_sequence,
    dict: _to_mapping,
    bool: _to_boolean,
    str: _to_text,
    int: _to_number,
    float: _to_number,
}
"""Conversion by type, or by the origin of a type with arguments."""
