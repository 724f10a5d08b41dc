"""A tensor that is still in a checkpoint file: `unpickle` finds it, `convert` reads it when its turn comes."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from onepeace.errors import UserError


@dataclass
class Storage:
    """A run of `size` numbers in the file; `offset` (bytes) is -1 until the file has told where it begins."""

    dtype: torch.dtype
    size: int
    offset: int = -1


@dataclass(frozen=True)
class StoredTensor:
    """A tensor still in its file; `read` fetches it."""

    path: Path
    storage: Storage
    start: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        return self.storage.dtype

    def read(self) -> Tensor:
        """The tensor, contiguous, in memory of its own."""
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=self.dtype)
        # Only the numbers between the tensor's first and last are read, not the whole storage.
        span = 1 + sum((length - 1) * step for length, step in zip(self.shape, self.stride, strict=True))
        numbers = torch.empty(span, dtype=self.dtype)
        with open(self.path, "rb") as file:
            file.seek(self.storage.offset + self.start * self.dtype.itemsize)
            if file.readinto(numbers.view(torch.uint8).numpy().data) != numbers.nbytes:
                raise UserError(f"{self.path}: the file ended inside a tensor; it was cut off while reading")
        return numbers.as_strided(self.shape, self.stride).contiguous()

    def check(self, file_size: int) -> None:
        """ValueError when the tensor's place is not inside its storage and the file."""
        if self.storage.offset < 0:
            raise ValueError("a tensor has no data")
        if len(self.shape) != len(self.stride) or min(self.shape + self.stride + (self.start,), default=0) < 0:
            raise ValueError(f"a tensor has shape {self.shape} and stride {self.stride}")
        last = self.start + sum((length - 1) * step for length, step in zip(self.shape, self.stride, strict=True))
        end = self.storage.offset + self.storage.size * self.dtype.itemsize
        if 0 not in self.shape and max(last + 1, math.prod(self.shape)) > self.storage.size:
            raise ValueError(f"a tensor of shape {self.shape} is larger than its storage of {self.storage.size}")
        if end > file_size:
            raise ValueError(f"tensor data should reach byte {end}, the file has {file_size}; it is cut off")
