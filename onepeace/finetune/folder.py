"""The folder of a fine-tuning: what is in it, and how it is cleared without touching anything else."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from onepeace.errors import UsageError
from onepeace.files.globs import Globs
from onepeace.files.lock import LOCK

IDENTITY = "finetune.json"
FIELDS = ("source", "columns", "split", "model", "set", "group", "compare")
"""Fields of `IDENTITY` that must be the same for a call to resume."""
RECIPE = "settings.json"
"""The recipe of a training method."""
FROZEN = "frozen"
"""Folder of the outputs of frozen stems, which all methods share."""
WRITTEN = """
/finetune.json
/data/parts.json
/data/*/*.tar
/data/*/.shards-*
/data/*/.*.ready
/data/*/.*.moving
/frozen/*/part-*
settings.json
average.json
before.jsonl
after.jsonl
report.html
recipe.yaml
log.jsonl
events.out.tfevents.*
tasks.yaml
tokenizer.json
step-*
.lock
.*.tmp
**/adapter/adapter_*
**/adapter/README.md
**/model/SHA256SUMS
**/model/config.yaml
**/model/MODEL_CARD.md
**/model/model.safetensors.index.json
**/model/*.safetensors
**/tuned/SHA256SUMS
**/tuned/config.yaml
**/tuned/MODEL_CARD.md
**/tuned/model.safetensors.index.json
**/tuned/*.safetensors
"""
"""Files that a fine-tuning writes, as lines of a .gitignore file."""


def method_folder(out: Path, method: str) -> Path:
    """The folder of a training method: that of the fine-tuning if only one ("") is used, else one in it."""
    return out / method if method else out


def check_is_fine_tuning(out: Path) -> None:
    """Raise `UsageError` if there is something in a folder that is not a fine-tuning."""
    read_identity(out)


def read_identity(out: Path) -> dict[str, Any] | None:
    """What the fine-tuning in a folder is of; None if the folder is new or empty.

    Raises:
        UsageError: there is something else in the folder.
    """
    if out.exists() and not out.is_dir():
        raise UsageError("is a file; name a folder", where=out)
    if not out.exists() or set(os.listdir(out)) <= {LOCK}:
        return None
    try:
        identity = json.loads((out / IDENTITY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        identity = None
    if not isinstance(identity, dict) or not set(FIELDS) <= identity.keys():
        raise UsageError(
            f"holds no {IDENTITY} of a fine-tuning, so it will not be replaced; name another folder", where=out
        )
    return identity


def check_same(
    out: Path,
    earlier: Mapping[str, Any],
    identity: Mapping[str, Any],
) -> None:
    """Raise `UsageError` if the fine-tuning in a folder has another source, model or option than this call."""
    for field in FIELDS:
        if earlier[field] != identity[field]:
            held = _described(field, earlier, identity)
            remedy = "give the same, choose another name, or overwrite it with --force"
            raise UsageError(f"holds a fine-tuning with {held}; {remedy}", where=out)


def _described(
    field: str,
    earlier: Mapping[str, Any],
    identity: Mapping[str, Any],
) -> str:
    """The value of a field of the earlier fine-tuning, as typed on the command line."""
    value = earlier[field]
    if field == "source":
        return f"the SOURCE {value}"
    if field == "columns":
        return " ".join(f"--column {key}={name}" for key, name in value.items()) or "no --column"
    if field == "model":
        return f"--model {earlier.get('name')} ({value}, not {identity['model']})"
    if field == "set":
        return " ".join(value or ["no a.b=value"])
    if not value:
        return f"no --{field}"
    if field == "compare":
        return "--compare"
    return f"--{field} {value!r}" if field == "group" else f"--{field} {value}"


def check_only_ours(out: Path) -> None:
    """Raise `UsageError` if a folder has a file that no fine-tuning writes."""
    written = Globs(WRITTEN.splitlines(), IDENTITY)
    for path in _files(out):
        if not written.matches(path.relative_to(out).as_posix()):
            raise UsageError("not a file of the fine-tuning; --force would delete it, so move it elsewhere", where=path)


def clear(out: Path) -> None:
    """Delete all that fine-tunings write from a folder but its lock, if nothing else is in it (`check_only_ours`)."""
    check_only_ours(out)
    for path in out.iterdir():
        if path.name == LOCK:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _files(folder: Path) -> Iterator[Path]:
    """All files at and below a folder; links count as files."""
    for parent, subfolders, names in os.walk(folder):
        for name in names:
            yield Path(parent, name)
        for name in subfolders:
            path = Path(parent, name)
            if path.is_symlink():
                yield path
