"""YAML files, whose values are mappings, lists, texts, numbers, booleans and null; mappings merged and overridden."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import yaml

from onepeace.config.reader import Options, nearest
from onepeace.errors import UsageError, UserError
from onepeace.files.atomic import write_text_atomic

BOOLEAN = "tag:yaml.org,2002:bool"


def read_yaml(path: Path | str) -> dict[str, Any]:
    """Read a mapping from a YAML file; UserError names the file and line of a mistake."""
    try:
        with open(path, encoding="utf-8") as file:
            content = parse_yaml(file)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot be read ({reason})", where=path) from error
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        raise UserError(f"{path}:{line} not YAML ({getattr(error, 'problem', error)})") from error
    if not isinstance(content, dict):
        raise UserError(f"expected a mapping of fields, found {type(content).__name__}", where=path)
    return content


def parse_yaml(source: TextIO | str) -> Any:
    """Parse like yaml.safe_load, but with libyaml if PyYAML has it: this is eight times as fast, and too deep nesting
    raises an error."""
    loader: Any = Loader(source)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML loader that refuses a key given twice, and whose only booleans are true and false, as in YAML 1.2, since
    "on" is a field of terms and heads."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        keys: set[tuple[str, str]] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue
            key = (key_node.tag, key_node.value)
            if key in keys:
                problem = f"the key {key_node.value!r} is there twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            keys.add(key)
        super().flatten_mapping(node)
        # Merged keys ("<<") that the mapping replaces go, as an anchored mapping is flattened more than once.
        last_of_key = {(key.tag, str(key.value)): (key, value) for key, value in node.value}
        node.value = list(last_of_key.values())


def _resolvers() -> dict[str, list[Any]]:
    """PyYAML's patterns by first letter, without the booleans yes, no, on and off."""
    resolvers = {}
    for first_letter, patterns in yaml.SafeLoader.yaml_implicit_resolvers.items():
        if first_letter not in "tTfF":
            patterns = [(tag, pattern) for tag, pattern in patterns if tag != BOOLEAN]
        resolvers[first_letter] = patterns
    return resolvers


Loader.yaml_implicit_resolvers = _resolvers()


def to_yaml(config: Any) -> str:
    """A dataclass as YAML, with every default filled in."""
    return yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True, width=120)


def write_config(config: Any, path: Path | str) -> None:
    """Write a dataclass as YAML, atomically."""
    write_text_atomic(path, to_yaml(config))


def to_plain(value: Any) -> Any:
    """Convert dataclasses, tuples and mappings to plain YAML values; ``build`` reads them back."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> Options:
    """``base`` with its fields replaced by those of ``over``; mappings are merged field by field."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            value = merge(old, value)
        merged[key] = value
    return merged


def apply_override(content: Options, override: str) -> None:
    """Set a field of a mapping by "a.b=value", the value in YAML; entries of a list are addressed by their index or
    ``name``."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise UsageError(f"{override!r} is not an override; write it as a.b=value")
    try:
        value = parse_yaml(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{override!r}: the value is not YAML") from error
    *parents, last = path.split(".")
    container: Any = content
    for parent in parents:
        key = _key(container, parent, override)
        if isinstance(container, dict) and container.get(key) is None:
            container[key] = {}
        container = container[key]
        if not isinstance(container, dict | list):
            raise UserError(f"{override!r}: {parent} is a value and has no fields")
    container[_key(container, last, override)] = value


def _key(container: Options | list[Any], text: str, override: str) -> str | int:
    """Key of a mapping, or index of an entry of a list."""
    if isinstance(container, dict):
        return text
    names = []
    for entry in container:
        name = entry.get("name") if isinstance(entry, dict) else None
        names.append(str(name) if name else "")
    if text in names and text:
        return names.index(text)
    if text.isdecimal() and int(text) < len(container):
        return int(text)
    problem = f"{override!r}: {text} is neither an index below {len(container)} nor a name in the list"
    if any(names):
        problem += f"; {nearest(text, filter(None, names))}"
    raise UserError(problem)
