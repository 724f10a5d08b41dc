"""Frozen dataclasses from plain values, converted to the declared types of their fields and compared with their ranges.
No torch here.
"""

import dataclasses
import difflib
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, NoReturn, TypeVar, cast

from onepeace.errors import UserError

T = TypeVar("T")
Options = dict[str, Any]


class Range(NamedTuple):
    """Range of a number, in words and as a check: ``Annotated[float, Range(...)]``. No range has infinity or nan."""

    words: str
    fits: Callable[[float], bool]


Share = Annotated[float, Range("from 0 to below 1", lambda x: 0 <= x < 1)]
OpenShare = Annotated[float, Range("above 0 and below 1", lambda x: 0 < x < 1)]
Probability = Annotated[float, Range("from 0 to 1", lambda x: 0 <= x <= 1)]
Positive = Annotated[float, Range("above 0", lambda x: x > 0)]
NotNegative = Annotated[float, Range("0 or more", lambda x: x >= 0)]
Finite = Annotated[float, Range("a finite number", lambda x: True)]
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
    values = read_arguments(cls, content, where, at)
    for field in dataclasses.fields(cast(Any, cls)):
        if field.name not in values and _is_required(field):
            raise UserError(f"{_prefix(at)}{field.name} is missing", where=where)
    try:
        return cls(**values)
    except UserError as error:
        raise UserError(f"{error}", where=where) from error


def read_arguments(cls: type, content: Any, where: str, at: str = "") -> Options:
    """Those fields of a dataclass, or arguments of another class after the first, that a mapping has.

    If the class takes ``**others``, further ones are kept as they are.

    Args:
        content, where, at: see `build`.

    Raises:
        UserError: an unknown name, or a value of another type or out of its range.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"{at or 'the file'} should be a mapping of fields, not {content!r}", where=where)
    declared, is_open = _declared_types(cls)
    values = {}
    for name, value in content.items():
        if name not in declared and not is_open:
            hint = nearest(str(name), declared, _prefix(at))
            raise UserError(f"{_prefix(at)}{name} is not a field; {hint}", where=where)
        values[name] = _convert(declared.get(name, Any), value, Place(where, f"{_prefix(at)}{name}"))
    return values


def _declared_types(cls: type) -> tuple[dict[str, Any], bool]:
    """Declared types of a class's fields or arguments by name, and whether it takes others."""
    if dataclasses.is_dataclass(cls):
        hints = typing.get_type_hints(cls, include_extras=True)
        return {field.name: hints[field.name] for field in dataclasses.fields(cls)}, False
    hints = typing.get_type_hints(cls.__init__, include_extras=True)  # type: ignore[misc]
    _, *parameters = inspect.signature(cls).parameters.values()
    declared = {}
    for parameter in parameters:
        if parameter.kind is not parameter.VAR_KEYWORD:
            declared[parameter.name] = hints.get(parameter.name, Any)
    return declared, len(declared) < len(parameters)


def _prefix(at: str) -> str:
    return f"{at}." if at else ""


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
    is_finite = abs(number) < math.inf
    if not (is_finite and limits.fits(number)):
        place.fail(f"is {number}; it should be {limits.words if is_finite else 'a finite number'}")
    return number


def _to_literal(declared: Any, value: Any, place: Place) -> Any:
    choices = typing.get_args(declared)
    if value not in choices:
        place.fail(f"{value!r} is not known; known: {', '.join(map(str, choices))}")
    return value


def _to_sequence(declared: Any, value: Any, place: Place) -> Any:
    """A list or tuple, whose values have one type, or a tuple of fixed length, in which each has its own."""
    if not isinstance(value, list | tuple):
        place.fail(f"should be a list, not {value!r}")
    origin = typing.get_origin(declared)
    types_of_items = typing.get_args(declared)
    if origin is not tuple or Ellipsis in types_of_items:
        types_of_items = types_of_items[:1] * len(value)
    elif len(value) != len(types_of_items):
        place.fail(f"should be {len(types_of_items)} values, not {value!r}")
    items = []
    for index, (item_type, item) in enumerate(zip(types_of_items, value, strict=True)):
        items.append(_convert(item_type, item, Place(place.file, f"{place.path}[{index}]")))
    return tuple(items) if origin is Sequence else origin(items)


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
    Sequence: _to_sequence,
    list: _to_sequence,
    tuple: _to_sequence,
    dict: _to_mapping,
    bool: _to_boolean,
    str: _to_text,
    int: _to_number,
    float: _to_number,
}
"""Conversion by type, or by the origin of a type with arguments."""
