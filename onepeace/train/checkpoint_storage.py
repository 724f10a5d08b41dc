"""Storage of torch.distributed.checkpoint in safetensors files; imported where it is used, as torch's takes a second.

torch's default storage unpickles what it reads, its Hugging Face storage reads plain safetensors. Of the latter only
the writing is replaced: ``safetensors.torch.save`` builds a file as bytes while it holds Python's lock (1.9 s for 600
MB), and the training waits; ``save_file`` writes from the tensors without it.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor
from torch.distributed.checkpoint import DefaultSavePlanner
from torch.distributed.checkpoint._hf_utils import CUSTOM_METADATA_KEY, SAVED_OFFSETS_KEY
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.tensor import DTensor
from torch.futures import Future

from onepeace.hub.tensors import save_tensors
from onepeace.train import parallel

Reader = HuggingFaceStorageReader


BLOCK = 1 << 22
"""Bytes that are read at a time for a digest."""


def digest_of(path: Path) -> str:
    """Hexadecimal blake2b of a file, as `b2sum` prints it."""
    digest = hashlib.blake2b()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(BLOCK), b""):
            digest.update(block)
    return digest.hexdigest()


class Planner(DefaultSavePlanner):
    """Lets each of the processes that have the same part of a tensor write some of them.

    In torch's plans all offer all that they have: 325 MB from 512 processes with a model of 4 billion parameters, which
    the first one reads in two minutes, and its training stands still meanwhile; so they are 5 MB. A plan that is as in
    the last checkpoint is not sent again.
    """

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, enable_plan_caching=True)

    def create_local_plan(self) -> SavePlan:
        """The tensors that this process writes; they are dealt out by size, so that all write equally much."""
        plan = super().create_local_plan()
        largest_first = sorted(plan.items, key=_size_and_name)
        own = set()
        for number, item in enumerate(largest_first):
            count, place = _copies(self.state_dict[item.index.fqn])
            if number % count == place:
                own.add(item.index)
        return replace(plan, items=[item for item in plan.items if item.index in own])


def _size_and_name(item: WriteItem) -> tuple[int, str]:
    """Sort key that all processes agree on: the larger tensor first."""
    assert item.tensor_data is not None  # noqa: S101
    return -item.tensor_data.size.numel(), item.index.fqn


def _copies(tensor: Tensor) -> tuple[int, int]:
    """Number of processes that have the same part of a tensor as this one, and its place among them."""
    if not isinstance(tensor, DTensor):
        return parallel.world_size(), parallel.rank()
    count = 1
    place = 0
    coordinates = tensor.device_mesh.get_coordinate() or ()
    for size, coordinate, placement in zip(tensor.device_mesh.shape, coordinates, tensor.placements, strict=True):
        if placement.is_replicate():
            count *= size
            place = place * size + coordinate
    return count, place


class Writer(HuggingFaceStorageWriter):
    """Writes a file from each process.

    Args:
        folder: folder of the files.
        complete: called in the first process when all have written, with the digest of each file by its name.
    """

    def __init__(self, folder: Path, complete: Callable[[Mapping[str, str]], None]) -> None:
        super().__init__(path=str(folder), save_distributed=True)
        self.complete = complete

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> "Future[list[WriteResult]]":
        """Write this process's part; the result holds the file's name and digest."""
        results: Future[list[WriteResult]] = Future()
        if not plan.items:
            results.set_result([])
            return results
        path = Path(self.path) / f"part-{plan.storage_data['shard_index']:05d}.safetensors"
        _write_part(path, plan, planner)
        result = WriteResult(
            index=plan.items[0].index,
            size_in_bytes=path.stat().st_size,
            storage_data=(path.name, digest_of(path)),
        )
        results.set_result([result])
        return results

    def finish(self, metadata: Metadata, results: Sequence[Sequence[WriteResult]]) -> None:
        self.complete(dict(result.storage_data for part in results for result in part))


def _write_part(path: Path, plan: SavePlan, planner: SavePlanner) -> None:
    """Write the tensors of a plan, with the offsets that `Reader` expects.

    Raises:
        OSError: the disk is full or not writable.
    """
    tensors = {}
    offsets = {}
    for item in plan.items:
        name = item.index.fqn
        if name in tensors:
            raise ValueError(f"{name}: two parts of a tensor in one process")
        tensor = planner.resolve_data(item)
        if not isinstance(tensor, Tensor) or item.tensor_data is None:
            raise TypeError(f"{name}: not a tensor, and nothing is pickled")
        tensors[name] = tensor.detach().contiguous()
        offsets[name] = {SAVED_OFFSETS_KEY: list(item.tensor_data.chunk.offsets)}
    save_tensors(tensors, path, {CUSTOM_METADATA_KEY: json.dumps(offsets)})
