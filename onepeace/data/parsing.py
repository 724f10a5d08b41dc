"""From the members of a sample in a shard to a `Sample`: its captions, its targets, and which files are its inputs.

A sample has the members KEY.jpg (or another file ending of a processor), KEY.txt and KEY.json, and optionally
KEY.2.jpg, ... (further pictures) and KEY.mask.png (a segmentation map). Captions are "captions" in the json, else the
text file; "label" in the json is a class name, "targets" holds the other targets (targets.py). Media are not read.
"""

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from onepeace.data.broken import BrokenSample
from onepeace.data.sample import Sample
from onepeace.data.shard import content_of
from onepeace.data.targets import wrong_target
from onepeace.processors import PROCESSORS

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
        targets: required targets, in the form of targets.py.
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
    _check_targets(values, targets, where)
    return Sample(key=key, source=source, inputs=inputs, targets=values)


def _fields(members: Members, where: str) -> dict[str, Any]:
    """Content of the .json, which may be absent."""
    try:
        content = content_of(_last(members, "json", b"{}"))
        return dict(json.loads(content))
    except (ValueError, TypeError, RecursionError) as error:
        raise BrokenSample(f"{where}.json cannot be read ({error})") from error


def _last(members: Members, ending: str, default: Any) -> Any:
    """The last member whose name ends so: KEY.json, and also KEY.some.json."""
    for name in reversed(list(members)):
        if name.rpartition(".")[2] == ending:
            return members[name]
    return default


def _captions(fields: Mapping[str, Any], members: Members, where: str) -> list[str]:
    """Captions in the .json, or the text of the .txt."""
    listed = fields.get("captions") or []
    if not isinstance(listed, str | list):
        raise BrokenSample(f"{where}.json cannot be read (its captions are not a list)")
    captions = texts_in(listed)
    if captions:
        return captions
    content = content_of(_last(members, "txt", b""))
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
    try:
        media = media_of(members, _endings(PROCESSORS[modality].suffixes))
    except ValueError as error:
        raise BrokenSample(f"{error}", where=where) from error
    if media is None:
        raise BrokenSample(f"{where} has no {modality} file")
    return media


@lru_cache
def _endings(suffixes: frozenset[str]) -> frozenset[str]:
    """File endings without dots."""
    return frozenset(suffix[1:] for suffix in suffixes)


def media_of(members: Members, endings: Collection[str]) -> Any:
    """File of a sample with one of the endings, given without dots; a list if KEY.2.jpg, ... follow KEY.jpg.

    Raises:
        ValueError: one of several files is empty, or a number is missing.
    """
    files = _numbered_files(members, endings)
    if 1 not in files:
        return None
    contents = [files[number] for number in sorted(files)]
    if max(files) != len(files) or not all(contents):
        usable = [str(number) for number in sorted(files) if files[number]]
        raise ValueError(f"only its files {', '.join(usable)} can be used")
    if len(contents) == 1:
        return contents[0]
    return contents


def _numbered_files(members: Members, endings: Collection[str]) -> dict[int, Any]:
    """Files with one of the endings by their number, that of KEY.jpg being 1. Only numbered ones may be empty."""
    files: dict[int, Any] = {}
    for member in sorted(members, key=_name_and_ending):
        name, ending = _name_and_ending(member)
        if ending not in endings or member == MASK:
            continue
        number = 1
        if re.fullmatch("[2-9]", name):
            number = int(name)
        if members[member] or number > 1:
            files.setdefault(number, members[member])
    return files


def _name_and_ending(member: str) -> tuple[str, str]:
    """The parts before and after the last dot: KEY.jpg is sorted before KEY.thumb.jpg."""
    name, _, ending = member.rpartition(".")
    return name, ending


def has_modalities(endings: Collection[str], modalities: Sequence[str]) -> bool:
    """Whether a sample with members of these endings is meant for these modalities.

    False only if it has files of other modalities and none of these, as in shards of several modalities.
    """
    suffixes = {f".{ending.rpartition('.')[2]}" for ending in endings if ending != MASK}
    media_modalities = {*modalities} - {"text"}
    present: set[str] = set()
    for modality, processor in PROCESSORS.items():
        if modality != "text" and processor.suffixes & suffixes:
            present.add(modality)
    return not present or not media_modalities or not present.isdisjoint(media_modalities)
