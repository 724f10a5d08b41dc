"""Disk cache of the outputs of frozen networks (stems, teachers).

A folder holds parts, ``part-N``: derived files (`onepeace.files.derived`) with the concatenated rows of many outputs
(float16), and the place of each output. Several runs may share a folder.
"""

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor

from onepeace.data.sample import Sample
from onepeace.errors import UserError
from onepeace.files.atomic import remove_unfinished
from onepeace.files.derived import Derived, read_derived, write_derived

if TYPE_CHECKING:
    from filelock import BaseFileLock

log = logging.getLogger(__name__)


def source_states(items: Mapping[str, Sample]) -> dict[str, str]:
    """Size and modification time of the file that each sample is from, by name; "" for an address."""
    state_by_source: dict[str, str] = {}
    for source in {sample.source for sample in items.values()}:
        with suppress(OSError):
            status = os.stat(source)
            state_by_source[source] = f"{status.st_size}-{status.st_mtime_ns}"
    return {name: state_by_source.get(sample.source, "") for name, sample in items.items()}


def key_of(sample: Sample) -> str:
    """Name of an item that all sources of a sample have in common."""
    return sample.key


def by_name(
    samples: Iterable[Sample],
    modality: str,
    what: str,
    name: Callable[[Sample], str] = key_of,
) -> dict[str, Sample]:
    """Samples by name; a sample may occur in several sources.

    Args:
        what: description of the data stored by name, for the message.

    Raises:
        UserError: two samples with the same name have different inputs of the modality.
    """
    samples_by_name: dict[str, Sample] = {}
    for sample in samples:
        first = samples_by_name.setdefault(name(sample), sample)
        if first.inputs[modality] == sample.inputs[modality]:
            continue
        if first.read(modality) != sample.read(modality):
            raise UserError(
                f"{first.source} and {sample.source} have different items of one name, {name(sample)}, and {what} are "
                "kept by that name; write the shards of one again with another prefix"
            )
    return samples_by_name


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
        self.folder = folder
        self.items = items
        self._stored_names: dict[str, str] = {}
        """Name in the parts, where it differs from that of the item."""
        samples = {name: item for name, item in items.items() if isinstance(item, Sample)}
        for name, state in source_states(samples).items():
            if state:
                self._stored_names[name] = f"{name}@{state}"
        self._arrays: dict[int, np.ndarray] = {}
        """Memory-mapped parts."""
        self.refresh()

    def refresh(self) -> None:
        """Look for parts in the folder."""
        self.parts: list[int] = []
        for path in self.folder.glob("part-*"):
            if path.name.removeprefix("part-").isdecimal():
                self.parts.append(int(path.name.removeprefix("part-")))
        self.parts.sort()
        self.places: dict[str, list[Place]] = {}
        item_names = {self._stored_name(name): name for name in self.items}
        for part in self.parts:
            content = self._open(part)
            for stored_name, start, grid, stored_partner in content.about if content else []:
                partner = item_names.get(stored_partner)
                lacks_partner = stored_partner is not None and partner is None
                if stored_name not in item_names or lacks_partner:
                    continue
                place = Place(part, start, tuple(grid), partner)
                name = item_names[stored_name]
                self.places.setdefault(name, []).append(place)

    def remove_damaged(self, parts: Iterable[int]) -> None:
        """Read all of some parts, and remove those that are not as they were written."""
        for part in parts:
            if read_derived(self._path(part), self.folder.name) is None:
                log.warning("%s: damaged; its outputs are computed again", self._path(part))
                self._path(part).unlink(missing_ok=True)

    def _path(self, part: int) -> Path:
        return self.folder / f"part-{part}"

    def _open(self, part: int) -> Derived | None:
        return read_derived(self._path(part), self.folder.name, checked=False)

    def _stored_name(self, name: str) -> str:
        return self._stored_names.get(name, name)

    @property
    def missing(self) -> list[str]:
        """Names of the items without an output."""
        return [name for name in self.items if name not in self.places]

    def read(self, place: Place) -> np.ndarray:
        """An output (*grid, channels) float16, memory-mapped."""
        if place.part not in self._arrays:  # per object: the folder may be deleted and filled again
            content = self._open(place.part)
            if content is None:
                raise UserError("was removed or replaced while it was read", where=self._path(place.part))
            self._arrays[place.part] = content.arrays["rows"]
        end = place.start + math.prod(place.grid)
        rows = self._arrays[place.part][place.start : end]
        return rows.reshape(*place.grid, rows.shape[-1])

    def draw(self, name: str, rng: np.random.Generator) -> tuple[np.ndarray, Any]:
        """A random output of an item (*grid, channels), and the item that was mixed into it, or None."""
        places = self.places.get(name)
        if not places:
            raise UserError("has no features of it, as it could not be decoded", where=self.folder)
        place = places[int(rng.integers(len(places)))]
        partner = None
        if place.partner is not None:
            partner = self.items[place.partner]
        return self.read(place), partner

    def lock(self) -> "BaseFileLock":
        """Lock of the folder, held while parts are added."""
        from filelock import FileLock

        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / ".lock")

    def write(self, part: int, outputs: Sequence[Output]) -> None:
        """Write a part.

        Args:
            part: number of the part, which does not exist yet.
            outputs: one output or more, any number for an item.
        """
        rows: list[np.ndarray] = []
        entries: list[tuple[Any, ...]] = []
        start = 0
        for output in outputs:
            *grid, channels = output.values.shape
            partner = None
            if output.partner is not None:
                partner = self._stored_name(output.partner)
            name = self._stored_name(output.name)
            entries.append((name, start, grid, partner))
            rows.append(output.values.reshape(-1, channels))
            start += len(rows[-1])
        remove_unfinished(self._path(part))
        write_derived(self._path(part), self.folder.name, {"rows": np.concatenate(rows)}, entries)


def fingerprint(settings: Any, weights: Mapping[str, Tensor] | None = None) -> str:
    """Digest (12 hexadecimal digits) of weights and settings; the latter are encoded by JSON or str."""
    digest = hashlib.sha256()
    for name, tensor in (weights or {}).items():
        digest.update(name.encode())
        values = tensor.detach().cpu().float().contiguous()
        digest.update(values.numpy().tobytes())
    text = json.dumps(settings, sort_keys=True, default=str)
    digest.update(text.encode())
    return digest.hexdigest()[:12]
