"""Description of an original checkpoint: its tensors by our names, and the configuration inferred from them."""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from onepeace.errors import UserError
from onepeace.hub.architectures import ARCHITECTURES, Conversion
from onepeace.hub.convert.unpickle import InertObject, StoredTensor, plain, read_checkpoint
from onepeace.hub.tensors import LazyTensor
from onepeace.hub.weights import Description

_ROW = re.compile(r"(.*)\[(\d+)\]")


class Original(NamedTuple):
    """Content of a checkpoint file: unread tensors by their original names."""

    cfg: dict[str, Any] | None
    """The trainer's configuration; None if the file has none."""
    tensors: dict[str, StoredTensor]
    average: dict[str, StoredTensor]
    """Moving average of the weights (fairseq's EMA); {} if the file has none."""


def describe_original(path: Path) -> Description:
    """Describe a checkpoint file. UserError if it is not a checkpoint, or contains unknown tensors."""
    found = read_original(path)
    conversion = _conversion(found.tensors)
    averaged = conversion.has_average and bool(found.average)
    layout = "original layout" if found.cfg else "original layout without cfg"
    placed = place(path, found.average if averaged else found.tensors, conversion)
    config = conversion.infer_config(path, {name: tensor.shape for name, tensor in placed.items()}, found.cfg or {})
    more = ", moving average of the weights" if averaged else ""
    return Description(path, f"{layout}{more}", config, placed)


def read_original(path: Path) -> Original:
    """Read a checkpoint file. UserError if it is not a checkpoint."""
    content = read_checkpoint(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not the dictionary of a checkpoint")
    state = content.get("model", content.get("state_dict", content))
    if not isinstance(state, dict) or not any(isinstance(value, StoredTensor) for value in state.values()):
        raise UserError(f"{path}: holds no weights; its entries are {', '.join(map(str, list(content)[:8])) or 'none'}")
    others = {name: value for name, value in state.items() if not isinstance(value, StoredTensor)}
    if others:
        name, value = next(iter(others.items()))
        kind = value.name if isinstance(value, InertObject) else type(value).__name__
        raise UserError(f"{path}: {len(others)} of its weights are not tensors ({name} is {kind})")
    cfg = next((plain(content[key]) for key in ("cfg", "args") if state is not content and content.get(key)), None)
    average = content.get("extra_state") if state is not content else None
    average = average.get("ema") if isinstance(average, dict) else None
    kept = {str(name): value for name, value in (average or {}).items() if isinstance(value, StoredTensor)}
    return Original(cfg if isinstance(cfg, dict) else None, {str(name): tensor for name, tensor in state.items()}, kept)


def _conversion(names: Mapping[str, object]) -> Conversion:
    """Conversion of the architecture whose key map contains most of these names."""
    known = [entry.conversion for entry in ARCHITECTURES.values() if entry.conversion is not None]
    return max(known, key=lambda conversion: sum(_translate(conversion, name)[1] for name in names))


def _translate(conversion: Conversion, name: str) -> tuple[str | None, bool]:
    """Our name of a tensor, None if it is dropped, and whether the key map contains it."""
    try:
        return conversion.to_ours(name), True
    except LookupError:
        return None, False


def place(path: Path, tensors: Mapping[str, StoredTensor], conversion: Conversion) -> dict[str, LazyTensor]:
    """Translate the names of all tensors to ours. UserError for names that are not in the key map."""
    sources: dict[str, dict[int, StoredTensor]] = {}
    origin: dict[str, str] = {}
    left = []
    for theirs, tensor in tensors.items():
        ours, known = _translate(conversion, theirs)
        if not known:
            left.append(theirs)
        if ours is None:
            continue
        if ours in origin:
            raise UserError(f"{path}: {origin[ours]} and {theirs} are both {ours}")
        origin[ours] = theirs
        row = _ROW.fullmatch(ours)
        # -1: a whole tensor, not a row.
        name, index = (row[1], int(row[2])) if row else (ours, -1)
        sources.setdefault(name, {})[index] = tensor
    if left:
        names = f"{', '.join(left[:4])}{', ...' if len(left) > 4 else ''}"
        raise UserError(f"{path}: {len(left)} of {len(tensors)} tensors have no place here ({names})")
    return {name: _assembled(rows, conversion.kept_axes.get(name)) for name, rows in sources.items()}


def _assembled(rows: Mapping[int, StoredTensor], kept_axes: int | None) -> LazyTensor:
    """One of our tensors: one stored tensor, or several whose values become its rows."""
    tensors = [rows[index] for index in sorted(rows)]
    shape = tensors[0].shape
    if -1 not in rows:
        shape = (len(tensors), shape[-1])
    elif kept_axes is not None:
        shape = shape[-kept_axes:]
    return LazyTensor(shape, tensors[0].dtype, partial(_read, tensors, shape))


def _read(tensors: list[StoredTensor], shape: tuple[int, ...]) -> Tensor:
    read = [tensor.read() for tensor in tensors]
    return (read[0] if len(read) == 1 else torch.stack(read)).reshape(shape)
