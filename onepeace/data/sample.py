"""A sample of a data set: its members in a shard are parsed to captions, targets and the files that are its inputs.

A sample has the members KEY.jpg (or another file ending of a processor), KEY.txt and KEY.json, and optionally
KEY.2.jpg, ... (further pictures) and KEY.mask.png (a segmentation map). Captions are "captions" in the json, else the
text file; "label" in the json is a class name, "targets" holds the other targets (`TARGETS`). Media are not read.
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any

from onepeace.data.shard import content_of
from onepeace.errors import UserError
from onepeace.processors import PROCESSORS


class BrokenSample(UserError):
    """A sample lacks a part or has a wrong one; the message names shard and key."""


@dataclass(frozen=True)
class Sample:
    """One example: inputs by modality, and targets."""

    key: str
    source: str
    """Origin, for messages: a shard's name, or a table and its line."""
    inputs: dict[str, Any]
    """Inputs by modality: encoded bytes, `Extent` or path of a picture or sound, or a list of them; for text a list of
    captions, one of which is drawn each time."""
    targets: dict[str, Any]
    """Targets by name: "label" (a class name), answers, boxes, events; see onepeace.data.sample for their forms."""

    @property
    def captions(self) -> list[str]:
        """The captions; may be empty."""
        return self.inputs.get("text", [])

    @property
    def label(self) -> Any:
        """The class name, or None."""
        return self.targets.get("label")

    def read(self, modality: str) -> Any:
        """The input of a modality; an `Extent` is replaced by its bytes."""
        return content_of(self.inputs[modality])


def item_name(sample: Sample) -> str:
    """Name of an item that is unique even if several sources have the same keys."""
    return f"{Path(sample.source).name}/{sample.key}"


Members = Mapping[str, Any]
"""Content of the members of a sample by file ending, as bytes or `Extent`."""
MASK = "mask.png"
"""Name of the member with the target "mask"."""


def parse_sample(
    key: str,
    members: Members,
    source: str,
    modalities: Sequence[str],
    targets: Sequence[str] = (),
    has_templates: bool = False,
) -> Sample:
    """Parse the members of a sample.

    Args:
        key: key of the sample.
        members: an `Extent` or bytes by file ending.
        source: name of the shard, for messages.
        modalities: required modalities: "text" for captions, others for a member that their processor reads.
        targets: required targets, in the form of `TARGETS`.
        has_templates: whether templates make captions of a label, so that a sample with one needs no other.

    Raises:
        BrokenSample: a part is missing or wrong (the message names shard and key).
    """
    where = f"{source}: {key}"
    fields = _fields(members, where)
    captions = _captions(fields, members, where)
    values = _targets(fields, members)
    if "text" in modalities and not captions:
        label = values.get("label")
        if not (label and has_templates):
            problem = f"{where} has no caption (a .txt, or captions in a .json)"
            if label:
                problem += "; data.templates in a recipe make captions of its label"
            raise BrokenSample(problem)
    inputs: dict[str, Any] = {"text": captions}
    for modality in modalities:
        if modality != "text":
            inputs[modality] = _media(modality, members, where)
    _check_told_apart(inputs, members, where)
    _check_targets(values, targets, where)
    return Sample(key=key, source=source, inputs=inputs, targets=values)


def _fields(members: Members, where: str) -> dict[str, Any]:
    """Content of the .json, which may be absent."""
    try:
        content = content_of(members.get("json", b"{}"))
        return dict(json.loads(content))
    except (ValueError, TypeError, RecursionError) as error:
        raise BrokenSample(f"{where}.json cannot be read ({error})") from error


def _captions(fields: Mapping[str, Any], members: Members, where: str) -> list[str]:
    """Captions in the .json, or the text of the .txt."""
    listed = fields.get("captions") or []
    if not isinstance(listed, str | list):
        raise BrokenSample(f"{where}.json cannot be read (its captions are not a list)")
    captions = texts_in(listed)
    if captions:
        return captions
    content = content_of(members.get("txt", b""))
    return texts_in(content.decode("utf-8", errors="replace"))


def texts_in(value: str | Iterable[Any]) -> list[str]:
    """Non-blank texts of a string or a list."""
    values: Iterable[Any] = [value] if isinstance(value, str) else value
    texts = [text.strip() for text in values if isinstance(text, str)]
    return [text for text in texts if text]


def _targets(fields: Mapping[str, Any], members: Members) -> dict[str, Any]:
    """Targets by name, with the class name and an `Extent` of the segmentation map."""
    values: dict[str, Any] = {}
    if isinstance(fields.get("targets"), dict):
        values.update(fields["targets"])
    if isinstance(fields.get("label"), str):
        values["label"] = fields["label"]
    if members.get(MASK):
        values["mask"] = members[MASK]
    return values


def _check_targets(
    values: Mapping[str, Any],
    required: Sequence[str],
    where: str,
) -> None:
    for name in required:
        if name not in values:
            holder = "in its .json"
            if name == "mask":
                holder = f"(a .{MASK})"
            raise BrokenSample(f"{where} has no {name} {holder}")
        value = content_of(values[name])  # for a mask, its bytes
        problem = wrong_target(name, value, values)
        if problem:
            raise BrokenSample(f"{problem}", where=where)


def _media(modality: str, members: Members, where: str) -> Any:
    """The files of a modality; those that no other one reads come first, as KEY.wav before the sound of KEY.mp4."""
    endings = _endings(PROCESSORS[modality].suffixes)
    others = [_endings(processor.suffixes) for key, processor in PROCESSORS.items() if key != modality]
    own = endings.difference(*others)
    try:
        media = media_of(members, own, _all_endings()) or media_of(members, endings, _all_endings())
    except ValueError as error:
        raise BrokenSample(f"{error}", where=where) from error
    if media is None:
        raise BrokenSample(f"{where} has no {modality} file")
    return media


def _check_told_apart(inputs: Mapping[str, Any], members: Members, where: str) -> None:
    """`BrokenSample` if two modalities read one file although there is another for one of them."""
    for first, second in combinations([modality for modality in inputs if modality != "text"], 2):
        if inputs[first] != inputs[second]:
            continue
        endings = _endings(PROCESSORS[first].suffixes) | _endings(PROCESSORS[second].suffixes)
        others: list[str] = []
        for name in members:
            if members[name] != inputs[first] and name != MASK and ending_of(name, endings):
                others.append(name)
        if others:
            raise BrokenSample(
                f"{first} and {second} would both read one file, and none {others[0]}; give a processor its ending in "
                f"full, such as .{others[0]}",
                where=where,
            )


@lru_cache
def _endings(suffixes: frozenset[str]) -> frozenset[str]:
    """File endings without dots in front."""
    return frozenset(suffix[1:] for suffix in suffixes)


def _all_endings() -> frozenset[str]:
    """File endings of all modalities but text."""
    endings = [_endings(processor.suffixes) for key, processor in PROCESSORS.items() if key != "text"]
    return frozenset().union(*endings)


def ending_of(member: str, known: Collection[str]) -> str:
    """The longest of the known endings that a member has, "depth.png" rather than "png"; "" for none."""
    parts = member.split(".")
    for first in range(len(parts)):
        ending = ".".join(parts[first:])
        if ending in known:
            return ending
    return ""


def media_of(members: Members, endings: Collection[str], known: Collection[str] = ()) -> Any:
    """File of a sample with one of the endings, given without dots; a list if KEY.2.jpg, ... follow KEY.jpg.

    Args:
        known: all known endings; a file belongs to the longest one that it has.

    Raises:
        ValueError: one of several files is empty, a number is missing, or two files have one number.
    """
    files = _numbered_files(members, endings, {*endings, *known})
    if 1 not in files:
        return None
    contents = [files[number] for number in sorted(files)]
    if max(files) != len(files) or not all(contents):
        usable = [str(number) for number in sorted(files) if files[number]]
        raise ValueError(f"only its files {', '.join(usable)} can be used")
    if len(contents) == 1:
        return contents[0]
    return contents


def _numbered_files(members: Members, endings: Collection[str], known: Collection[str]) -> dict[int, Any]:
    """Files with one of the endings by their number, that of KEY.jpg being 1. Only numbered ones may be empty.

    Raises:
        ValueError: a file without a word in its name, as KEY.thumb.jpg has, would not be read.
    """
    named: list[tuple[str, str]] = []
    for member in members:
        ending = ending_of(member, known)
        if ending in endings and member != MASK:
            named.append((member.removesuffix(ending), member))
    files: dict[int, Any] = {}
    for name, member in sorted(named):  # KEY.jpg before KEY.thumb.jpg
        label = name.removesuffix(".")
        number = int(label) if re.fullmatch(r"[2-9]|[1-9]\d+", label) else 1
        if not members[member] and number == 1:
            continue
        if number not in files:
            files[number] = members[member]
        elif not label or label.isdecimal():
            raise ValueError(f"its .{member} is another file {number}; number files KEY.jpg, KEY.2.jpg, KEY.3.jpg")
    return files


def has_modalities(endings: Collection[str], modalities: Sequence[str]) -> bool:
    """Whether a sample with members of these endings is meant for these modalities.

    False only if it has files of other modalities and none of these, as in shards of several modalities.
    """
    known = _all_endings()
    present_endings = {ending_of(ending, known) for ending in endings if ending != MASK}
    media_modalities = {*modalities} - {"text"}
    present: set[str] = set()
    for modality, processor in PROCESSORS.items():
        if modality != "text" and _endings(processor.suffixes) & present_endings:
            present.add(modality)
    return not present or not media_modalities or not present.isdisjoint(media_modalities)


PNG = b"\x89PNG\r\n\x1a\n"


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _is_box(value: Any) -> bool:
    x0, y0, x1, y1 = value
    return 0 <= x0 <= x1 <= 1 and 0 <= y0 <= y1 <= 1


def _is_event(value: Any) -> bool:
    onset, offset, name = value
    return 0 <= onset <= offset and isinstance(name, str)


def _is_choice(value: Any, targets: Mapping[str, Any]) -> bool:
    return type(value) is int and 0 <= value < len(targets["candidates"])


def _has_texts_of_boxes(value: Any, targets: Mapping[str, Any]) -> bool:
    return _are_texts(value) and len(value) == len(targets["boxes"])


TARGETS: dict[str, tuple[str, Callable[[Any, Mapping[str, Any]], bool]]] = {
    "label": ("the name of a class", lambda value, _: isinstance(value, str)),
    "labels": ("a list of names of classes", lambda value, _: _are_texts(value)),
    "answers": ("scores from 0 to 1 by answer", lambda value, _: all(0 <= score <= 1 for score in value.values())),
    "candidates": ("a list of answers", lambda value, _: _are_texts(value)),
    "choice": ("the number of one of the candidates", _is_choice),
    "box": ("[x0, y0, x1, y1] from 0 to 1", lambda value, _: _is_box(value)),
    "boxes": ("a list of [x0, y0, x1, y1] from 0 to 1", lambda value, _: all(map(_is_box, value))),
    "box_labels": ("the name of a class for each box", _has_texts_of_boxes),
    "events": ("a list of [onset, offset, name of a class], in seconds", lambda value, _: all(map(_is_event, value))),
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
