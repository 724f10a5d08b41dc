"""Storage of torch.distributed.checkpoint in safetensors files; imported where it is used, as torch's takes a second.

torch's default storage unpickles what it reads, its Hugging Face storage reads plain safetensors. Of the latter only
the writing is replaced: ``safetensors.torch.save`` builds a file as bytes while it holds Python's lock (1.9 s for 600
MB), and the training waits; ``save_file`` writes from the tensors without it.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor
from torch.distributed.checkpoint._hf_utils import CUSTOM_METADATA_KEY, SAVED_OFFSETS_KEY
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from onepeace.hub.tensors import save_tensors
from onepeace.train.checkpoint_files import Header, digest_of, prune, publish, unfinished, write_header

Reader = HuggingFaceStorageReader


class Writer(HuggingFaceStorageWriter):
    """Writes a file from each process; when all are complete, the first process writes the header and renames.

    Args:
        folder: folder of the checkpoint.
        header: its header, still without digests.
        keep: number of checkpoints that are left, with this one.
    """

    def __init__(self, folder: Path, header: Header, keep: int) -> None:
        super().__init__(path=str(unfinished(folder)), save_distributed=True)
        self.folder = folder
        self.header = header
        self.keep = keep

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
        """Complete the checkpoint in the first process, after all have written."""
        digests = dict(result.storage_data for part in results for result in part)
        write_header(unfinished(self.folder), replace(self.header, digests=digests))
        publish(self.folder)
        prune(self.folder, self.keep)


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
