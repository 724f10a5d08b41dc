"""Forms of the targets of a sample, and their checks."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

PNG = b"\x89PNG\r\n\x1a\n"


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _box(value: Any) -> bool:
    x0, y0, x1, y1 = value
    return 0 <= x0 <= x1 <= 1 and 0 <= y0 <= y1 <= 1


def _event(value: Any) -> bool:
    onset, offset, name = value
    return 0 <= onset <= offset and isinstance(name, str)


def _scores(value: Any) -> bool:
    return all(0 <= score <= 1 for score in value.values())


def _choice(value: Any, targets: Mapping[str, Any]) -> bool:
    return type(value) is int and 0 <= value < len(targets["candidates"])


def _box_labels(value: Any, targets: Mapping[str, Any]) -> bool:
    return _texts(value) and len(value) == len(targets["boxes"])


TARGETS: dict[str, tuple[str, Callable[[Any, Mapping[str, Any]], bool]]] = {
    "label": ("the name of a class", lambda value, _: isinstance(value, str)),
    "labels": ("a list of names of classes", lambda value, _: _texts(value)),
    "answers": ("scores from 0 to 1 by answer", lambda value, _: _scores(value)),
    "candidates": ("a list of answers", lambda value, _: _texts(value)),
    "choice": ("the number of one of the candidates", _choice),
    "box": ("[x0, y0, x1, y1] from 0 to 1", lambda value, _: _box(value)),
    "boxes": ("a list of [x0, y0, x1, y1] from 0 to 1", lambda value, _: all(map(_box, value))),
    "box_labels": ("the name of a class for each box", _box_labels),
    "events": ("a list of [onset, offset, name of a class], in seconds", lambda value, _: all(map(_event, value))),
    "mask": ("a PNG file", lambda value, _: value.startswith(PNG)),
}
"""Form of a target in words, and a check of its value given the sample's other targets. A shard has the mask as
KEY.mask.png, other targets in KEY.json. Boxes are relative to the width and height of the picture. A mask has a class
number in each pixel, 255 for pixels that are ignored. Targets of other names are not checked."""

LABELS: dict[str, Callable[[Any], Iterable[str]]] = {
    "labels": lambda value: value,
    "answers": lambda value: value,
    "box_labels": lambda value: value,
    "events": lambda value: [name for _, _, name in value],
}
"""Class names in the value of a target, by its name; for targets not listed, the value is the class name."""


def wrong_target(name: str, value: Any, targets: Mapping[str, Any]) -> str:
    """Error in a target, given the sample's other targets; empty if it is valid."""
    if name not in TARGETS:
        return ""
    form, is_valid = TARGETS[name]
    try:
        if is_valid(value, targets):
            return ""
    except (AttributeError, KeyError, TypeError, ValueError):  # a value of another type
        pass
    return f"its {name} is not {form}"
