"""The weights of a model folder: safetensors files, read tensor by tensor and written file by file.

Weights above `SHARD_BYTES` are split into several files with an index, in Hugging Face's layout. Writing holds one file
in memory at a time.
"""

import errno
import json
import math
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from onepeace.errors import UserError, one_line
from onepeace.files.atomic import sync
from onepeace.hub.folder import INDEX, check_content

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
