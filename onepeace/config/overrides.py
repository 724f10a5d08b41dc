"""Fields of one mapping that replace those of another: of a base file, or from the command line."""

from collections.abc import Mapping
from typing import Any

import yaml

from onepeace.config.reader import Options, nearest
from onepeace.config.yaml_files import parse_yaml
from onepeace.errors import UsageError, UserError


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
