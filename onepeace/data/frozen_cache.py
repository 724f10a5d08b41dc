"""Disk cache of the outputs of frozen networks (stems, teachers).

A folder holds parts: ``part-N.npy``, the concatenated rows of many outputs (float16), and ``part-N.json``, the place of
each output. A part without its .json is incomplete and ignored. Several runs may share a folder.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from onepeace.data.sample import Sample, source_states
from onepeace.errors import UserError
from onepeace.files.atomic import write_atomic, write_text_atomic
from onepeace.progress import Progress

log = logging.getLogger(__name__)


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
    """Outputs for items in a folder; outputs with an unknown item mixed in are ignored.

    Args:
        folder: folder for the parts only.
        items: all items by name; outputs for a `Sample` are ignored once its shard has changed.
    """

    def __init__(self, folder: Path, items: Mapping[str, Any]):
        self.folder, self.items = folder, items
        states = source_states({name: item for name, item in items.items() if isinstance(item, Sample)})
        self._kept_as = {name: f"{name}@{state}" for name, state in states.items() if state}
        """Name in the parts, where it differs."""
        self._open: dict[int, np.ndarray] = {}
        self._find()

    def _find(self) -> None:
        self.parts = sorted(int(path.stem.removeprefix("part-")) for path in self.folder.glob("part-*.json"))
        self.places: dict[str, list[Place]] = {}
        own = {self._kept_as.get(name, name): name for name in self.items}
        for number in self.parts:
            for name, start, grid, partner in json.loads((self.folder / f"part-{number}.json").read_text()):
                if name in own and (partner is None or partner in own):
                    place = Place(number, start, tuple(grid), partner and own[partner])
                    self.places.setdefault(own[name], []).append(place)

    @property
    def missing(self) -> list[str]:
        """Names of the items without an output."""
        return [name for name in self.items if name not in self.places]

    def read(self, place: Place) -> np.ndarray:
        """An output (*grid, channels) float16, memory-mapped."""
        if place.part not in self._open:  # per object: the folder may be deleted and filled again
            self._open[place.part] = np.load(self.folder / f"part-{place.part}.npy", mmap_mode="r")
        rows = self._open[place.part][place.start : place.start + int(np.prod(place.grid))]
        return rows.reshape(*place.grid, rows.shape[-1])

    def draw(self, name: str, rng: np.random.Generator) -> tuple[np.ndarray, Any]:
        """A random output of an item (*grid, channels), and the item that was mixed into it, or None."""
        places = self.places.get(name)
        if not places:
            raise UserError(f"{self.folder}: has no features of it, as it could not be decoded")
        place = places[int(rng.integers(len(places)))]
        return self.read(place), None if place.partner is None else self.items[place.partner]

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
            numbers, missing = count(max(self.parts, default=-1) + 1), iter(self.missing)
            with Progress(len(self.missing), "item") as progress:
                while names := list(islice(missing, size)):
                    if outputs := list(compute(names)):
                        self._write(next(numbers), outputs)
                    progress.update(len(names))
            self._find()

    def _write(self, number: int, outputs: Sequence[Output]) -> None:
        """Write a part's two files, the .json last: it marks the part as complete."""
        rows = [values.reshape(-1, values.shape[-1]) for _, values, _ in outputs]
        starts, kept = np.cumsum([0, *map(len, rows)]).tolist(), self._kept_as
        places = [
            (kept.get(name, name), start, list(values.shape[:-1]), partner and kept.get(partner, partner))
            for (name, values, partner), start in zip(outputs, starts, strict=False)
        ]
        with write_atomic(self.folder / f"part-{number}.npy") as temporary, open(temporary, "wb") as file:
            np.save(file, np.concatenate(rows))
        write_text_atomic(self.folder / f"part-{number}.json", json.dumps(places))


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
