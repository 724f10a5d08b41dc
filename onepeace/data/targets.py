"""Targets of a sample by name (`TARGETS`), and checks of those that a shard holds."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

PNG = b"\x89PNG\r\n\x1a\n"


def _number(value: Any, low: float = 0.0, high: float = float("inf")) -> bool:
    return type(value) in (int, float) and low <= value <= high


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _box(value: Any) -> bool:
    right = isinstance(value, list) and len(value) == 4 and all(_number(edge, high=1.0) for edge in value)
    return right and value[0] <= value[2] and value[1] <= value[3]


def _event(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 3:
        return False
    onset, offset, name = value
    return _number(onset) and _number(offset, low=onset) and isinstance(name, str)


def _choice(value: Any, targets: Mapping[str, Any]) -> bool:
    return type(value) is int and _texts(targets.get("candidates")) and 0 <= value < len(targets["candidates"])


def _box_labels(value: Any, targets: Mapping[str, Any]) -> bool:
    return _texts(value) and isinstance(targets.get("boxes"), list) and len(value) == len(targets["boxes"])


TARGETS: dict[str, tuple[str, Callable[[Any, Mapping[str, Any]], bool]]] = {
    "label": ("the name of a class", lambda value, _: isinstance(value, str)),
    "labels": ("a list of names of classes", lambda value, _: _texts(value)),
    "answers": (
        "scores from 0 to 1 by answer",
        lambda value, _: isinstance(value, dict) and all(_number(score, high=1.0) for score in value.values()),
    ),
    "candidates": ("a list of answers", lambda value, _: _texts(value)),
    "choice": ("the number of one of the candidates", _choice),
    "box": ("[x0, y0, x1, y1] from 0 to 1", lambda value, _: _box(value)),
    "boxes": (
        "a list of [x0, y0, x1, y1] from 0 to 1",
        lambda value, _: isinstance(value, list) and all(map(_box, value)),
    ),
    "box_labels": ("the name of a class for each box", _box_labels),
    "events": (
        "a list of [onset, offset, name of a class], in seconds",
        lambda value, _: isinstance(value, list) and all(map(_event, value)),
    ),
    "mask": ("a PNG file", lambda value, _: isinstance(value, bytes) and value.startswith(PNG)),
}
"""Form of a target, in words and as a check of the value beside the sample's other targets. A shard has the mask as
KEY.mask.png, the others in KEY.json. Boxes are relative to the width and height of the picture. A mask has the number
of a class in each pixel, 255 where the pixel does not count. Targets of other names are not checked."""


LABELS: dict[str, Callable[[Any], Iterable[str]]] = {
    "labels": lambda value: value,
    "answers": lambda value: value,
    "box_labels": lambda value: value,
    "events": lambda value: [name for _, _, name in value],
}
"""The names of classes in the value of a target, by its name; the value itself where it is not listed."""


def wrong_target(name: str, value: Any, targets: Mapping[str, Any]) -> str:
    """Fault of a target of a sample, beside its other targets; empty if there is none."""
    if name in TARGETS:
        text, fits = TARGETS[name]
        if not fits(value, targets):
            return f"its {name} is not {text}"
    return ""
