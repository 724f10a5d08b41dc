"""The tensors of a checkpoint, whole, however many processes wrote it."""

import warnings
from dataclasses import dataclass

import torch
import torch.distributed.checkpoint as dcp

from onepeace.train.checkpoint import folders, read_header
from onepeace.train.checkpoint_storage import Reader


@dataclass
class Saved:
    step: int
    model: dict
    ema: dict
    optimizer: dict
    """Tensors by name of the parameter, then by field."""


def read_checkpoint(folder):
    reader = Reader(str(folder))
    tensors = {}
    for name, metadata in reader.read_metadata().state_dict_metadata.items():
        tensors[name] = torch.empty(metadata.size, dtype=metadata.properties.dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        dcp.load(tensors, storage_reader=reader, no_dist=True)
    saved = Saved(read_header(folder).step, {}, {}, {})
    for name, tensor in tensors.items():
        part, _, parameter = name.partition(".")
        if part == "optimizer":
            parameter, _, field = parameter.rpartition(".")
            saved.optimizer.setdefault(parameter, {})[field] = tensor
        else:
            getattr(saved, part)[parameter] = tensor
    return saved


def read_newest(out):
    return read_checkpoint(folders(out)[-1])
