"""Content of a model folder: the tensors that a configuration asks for, compared with those there are, and written."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from onepeace.config import Config, write_config
from onepeace.errors import UserError
from onepeace.hub.architectures import build_module
from onepeace.hub.folder import CARD, CONFIG
from onepeace.hub.tensors import LazyTensor, write_weights
from onepeace.model import Trained

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class ModelDescription:
    """Content of a model folder or a checkpoint, from its headers only."""

    path: Path
    layout: str
    config: Config
    tensors: dict[str, LazyTensor]
    """Unread tensors by our parameter names."""

    @property
    def file_bytes(self) -> int:
        """Size of the file, or of all weights files in the folder."""
        files = [self.path] if self.path.is_file() else self.path.glob("*.safetensors")
        return sum(file.stat().st_size for file in files)

    @property
    def shapes(self) -> Shapes:
        return {name: tensor.shape for name, tensor in self.tensors.items()}


def expected(config: Config, where: str = "") -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a model. UserError, beginning with `where`, if it cannot be built."""
    module = build_without_values(config, where)
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def compare(where: str, shapes: Shapes, wanted: Shapes) -> None:
    """Raise one UserError for all missing, unexpected and misshapen tensors."""
    missing = [name for name in wanted if name not in shapes]
    unexpected = [name for name in shapes if name not in wanted]
    misshapen = []
    for name in wanted:
        if name in shapes and tuple(shapes[name]) != tuple(wanted[name]):
            misshapen.append(f"{name} is {shapes[name]}, not {wanted[name]}")
    problems = []
    if missing:
        problems.append(f"weights lack {len(missing)} of {len(wanted)} tensors ({_some(missing)})")
    if unexpected:
        problems.append(f"{len(unexpected)} tensors have no place in the model ({_some(unexpected)})")
    if misshapen:
        problems.append(f"{len(misshapen)} tensors have another shape ({_some(misshapen)})")
    if problems:
        raise UserError(f"{'; '.join(problems)}", where=where)


def build_without_values(config: Config, where: str = "") -> Trained:
    """The module of a configuration, on the meta device, where it takes no memory; with initial values if it cannot be
    built there, as when its constructor reads a number from a tensor.

    Raises:
        UserError: as `build_module`.
    """
    try:
        with torch.device("meta"):
            return build_module(config, where)
    except UserError:
        return build_module(config, where)


def cast(tensor: Tensor, dtype: torch.dtype, where: str) -> Tensor:
    """Convert `tensor` to `dtype`; UserError if finite numbers would become infinite (float16 ends at 65504)."""
    result = tensor.to(dtype)
    is_narrower = dtype == torch.float16 and tensor.dtype != dtype
    if is_narrower and result.isinf().any() and not tensor.isinf().any():
        raise UserError(f"has numbers up to {tensor.abs().max():.3g}, too large for float16; use bfloat16", where=where)
    return result


def write_folder(
    folder: Path, entries: Mapping[str, LazyTensor], config: Config, card: str, progress: bool = False
) -> None:
    """Write the files that every model folder has, config.yaml last (see `new_folder`)."""
    write_weights(folder, entries, progress=progress)
    (folder / CARD).write_text(card, encoding="utf-8")
    write_config(config, folder / CONFIG)


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
