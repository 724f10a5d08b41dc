"""Reads frozen dataclasses from YAML and applies the overrides of the command line. No torch here."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO, TypeVar, cast

import yaml

from onepeace.errors import UsageError, UserError
from onepeace.files.atomic import write_text_atomic

T = TypeVar("T")
Options = dict[str, Any]


def read_yaml(path: Path | str) -> Options:
    """Read a mapping from a YAML file; UserError names the file and line of a mistake."""
    try:
        with open(path, encoding="utf-8") as file:
            content = _parsed(file)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({reason})") from error
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        raise UserError(f"{path}:{line} not YAML ({getattr(error, 'problem', error)})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping of fields, found {type(content).__name__}")
    return content


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML loader that refuses a key given twice, and whose only booleans are true and false, as in YAML 1.2, since
    "on" is a field of terms and heads."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        keys: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in keys:
                    problem = f"the key {key.value!r} is there twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                keys.add((key.tag, key.value))
        super().flatten_mapping(node)
        # Merged keys ("<<") that the mapping replaces go, as an anchored mapping is flattened more than once.
        node.value = list({(key.tag, str(key.value)): (key, value) for key, value in node.value}.values())


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if first in "tTfF" or tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _parsed(source: TextIO | str) -> Any:
    """Parse like yaml.safe_load, but with libyaml if PyYAML has it: this is eight times as fast, and too deep nesting
    raises an error."""
    loader: Any = Loader(source)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def to_yaml(config: Any) -> str:
    """A dataclass as YAML, with every default filled in."""
    return yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True, width=120)


def write_config(config: Any, path: Path | str) -> None:
    """Write a dataclass as YAML, atomically."""
    write_text_atomic(path, to_yaml(config))


def to_plain(value: Any) -> Any:
    """Convert dataclasses, tuples and mappings to plain YAML values; ``build`` reads them back."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> Options:
    """``base`` with its fields replaced by those of ``over``; mappings are merged field by field."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def apply_override(content: Options, override: str) -> None:
    """Set a field of a mapping by "a.b=value", the value in YAML; entries of a list are addressed by their index or
    ``name``."""
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise UsageError(f"{override!r} is not an override; write it as a.b=value")
    try:
        value = _parsed(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{override!r}: the value is not YAML") from error
    *parents, last = name.split(".")
    place: Any = content
    for parent in parents:
        key = _key(place, parent, override)
        if isinstance(place, dict) and place.get(key) is None:
            place[key] = {}
        place = place[key]
        if not isinstance(place, dict | list):
            raise UserError(f"{override!r}: {parent} is a value and has no fields")
    place[_key(place, last, override)] = value


def _key(place: Options | list[Any], text: str, override: str) -> str | int:
    if isinstance(place, dict):
        return text
    names = [str(item["name"]) if isinstance(item, dict) and item.get("name") else None for item in place]
    if text in names:
        return names.index(text)
    if not text.isdecimal() or int(text) >= len(place):
        known = "; " + nearest(text, [name for name in names if name]) if any(names) else ""
        raise UserError(f"{override!r}: {text} is neither an index below {len(place)} nor a name in the list{known}")
    return int(text)


def nearest(name: object, known: Iterable[str], before: str = "") -> str:
    """Hint for an unknown name: the nearest known name, preceded by the text ``before``, or else all known names."""
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {before}{near[0]}?" if near else f"known: {', '.join(known)}"


def build(cls: type[T], content: Any, where: str, at: str = "") -> T:
    """Build a dataclass from a mapping; values are coerced to the declared types.

    Args:
        cls: a dataclass; its fields may be nested dataclasses, ``X | None``, lists, tuples and dicts of them. A
            ``Literal`` restricts the texts of a field, a type of limits.py its numbers.
        content: mapping as read from YAML; values that are already dataclasses are kept.
        where: the file, for messages.
        at: path of `content` in that file, for messages.

    Raises:
        UserError: an unknown field (the nearest known one is named), a missing one, or a value of another type.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"{where}: {at or 'the file'} should be a mapping of fields, not {content!r}")
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {f.name: f for f in dataclasses.fields(cast(Any, cls))}
    values = {}
    for name, value in content.items():
        path = f"{at}.{name}" if at else str(name)
        if name not in fields:
            raise UserError(f"{where}: {path} is not a field; {nearest(str(name), fields, at + '.' if at else '')}")
        values[name] = _coerce(hints[name], value, where, path)
    missing = [
        name for name, f in fields.items()
        if name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]  # fmt: skip
    if missing:
        raise UserError(f"{where}: {at + '.' if at else ''}{missing[0]} is missing")
    try:
        return cls(**values)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _coerce(kind: Any, value: Any, where: str, at: str) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any or dataclasses.is_dataclass(value):
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        errors = []
        for option in (a for a in args if a is not type(None)):
            try:
                return _coerce(option, value, where, at)
            except UserError as error:
                errors.append(error)
        raise errors[-1]
    if origin is Annotated:
        number = _coerce(args[0], value, where, at)
        if not args[1].fits(number):
            raise UserError(f"{where}: {at} is {number}; it should be {args[1].words}")
        return number
    if origin is Literal:
        if value in args:
            return value
        raise UserError(f"{where}: {at} {value!r} is not known; known: {', '.join(args)}")
    if dataclasses.is_dataclass(kind):
        return build(cast(type, kind), value, where, at)
    if origin in (list, tuple) and isinstance(value, list | tuple):
        if origin is tuple and Ellipsis not in args and len(value) != len(args):
            raise UserError(f"{where}: {at} should be {len(args)} values, not {value!r}")
        return origin(_coerce(args[0] if args else Any, item, where, f"{at}[{i}]") for i, item in enumerate(value))
    if origin is dict and isinstance(value, Mapping):
        given = {key: item for key, item in value.items() if item is not None or args[1] is Any}  # null removes it
        return {str(key): _coerce(args[1], item, where, f"{at}.{key}") for key, item in given.items()}
    if kind is bool and isinstance(value, bool):
        return value
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    # PyYAML reads "1e-6" (no dot) as text, which number fields therefore accept.
    if kind in (int, float) and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = float(value)
            if kind is float or number == int(number):
                return kind(number)
        except (ValueError, OverflowError):
            pass
    if kind is str and isinstance(value, str):
        return value
    words = {dict: "a mapping of fields", list: "a list", tuple: "a list"}
    name = words.get(origin) or getattr(kind, "__name__", str(kind))
    raise UserError(f"{where}: {at} should be {name}, not {value!r}")
