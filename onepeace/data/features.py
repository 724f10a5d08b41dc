"""Features that a frozen stem gave of training items, once for several augmented views, read from disk as needed.

A folder holds parts: ``part-N.npy``, the tokens of many views one after another (float16), and ``part-N.json``, where
each view lies. A part whose .json is missing was not finished and does not count.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from onepeace.data.sample import Sample, content_of
from onepeace.errors import UserError

T = TypeVar("T")


class View(NamedTuple):
    """One view of an item."""

    part: int
    start: int
    """Its first row in the part."""
    grid: tuple[int, ...]
    """Shape of its feature map without channels."""
    partner: str | None
    """Name of a second item that was mixed into it, or None."""


def item_name(sample: Sample) -> str:
    """What features are filed under: keys alone may come in two sources."""
    return f"{Path(sample.source).name}/{sample.key}"


def by_name(
    samples: Iterable[Sample], name: Callable[[Sample], str], content: Callable[[Sample], T], what: str
) -> dict[str, T]:
    """{name: content} of samples, of which some may be the same in several sources.

    Args:
        name: what something is filed under.
        content: what it is made of, or an `Extent` of it.
        what: is filed, for the message.

    Raises:
        UserError: two samples of one name differ, so that one would get what is of the other.
    """
    found: dict[str, tuple[Sample, T]] = {}
    for sample in samples:
        own = content(sample)
        first, known = found.setdefault(name(sample), (sample, own))
        if own != known and content_of(own) != content_of(known):
            raise UserError(
                f"{first.source} and {sample.source} have different items of one name, {name(sample)}, and {what} are "
                "kept by that name; write the shards of one again with another prefix"
            )
    return {name: own for name, (_, own) in found.items()}


class StemFeatures:
    """The features in a folder, and the samples they are of.

    Runs over other data may share the folder: views of other samples, or with other ones mixed in, do not count.

    Args:
        folder: of the parts.
        samples: all of the modality, to find the captions of those that were mixed into another.
    """

    def __init__(self, folder: Path, samples: Sequence[Sample]):
        self.folder = folder
        self.samples = {item_name(sample): sample for sample in samples}
        self.views: dict[str, list[View]] = {}
        self._parts: dict[int, np.ndarray] = {}
        for path in sorted(folder.glob("part-*.json")):
            part = int(path.stem.removeprefix("part-"))
            for name, start, grid, partner in json.loads(path.read_text()):
                if name in self.samples and (partner is None or partner in self.samples):
                    self.views.setdefault(name, []).append(View(part, start, tuple(grid), partner))

    def draw(self, sample: Sample, rng: np.random.Generator) -> tuple[np.ndarray, Sample | None]:
        """A random view of an item (*grid, channels), and the sample that was mixed into it."""
        views = self.views.get(item_name(sample))
        if not views:
            raise UserError(f"{self.folder}: no features of it; it could not be decoded")
        view = views[int(rng.integers(len(views)))]
        if view.part not in self._parts:
            self._parts[view.part] = np.load(self.folder / f"part-{view.part}.npy", mmap_mode="r")
        rows = self._parts[view.part][view.start : view.start + int(np.prod(view.grid))]
        partner = None if view.partner is None else self.samples[view.partner]
        return rows.reshape(*view.grid, rows.shape[-1]), partner


def collate(maps: list[np.ndarray]) -> dict[str, Tensor]:
    """{"features": (B, *grid, channels)}, and "lengths" (B,) in tokens where sequences differ."""
    tensors = [torch.from_numpy(np.array(one)) for one in maps]
    if len({one.shape for one in maps}) == 1:
        return {"features": torch.stack(tensors)}
    return {
        "features": torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True),
        "lengths": torch.tensor([len(one) for one in maps]),
    }
