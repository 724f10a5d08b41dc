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
from onepeace.hub.contents import ModelDescription
from onepeace.hub.convert.unpickle import InertObject, plain, read_checkpoint
from onepeace.hub.tensors import LazyTensor

_ROW = re.compile(r"(.*)\[(\d+)\]")
WHOLE = -1
"""Row number of a tensor that is not a row of one of ours."""


class Original(NamedTuple):
    """Content of a checkpoint file: unread tensors by their original names."""

    cfg: dict[str, Any] | None
    """The trainer's configuration; None if the file has none."""
    tensors: dict[str, Tensor]
    average: dict[str, Tensor]
    """Moving average of the weights (fairseq's EMA); {} if the file has none."""


def describe_original(path: Path) -> ModelDescription:
    """Describe a checkpoint file. UserError if it is not a checkpoint, or contains unknown tensors."""
    original = read_original(path)
    conversion = _conversion(original.tensors)
    layout = "original layout"
    if not original.cfg:
        layout += " without cfg"
    stored = original.tensors
    if conversion.has_average and original.average:
        layout += ", moving average of the weights"
        stored = original.average
    tensors = place(path, stored, conversion)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    config = conversion.infer_config(path, shapes, original.cfg or {})
    return ModelDescription(path, layout, config, tensors)


def read_original(path: Path) -> Original:
    """Read a checkpoint file. UserError if it is not a checkpoint."""
    content = read_checkpoint(path)
    if not isinstance(content, dict):
        raise UserError(f"holds a {type(content).__name__}, not the dictionary of a checkpoint", where=path)
    state = content.get("model", content.get("state_dict", content))
    if not isinstance(state, dict) or not _tensors_in(state):
        entries = ", ".join(map(str, list(content)[:8])) or "none"
        raise UserError(f"holds no weights; its entries are {entries}", where=path)
    non_tensors = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
    for name, value in non_tensors.items():
        type_name = value.name if isinstance(value, InertObject) else type(value).__name__
        raise UserError(f"{len(non_tensors)} of its weights are not tensors ({name} is {type_name})", where=path)
    around = content if state is not content else {}
    return Original(cfg=_cfg_in(around), tensors=_tensors_in(state), average=_average_in(around))


def _tensors_in(state: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {str(name): value.detach() for name, value in state.items() if isinstance(value, Tensor)}


def _cfg_in(content: Mapping[Any, Any]) -> dict[str, Any] | None:
    """The trainer's configuration among the entries of a checkpoint."""
    stored = content.get("cfg") or content.get("args")
    cfg = plain(stored) if stored else None
    return cfg if isinstance(cfg, dict) else None


def _average_in(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The moving average of the weights among the entries of a checkpoint; {} if there is none."""
    extra_state = content.get("extra_state")
    if not isinstance(extra_state, dict):
        return {}
    return _tensors_in(extra_state.get("ema") or {})


def _conversion(names: Mapping[str, object]) -> Conversion:
    """Conversion of the architecture whose key map contains most of these names."""
    conversions = [entry.conversion for entry in ARCHITECTURES.values() if entry.conversion is not None]
    return max(conversions, key=lambda conversion: sum(_translate(conversion, name)[1] for name in names))


def _translate(conversion: Conversion, name: str) -> tuple[str | None, bool]:
    """Our name of a tensor, None if it is dropped, and whether the key map contains it."""
    try:
        return conversion.to_ours(name), True
    except LookupError:
        return None, False


def place(path: Path, tensors: Mapping[str, Tensor], conversion: Conversion) -> dict[str, LazyTensor]:
    """Translate the names of all tensors to ours. UserError for names that are not in the key map."""
    rows_by_name: dict[str, dict[int, Tensor]] = {}
    original_names: dict[str, str] = {}
    unknown = []
    for original_name, tensor in tensors.items():
        name, is_known = _translate(conversion, original_name)
        if not is_known:
            unknown.append(original_name)
        if name is None:
            continue
        if name in original_names:
            raise UserError(f"{original_names[name]} and {original_name} are both {name}", where=path)
        original_names[name] = original_name
        row = _ROW.fullmatch(name)
        if row is None:
            rows_by_name.setdefault(name, {})[WHOLE] = tensor
        else:
            rows_by_name.setdefault(row[1], {})[int(row[2])] = tensor
    if unknown:
        names = f"{', '.join(unknown[:4])}{', ...' if len(unknown) > 4 else ''}"
        raise UserError(f"{len(unknown)} of {len(tensors)} tensors have no place here ({names})", where=path)
    return {name: _assembled(rows, conversion.kept_axes.get(name)) for name, rows in rows_by_name.items()}


def _assembled(rows: Mapping[int, Tensor], kept_axes: int | None) -> LazyTensor:
    """One of our tensors: one stored tensor, or several whose values become its rows."""
    tensors = [rows[index] for index in sorted(rows)]
    shape = tuple(tensors[0].shape)
    if WHOLE not in rows:
        shape = (len(tensors), shape[-1])
    elif kept_axes is not None:
        shape = shape[-kept_axes:]
    return LazyTensor(shape, tensors[0].dtype, partial(_read, tensors, shape))


def _read(tensors: list[Tensor], shape: tuple[int, ...]) -> Tensor:
    whole = tensors[0] if len(tensors) == 1 else torch.stack(tensors)
    return whole.reshape(shape)
