"""The pointing game (Zhang et al., "Top-down neural attention by excitation backprop", arXiv 1608.00507): is the best
place of a map (onepeace/embed/explain.py) on the thing that was asked for?

Sets with boxes are rare, so items of several classes are put together: pictures in a mosaic, sounds one after another.
A phrase names the class of one of them, and the map of the whole has to point at it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onepeace.data.sample import Sample
from onepeace.errors import UserError
from onepeace.evaluate.metrics import Figure
from onepeace.evaluate.protocols.classes import ClassNames
from onepeace.evaluate.protocols.protocol import Items, encode

if TYPE_CHECKING:
    from onepeace.embed.explain import Explanation

Region = tuple[float, ...]
"""(x0, y0, x1, y1) from 0 to 1 in a picture, or (start, end) in seconds of a sound."""


class Question(NamedTuple):
    """An item, what is asked for, and where it is."""

    name: str
    item: Any
    query: Tensor
    """(E,)."""
    region: Region
    chance: float
    """Chance that a point anywhere in the item is right."""


@dataclass(frozen=True, kw_only=True)
class Pointing(ClassNames):
    """Share of the maps whose maximum lies in the region; one that is no larger than the rest of the map is a miss."""

    target: str = "label"
    """"label": mosaics of labelled items. "box": pictures with a caption and the box of what it names (RefCOCO)."""
    count: int = 300
    """Mosaics, drawn at random but the same each time; of boxes, the first so many samples."""
    side: int = 2
    """Pictures along a side of a mosaic."""
    clips: int = 3
    """Sounds that follow one another."""
    seconds: float = 5.0
    """Seconds of each clip; longer ones are cut, shorter ones repeated. All are made equally loud."""

    def __post_init__(self) -> None:
        if self.modality not in MOSAICS:
            raise UserError(f"modality is {self.modality!r}; maps are of {' and '.join(MOSAICS)}")
        super().__post_init__()
        if self.target not in ("label", "box"):
            raise UserError(f"target is {self.target!r}; it can be 'label' or 'box'")
        if self.target == "box" and self.modality != "image":
            raise UserError("boxes are of pictures; modality is " + repr(self.modality))
        for name, least in {"count": 1, "side": 2, "clips": 2, "seconds": 0.1}.items():
            if not getattr(self, name) >= least:
                raise UserError(f"{name} is {getattr(self, name)}; it should be at least {least}")

    @property
    def sides(self) -> tuple[Items, ...]:
        return (self.of(self.modality),)

    def run(self, embedder: Any, root: Path) -> list[Figure]:
        questions = self._boxes(embedder, root) if self.target == "box" else self._mosaics(embedder, root)
        right, chances = [], []
        for question in questions:
            try:
                found = embedder.explain({self.modality: question.item}, question.query)
            except UserError as error:
                raise UserError(f"{question.name}: {error}") from error
            right.append(float(points_at(found, question.region)))
            chances.append(question.chance)
        return [Figure("pointing", float(np.mean(right)), float(np.mean(chances)), len(right), tuple(right))]

    def _mosaics(self, embedder: Any, root: Path) -> Iterator[Question]:
        samples: dict[str, list[Sample]] = {}
        for sample in self.read_labelled(root):
            samples.setdefault(sample.label, []).append(sample)
        labels, number = sorted(samples), self.side**2 if self.modality == "image" else self.clips
        if len(labels) < number:
            raise UserError(f"{self.place}: {len(labels)} classes are too few for mosaics of {number}")
        vectors = torch.from_numpy(self.class_vectors(embedder, labels, root))
        random = np.random.default_rng(0)
        for _ in range(self.count):
            classes, asked = random.choice(len(labels), number, replace=False), int(random.integers(number))
            drawn = [samples[labels[one]] for one in classes]
            parts = [of_class[random.integers(len(of_class))] for of_class in drawn]
            item, regions = MOSAICS[self.modality](self, embedder.processors[self.modality], parts)
            name = f"{parts[asked].source}: mosaic around {parts[asked].key}"
            yield Question(name, item, vectors[classes[asked]], regions[asked], 1 / number)

    def _boxes(self, embedder: Any, root: Path) -> Iterator[Question]:
        samples = self.read(root, "text")[: self.count]
        for sample in samples:
            if "box" not in sample.targets:
                raise UserError(f"{sample.source}: {sample.key} has no box among its targets")
        vectors = torch.from_numpy(encode(embedder, "text", [sample.captions[0] for sample in samples]))
        for sample, vector in zip(samples, vectors, strict=True):
            x0, y0, x1, y1 = sample.targets["box"]
            name = f"{sample.source}: {sample.key}"
            yield Question(name, sample.inputs["image"], vector, (x0, y0, x1, y1), (x1 - x0) * (y1 - y0))


def points_at(found: "Explanation", region: Region) -> bool:
    """Whether the largest value of a map lies in the region, and none outside is as large."""
    inside = torch.from_numpy(_inside(found, region))
    values = found.fine
    if not bool(inside.any()):
        return False
    return bool(inside.all()) or bool(values[inside].max() > values[~inside].max())


def _inside(found: "Explanation", region: Region) -> NDArray[np.bool_]:
    """Cells of the fine map that have their middle in the region, bool."""
    if found.values.ndim == 1:
        middles = found.positions.double().mean(dim=1).numpy()
        return (middles >= region[0]) & (middles < region[1])
    (rows, columns), area = found.fine.shape, found.area
    x = area[0] + (area[2] - area[0]) * (np.arange(columns) + 0.5) / columns
    y = area[1] + (area[3] - area[1]) * (np.arange(rows) + 0.5) / rows
    across, down = (x >= region[0]) & (x < region[2]), (y >= region[1]) & (y < region[3])
    return down[:, None] & across[None, :]


def mosaic_of_pictures(options: Pointing, processor: Any, samples: Sequence[Sample]) -> tuple[Any, list[Region]]:
    """A picture of equal fields, row by row, each with a whole picture squeezed into it, and the regions of them."""
    from PIL import Image

    side, size = options.side, (processor.width, processor.height)
    mosaic = Image.new("RGB", (side * size[0], side * size[1]))
    regions: list[Region] = []
    for number, sample in enumerate(samples):
        row, column = divmod(number, side)
        picture = _loaded(processor, "image", sample).resize(size, Image.Resampling.BICUBIC)
        mosaic.paste(picture, (column * size[0], row * size[1]))
        regions.append((column / side, row / side, (column + 1) / side, (row + 1) / side))
    return mosaic, regions


def row_of_sounds(options: Pointing, processor: Any, samples: Sequence[Sample]) -> tuple[Any, list[Region]]:
    """A sound of equally long and equally loud clips, and the seconds of each."""
    length, clips = round(options.seconds * processor.sample_rate), []
    for sample in samples:
        clip = _loaded(processor, "audio", sample)
        clip = clip.repeat(-(-length // len(clip)))[:length]
        clips.append(0.1 * clip / clip.square().mean().sqrt().clamp_min(1e-5))
    regions: list[Region] = [(k * options.seconds, (k + 1) * options.seconds) for k in range(len(clips))]
    return (torch.cat(clips), processor.sample_rate), regions


def _loaded(processor: Any, modality: str, sample: Sample) -> Any:
    try:
        return processor.load(sample.inputs[modality])
    except UserError as error:
        raise UserError(f"{sample.source}: {sample.key}: {error}") from error


MOSAICS = {"image": mosaic_of_pictures, "audio": row_of_sounds}
