"""Forms of the targets of a sample, and their checks."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

PNG = b"\x89PNG\r\n\x1a\n"


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _scores(value: Any) -> bool:
    return all(0 <= score <= 1 for score in value.values())


def _box(value: Any) -> bool:
    x0, y0, x1, y1 = value
    return 0 <= x0 <= x1 <= 1 and 0 <= y0 <= y1 <= 1


def _boxes(value: Any) -> bool:
    return all(_box(box) for box in value)


def _event(value: Any) -> bool:
    onset, offset, name = value
    return 0 <= onset <= offset and isinstance(name, str)


def _events(value: Any) -> bool:
    return all(_event(event) for event in value)


def _png(value: Any) -> bool:
    return value.startswith(PNG)


def _choice(value: Any, targets: Mapping[str, Any]) -> bool:
    return type(value) is int and 0 <= value < len(targets["candidates"])


def _box_labels(value: Any, targets: Mapping[str, Any]) -> bool:
    return _texts(value) and len(value) == len(targets["boxes"])


Check = Callable[[Any, Mapping[str, Any]], bool]


def _alone(check: Callable[[Any], bool]) -> Check:
    """A check that does not need the other targets."""
    return lambda value, targets: check(value)


TARGETS: dict[str, tuple[str, Check]] = {
    "label": ("the name of a class", _alone(_text)),
    "labels": ("a list of names of classes", _alone(_texts)),
    "answers": ("scores from 0 to 1 by answer", _alone(_scores)),
    "candidates": ("a list of answers", _alone(_texts)),
    "choice": ("the number of one of the candidates", _choice),
    "box": ("[x0, y0, x1, y1] from 0 to 1", _alone(_box)),
    "boxes": ("a list of [x0, y0, x1, y1] from 0 to 1", _alone(_boxes)),
    "box_labels": ("the name of a class for each box", _box_labels),
    "events": ("a list of [onset, offset, name of a class], in seconds", _alone(_events)),
    "mask": ("a PNG file", _alone(_png)),
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
