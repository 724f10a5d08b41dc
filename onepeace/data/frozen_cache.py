"""Disk cache of the outputs of frozen networks (stems, teachers).

A folder holds parts: ``part-N.npy``, the concatenated rows of many outputs (float16), and ``part-N.json``, the place of
each output. A part without its .json is incomplete and ignored. Several runs may share a folder.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from onepeace.data.sample import Sample, item_name
from onepeace.errors import UserError
from onepeace.files.atomic import write_atomic, write_text_atomic

log = logging.getLogger(__name__)
T = TypeVar("T")


class Place(NamedTuple):
    """Place of an output in the parts."""

    part: int
    start: int
    """First row in the part."""
    grid: tuple[int, ...]
    """Shape of the output without channels."""
    partner: str | None
    """Name of a second item that was mixed into the item, or None."""


class Output(NamedTuple):
    """Output of a network for an item."""

    name: str
    values: np.ndarray
    """(*grid, channels) float16."""
    partner: str | None = None


class FrozenCache:
    """Outputs for the named items in a folder; outputs with an unknown item mixed in are ignored.

    Args:
        folder: folder for the parts only.
        names: names of all items.
    """

    def __init__(self, folder: Path, names: Iterable[str]):
        self.folder, self.names = folder, dict.fromkeys(names)
        self._open: dict[int, np.ndarray] = {}
        self._find()

    def _find(self) -> None:
        self.parts = sorted(int(path.stem.removeprefix("part-")) for path in self.folder.glob("part-*.json"))
        self.places: dict[str, list[Place]] = {}
        for number in self.parts:
            for name, start, grid, partner in json.loads((self.folder / f"part-{number}.json").read_text()):
                if name in self.names and (partner is None or partner in self.names):
                    self.places.setdefault(name, []).append(Place(number, start, tuple(grid), partner))

    @property
    def missing(self) -> list[str]:
        """Names of the items without an output."""
        return [name for name in self.names if name not in self.places]

    def read(self, place: Place) -> np.ndarray:
        """An output (*grid, channels) float16, memory-mapped."""
        if place.part not in self._open:  # per object: the folder may be deleted and filled again
            self._open[place.part] = np.load(self.folder / f"part-{place.part}.npy", mmap_mode="r")
        rows = self._open[place.part][place.start : place.start + int(np.prod(place.grid))]
        return rows.reshape(*place.grid, rows.shape[-1])

    def fill(self, compute: Callable[[list[str]], Iterable[Output]], size: int) -> None:
        """Compute the missing outputs under a lock: other processes wait.

        Args:
            compute: returns the outputs of the named items, any number for each; none for one that cannot be decoded.
            size: items per part, the maximum that is lost if the run is killed.
        """
        from filelock import FileLock

        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".lock"):
            self._find()  # another run may have computed some
            log.warning("%s: computing %d items, once", self.folder, len(self.missing))
            numbers = count(max(self.parts, default=-1) + 1)
            with tqdm(total=len(self.missing), desc=self.folder.name, unit="item") as progress:
                for names in batched(self.missing, size):
                    if outputs := list(compute(names)):
                        self._write(next(numbers), outputs)
                    progress.update(len(names))
            self._find()

    def _write(self, number: int, outputs: Sequence[Output]) -> None:
        """Write a part's two files, the .json last: it marks the part as complete."""
        rows = [values.reshape(-1, values.shape[-1]) for _, values, _ in outputs]
        starts = np.cumsum([0, *map(len, rows)]).tolist()
        places = [
            (name, start, list(values.shape[:-1]), partner)
            for (name, values, partner), start in zip(outputs, starts, strict=False)
        ]
        with write_atomic(self.folder / f"part-{number}.npy") as temporary, open(temporary, "wb") as file:
            np.save(file, np.concatenate(rows))
        write_text_atomic(self.folder / f"part-{number}.json", json.dumps(places))


class StemFeatures(FrozenCache):
    """Features of a frozen stem for augmented views of training items, and the samples of these items."""

    def __init__(self, folder: Path, samples: Iterable[Sample]):
        self.samples = {item_name(sample): sample for sample in samples}
        super().__init__(folder, self.samples)

    def draw(self, sample: Sample, rng: np.random.Generator) -> tuple[np.ndarray, Sample | None]:
        """A random view of an item (*grid, channels), and the sample that was mixed into it."""
        views = self.places.get(item_name(sample))
        if not views:
            raise UserError(f"{self.folder}: has no features of it, as it could not be decoded")
        view = views[int(rng.integers(len(views)))]
        return self.read(view), None if view.partner is None else self.samples[view.partner]


def collate(maps: list[np.ndarray]) -> dict[str, Tensor]:
    """{"features": (B, *grid, channels)}, and "lengths" (B,) in tokens where sequences differ."""
    tensors = [torch.from_numpy(np.array(one)) for one in maps]
    batch = {"features": torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)}
    if len({one.shape for one in maps}) > 1:
        batch["lengths"] = torch.tensor([len(one) for one in maps])
    return batch


def fingerprint(settings: Any, weights: Mapping[str, Tensor] | None = None) -> str:
    """Digest (12 hexadecimal digits) of weights and settings; the latter are encoded by JSON or str."""
    digest = hashlib.sha256()
    for name, tensor in (weights or {}).items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:12]


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of ``size`` items, the last one shorter (itertools.batched of Python 3.12)."""
    rest = iter(items)
    while part := list(islice(rest, size)):
        yield part
