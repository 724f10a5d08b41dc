"""The weights of a model folder: safetensors files, read tensor by tensor and written file by file;
and the tensors that a configuration asks for.

Weights above `SHARD_BYTES` are split into several files with an index, in Hugging Face's layout. Writing holds one file
in memory at a time.
"""

import errno
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from onepeace.config import Config, write_config
from onepeace.errors import UserError, one_line
from onepeace.files.atomic import sync
from onepeace.hub.architectures import build_module
from onepeace.hub.folder import CARD, CONFIG, INDEX, check_content
from onepeace.model import Trained

WEIGHTS = "model.safetensors"
TRANSFORMERS_PREFIX = "onepeace."
"""Prefix of parameter names in files that onepeace.plugins.transformers writes."""
SHARD_BYTES = 2 << 30
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Types of numbers by their names in safetensors; whole numbers are buffers, such as counters and tables of places."""


class LazyTensor(NamedTuple):
    """A tensor that is read from a file or computed only when it is needed."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]
    """Returns the tensor; called when it is needed, e.g. when it is written."""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


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


def open_weights(folder: Path) -> dict[str, LazyTensor]:
    """Tensors of a model folder by name, in memory-mapped files. UserError for missing or damaged files."""
    from safetensors import SafetensorError, safe_open

    check_content(folder)
    tensors = {}
    for path in _weight_files(folder):
        if not path.is_file():
            raise UserError("missing; the model folder is incomplete, copy or convert it again", where=path)
        try:
            file = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise UserError(f"damaged or cut off ({error}); copy or convert it again", where=path) from error
        for name in file.keys():
            header = file.get_slice(name)
            dtype = DTYPES.get(header.get_dtype())
            if dtype is None:
                raise UserError(f"{name} is of {header.get_dtype()}; weights are of {', '.join(DTYPES)}", where=path)
            tensors[name.removeprefix(TRANSFORMERS_PREFIX)] = LazyTensor(
                shape=tuple(header.get_shape()), dtype=dtype, read=partial(file.get_tensor, name)
            )
    return tensors


def _weight_files(folder: Path) -> list[Path]:
    """The files of weights: those that the index names, or the only one. UserError if the index cannot be read."""
    index = folder / INDEX
    if not index.is_file():
        return [folder / WEIGHTS]
    try:
        file_by_tensor = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return [folder / Path(name).name for name in sorted(set(file_by_tensor.values()))]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"not an index of weights ({error})", where=index) from error


def write_weights(folder: Path, entries: Mapping[str, LazyTensor], *, progress: bool = False) -> None:
    """Write model.safetensors, or its shards and their index, into `folder`; OSError if the disk is full."""
    from huggingface_hub import split_state_dict_into_shards_factory
    from tqdm import tqdm

    split = split_state_dict_into_shards_factory(
        dict(entries),
        get_storage_size=lambda entry: entry.nbytes,
        filename_pattern=WEIGHTS.replace(".", "{suffix}.", 1),
        max_shard_size=SHARD_BYTES,
    )
    with tqdm(
        desc="weights",
        total=split.metadata["total_size"],
        unit="B",
        unit_scale=True,
        disable=None if progress else True,  # None: no bar unless stderr is a terminal
    ) as bar:
        for file, names in split.filename_to_tensors.items():
            tensors = {}
            for name in names:
                tensors[name] = entries[name].read().detach().cpu().contiguous()
                bar.update(entries[name].nbytes)
            save_tensors(tensors, folder / file, {"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")


def save_tensors(tensors: Mapping[str, Tensor], path: Path, about: Mapping[str, str]) -> None:
    """Write a new safetensors file, with the permissions of new files, and sync it.

    Raises:
        OSError: the disk is full or not writable.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(dict(tensors), path, dict(about))
    except SafetensorError as error:
        raise OSError(errno.EIO, one_line(error), os.fspath(path)) from error
    path.chmod(mode)  # it is another file, which only its owner may read
    sync(path)


def expected(config: Config, where: str = "") -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a model. UserError, beginning with `where`, if it cannot be built."""
    return shapes_of(build_without_values(config, where))


def shapes_of(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a module."""
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
