"""A teacher's features of a training set, computed once and kept in a file."""

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from onepeace.errors import UserError
from onepeace.files.atomic import write_atomic, write_text_atomic
from onepeace.train.teachers.named import TeacherOptions, make_teacher

log = logging.getLogger(__name__)


class TeacherTable(NamedTuple):
    """A teacher's features of a training set."""

    row: dict[str, int]
    """Row of the table by name of the item: a sample's key, or a caption. Items that cannot be decoded have none."""
    features: Tensor
    """(N, F) float16."""


def cached_features(
    teacher: TeacherOptions,
    names: list[str],
    read: Callable[[str], Any],
    path: Path,
    modality: str,
    batch: int = 64,
    output: str = "features",
) -> TeacherTable:
    """Features of every name, computed once and kept at ``path``.

    Args:
        teacher: from the recipe.
        names: unique names of the items (sample keys, or the captions themselves).
        read: gives the item of a name, as the teacher wants it.
        path: a .safetensors file; its names are stored beside it as .json. Written again if a name is missing. Of items
            that cannot be decoded the row is nan.
        modality: of the items.
        output: features or scores.

    Raises:
        UserError: the file cannot be read, or is of another teacher; or there is no item that can be decoded.
    """
    if not names:
        raise UserError(f"no item of the data has {modality} for the teacher {teacher} to read; see data.train")
    index = path.with_suffix(".json")
    if path.exists() and index.exists():
        _check_teacher(path, str(teacher), modality)
        known = json.loads(index.read_text())
        if set(names) <= set(known):
            return _table(known, load_file(path)["features"])
        log.warning("%s lacks some of the %d items: computing it again", path, len(names))
    encode = make_teacher(teacher, modality, output)
    found: dict[str, Tensor] = {}
    for start in tqdm(range(0, len(names), batch), desc=str(teacher)):
        items = _readable(read, names[start : start + batch], str(teacher))
        found.update(zip(items, encode([*items.values()]).half() if items else (), strict=True))
    if not found:
        raise UserError(f"no item of {modality} can be decoded for the teacher {teacher}; see data.train")
    nothing = torch.full_like(next(iter(found.values())), torch.nan)
    features = torch.stack([found.get(name, nothing) for name in names])
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_atomic(path) as temporary:
        save_file({"features": features}, temporary, metadata={"teacher": str(teacher), "modality": modality})
    write_text_atomic(index, json.dumps(names))  # last: where it is, the features are complete
    return _table(names, features)


def _readable(read: Callable[[str], Any], names: list[str], teacher: str) -> dict[str, Any]:
    """What ``read`` gives of each name; those that cannot be decoded are told and left out."""
    items = {}
    for name in names:
        try:
            items[name] = read(name)
        except UserError as error:
            log.warning("%s cannot be decoded, so the teacher %s says nothing of it: %s", name, teacher, error)
    return items


def _table(names: list[str], features: Tensor) -> TeacherTable:
    nothing = features.isnan().all(1).tolist()
    return TeacherTable({name: i for i, name in enumerate(names) if not nothing[i]}, features)


def file_name(teacher: TeacherOptions) -> str:
    """The teacher's name as a part of a file's name."""
    return re.sub(r"[^\w.-]+", "-", str(teacher))


def _check_teacher(path: Path, teacher: str, modality: str) -> None:
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: not readable as features of a teacher ({error}); remove it, or name another cache"
        ) from error
    whose, of = about.get("teacher"), about.get("modality", modality)  # older files do not say of what
    if whose != teacher:
        raise UserError(f"{path}: features of the teacher {whose}, the recipe asks for {teacher}; name another cache")
    if of != modality:
        raise UserError(f"{path}: the teacher's features of {of}, the recipe asks for {modality}; name another cache")
