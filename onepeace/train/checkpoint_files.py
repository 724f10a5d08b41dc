"""Folders of checkpoints: their header with a digest of each file, which are whole, which are kept.

A checkpoint is a folder ``step-00001000`` with safetensors files and checkpoint.json. It is written under a hidden name
and renamed when it is complete on the disk, so that a crash leaves the checkpoints before it. Nothing is pickled.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onepeace.data.reader import Cursor
from onepeace.errors import UserError
from onepeace.files.atomic import sync

HEADER = "checkpoint.json"
NAME = re.compile(r"step-(\d+)")
DIGEST = "blake2b"
BLOCK = 1 << 22
"""Bytes that are read at a time for a digest."""


@dataclass(frozen=True)
class Header:
    """What a checkpoint holds beside tensors."""

    step: int
    """Number of updates done."""
    recipe: str
    """The resolved recipe as YAML."""
    cursors: Mapping[str, Cursor]
    """Position in the data, by name of sources."""
    optimizer: Mapping[str, Any]
    """Numbers of the optimizer (`onepeace.train.checkpoint.optimizer_numbers`)."""
    digests: Mapping[str, str]
    """blake2b of each file with tensors, by file name."""


def folder_of(out: Path, step: int) -> Path:
    """Folder of the checkpoint of a step."""
    return out / f"step-{step:08d}"


def unfinished(folder: Path) -> Path:
    """Folder in which a checkpoint is written, or from which it is removed."""
    return folder.with_name(f".{folder.name}.tmp")


def step_of(folder: Path) -> int:
    """The number in a checkpoint's name."""
    return int(folder.name.removeprefix("step-"))


def folders(out: str | Path) -> list[Path]:
    """The checkpoints of a run, whole or damaged, oldest first."""
    checkpoints = [path for path in Path(out).glob("step-*") if NAME.fullmatch(path.name)]
    return sorted(checkpoints, key=step_of)


def digest_of(path: Path) -> str:
    """Hexadecimal blake2b of a file, as `b2sum` prints it."""
    digest = hashlib.blake2b()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(BLOCK), b""):
            digest.update(block)
    return digest.hexdigest()


def write_header(folder: Path, header: Header) -> None:
    """Write checkpoint.json, with a digest of itself."""
    content = asdict(header)
    text = json.dumps({DIGEST: _digest_of_content(content), **content}, indent=1)
    path = folder / HEADER
    path.write_text(text, encoding="utf-8")
    sync(path)


def read_header(folder: Path) -> Header:
    """Read checkpoint.json; UserError if it is missing, damaged or that of another step."""
    path = folder / HEADER
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        digest = content.pop(DIGEST)
        header = Header(**content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"not a complete checkpoint ({HEADER}: {error})", where=folder) from error
    if digest != _digest_of_content(content):
        raise UserError(f"not a complete checkpoint ({HEADER} was changed)", where=folder)
    if header.step != step_of(folder):
        raise UserError(f"is the checkpoint of step {header.step}, renamed", where=folder)
    return header


def _digest_of_content(content: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_files(folder: Path, header: Header, names: Iterable[str]) -> None:
    """Compare files with their digests; UserError if one is missing or changed, or belongs to another checkpoint."""
    for path in sorted(folder.glob("*.safetensors")):
        if path.name not in header.digests:
            raise UserError("does not belong to this checkpoint", where=path)
    for name in names:
        path = folder / name
        try:
            is_same = digest_of(path) == header.digests[name]
        except OSError as error:
            raise UserError(f"cannot be read ({error.strerror or error})", where=path) from error
        if not is_same:
            raise UserError("damaged, its digest differs", where=path)


def publish(folder: Path) -> None:
    """Give the complete content of ``unfinished(folder)`` its name, on the disk."""
    written = unfinished(folder)
    sync(written)
    if folder.exists():  # it was damaged, or the run would have gone on from it
        shutil.rmtree(folder)
    os.replace(written, folder)
    sync(folder.parent)


def remove(folder: Path) -> None:
    """Remove a checkpoint; if the process is killed during that, what is left is not a checkpoint."""
    hidden = unfinished(folder)
    shutil.rmtree(hidden, ignore_errors=True)
    folder.rename(hidden)
    shutil.rmtree(hidden)


def prune(written: Path, keep: int) -> None:
    """Remove all but ``keep`` checkpoints: the one just written and the newest before it.

    Checkpoints of later steps are removed too: they were damaged, or the run would have resumed from them.
    """
    present = folders(written.parent)
    not_later = [folder for folder in present if step_of(folder) <= step_of(written)]
    for folder in present:
        if folder not in not_later[-keep:]:
            remove(folder)


def remove_unfinished(out: Path) -> None:
    """Remove what a killed run left of a checkpoint that it was writing."""
    for folder in out.glob(".step-*.tmp"):
        shutil.rmtree(folder)


def refuse_earlier_version(out: Path) -> None:
    """UserError if a run was trained with a version that wrote a checkpoint into one file."""
    for path in sorted(out.glob("step-*.safetensors")):
        raise UserError(
            "a checkpoint of an earlier version of onepeace, which this one cannot read; give run.out another "
            "folder, or remove the file to start over",
            where=path,
        )
