"""A checkpoint of the original code, understood: its tensors under our names, and the configuration they imply.

Next: `infer`, which reads the configuration off the shapes.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from onepeace.config import Config
from onepeace.errors import UserError
from onepeace.hub.convert.infer import infer_config
from onepeace.hub.convert.keys import to_ours
from onepeace.hub.convert.stored import StoredTensor
from onepeace.hub.convert.unpickle import Record, plain, read_checkpoint

# Networks whose backbone is entangled with parts this library does not have.
FOREIGN = {
    "decode_head": "a segmentation network",
    "backbone.net": "a detection network",
    "roi_heads": "a detection network",
    "T_Adapter": "a video network",
    "temporal_embedding": "a video network",
    "cls_head": "a video network",
}
_ROW = re.compile(r"(.*)\[(\d)\]")


class Source(Protocol):
    """A tensor under our name that is still in a file."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def read(self) -> Tensor: ...


@dataclass(frozen=True)
class Piece:
    """One of our tensors, still in the file: one stored tensor, or several whose values become its rows."""

    sources: tuple[StoredTensor, ...]
    shape: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        return self.sources[0].dtype

    def read(self) -> Tensor:
        tensors = [source.read() for source in self.sources]
        return (tensors[0] if len(tensors) == 1 else torch.stack(tensors)).reshape(self.shape)


@dataclass(frozen=True)
class Original:
    """An original checkpoint."""

    path: Path
    layout: str
    pieces: Mapping[str, Source]
    config: Config

    @classmethod
    def open(cls, path: str | Path) -> "Original":
        """UserError when the file is none, or holds tensors this library has no place for (they are named)."""
        path = Path(path)
        cfg, tensors = read_original(path)
        pieces = place(path, tensors)
        config = infer_config(path, {name: piece.shape for name, piece in pieces.items()}, cfg or {})
        return cls(path, _layout(cfg, config), pieces, config)


def read_original(path: str | Path) -> tuple[dict[str, Any] | None, dict[str, StoredTensor]]:
    """The trainer's configuration (None if the file has none) and the tensors by their original names, unread."""
    path = Path(path)
    content = read_checkpoint(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not the dictionary of a checkpoint")
    state = content.get("model", content.get("state_dict", content))
    if not isinstance(state, dict) or not any(isinstance(value, StoredTensor) for value in state.values()):
        raise UserError(f"{path}: holds no weights; its entries are {', '.join(map(str, list(content)[:8])) or 'none'}")
    strangers = {name: value for name, value in state.items() if not isinstance(value, StoredTensor)}
    if strangers:
        name, value = next(iter(strangers.items()))
        kind = value.name if isinstance(value, Record) else type(value).__name__
        raise UserError(f"{path}: {len(strangers)} of its weights are no tensors ({name} is {kind})")
    cfg = next((plain(content[key]) for key in ("cfg", "args") if state is not content and content.get(key)), None)
    return cfg if isinstance(cfg, dict) else None, {str(name): tensor for name, tensor in state.items()}


def place(path: Path, tensors: Mapping[str, StoredTensor]) -> dict[str, Piece]:
    """Every tensor under our name. UserError for what the key table does not know."""
    sources: dict[str, dict[int, StoredTensor]] = {}
    origin: dict[str, str] = {}
    left = []
    for theirs, tensor in tensors.items():
        try:
            ours = to_ours(theirs)
        except LookupError:
            left.append(theirs)
            continue
        if ours is None:
            continue
        if ours in origin:
            raise UserError(f"{path}: {origin[ours]} and {theirs} are both {ours}")
        origin[ours] = theirs
        row = _ROW.fullmatch(ours)
        name, index = (row[1], int(row[2])) if row else (ours, 0)
        sources.setdefault(name, {})[index] = tensor
    if left:
        kind = next((text for mark, text in FOREIGN.items() if any(mark in name for name in left)), None)
        what = f"; this is {kind}, which is not supported" if kind else ""
        names = f"{', '.join(left[:4])}{', ...' if len(left) > 4 else ''}"
        raise UserError(f"{path}: {len(left)} of {len(tensors)} tensors have no place here ({names}){what}")
    return {name: _piece(name, rows) for name, rows in sources.items()}


def _piece(name: str, rows: Mapping[int, StoredTensor]) -> Piece:
    tensors = tuple(rows[index] for index in sorted(rows))
    shape = tensors[0].shape
    if name.endswith(".type_embed"):
        shape = (len(tensors), shape[-1])
    elif name == "heads.classifier.pool.q":
        shape = shape[-2:]
    return Piece(tensors, shape)


def _layout(cfg: dict[str, Any] | None, config: Config) -> str:
    model = config.model
    if model.decoder:
        kind = "pretraining checkpoint with decoder"
    elif model.heads:
        kind = "fine-tuned classifier"
    else:
        kind = "encoder with projections" if model.projections else "encoder"
    return f"{kind}, original layout{'' if cfg else ' without cfg'}"
