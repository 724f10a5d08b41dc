"""Writes safetensors files tensor by tensor, so that saving takes the memory of one tensor.

The safetensors package wants all tensors of a file in memory at once. The format is simple enough to stream: eight
bytes with the length of a JSON header, the header, the numbers (https://github.com/huggingface/safetensors). Above
`SHARD_BYTES` the weights are spread over several files with an index, as Hugging Face lays them out.
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from onepeace.files.atomic import sync

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 2 << 30
DTYPE_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


class LazyTensor(NamedTuple):
    """A tensor that is not in memory yet: still in a file, or to be computed."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]
    """Called once, when its turn to be written comes."""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_weights(folder: Path, entries: Mapping[str, LazyTensor], *, progress: bool = False) -> None:
    """Write model.safetensors, or its shards and their index, into `folder`."""
    from tqdm import tqdm

    shards = _split(entries)
    total = sum(entry.nbytes for entry in entries.values())
    # disable=None: no bar unless stderr is a terminal.
    with tqdm(total=total, unit="B", unit_scale=True, desc="weights", disable=None if progress else True) as bar:
        if len(shards) == 1:
            _write(folder / WEIGHTS, shards[0], bar)
            return
        files = {}
        for number, shard in enumerate(shards, start=1):
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            _write(folder / name, shard, bar)
            files.update(dict.fromkeys(shard, name))
    index = {"metadata": {"total_size": total}, "weight_map": files}
    (folder / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")


def _split(entries: Mapping[str, LazyTensor]) -> list[dict[str, LazyTensor]]:
    shards: list[dict[str, LazyTensor]] = [{}]
    size = 0
    for name, entry in entries.items():
        if size and size + entry.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = entry
        size += entry.nbytes
    return shards


def _write(path: Path, entries: Mapping[str, LazyTensor], bar: Any) -> None:
    # Wide numbers first: then each tensor begins at a multiple of its own item size.
    ordered = sorted(entries.items(), key=lambda item: -item[1].dtype.itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, entry in ordered:
        start, end = end, end + entry.nbytes
        dtype = DTYPE_NAMES[entry.dtype]
        header[name] = {"dtype": dtype, "shape": list(entry.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, entry in ordered:
            tensor = entry.read()
            if tensor.dtype != entry.dtype or tuple(tensor.shape) != entry.shape:
                announced = f"{entry.dtype} {entry.shape}"
                raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, announced was {announced}")
            file.write(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
            bar.update(entry.nbytes)
    sync(path)
