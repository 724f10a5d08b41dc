"""The pointing game (Zhang et al., "Top-down neural attention by excitation backprop", arXiv 1608.00507): is the best
place of a map (onepeace/embed/explain.py) on the thing that was asked for?

Sets with boxes are rare, so items of several classes are put together: pictures in a mosaic, sounds one after another.
A phrase names the class of one of them, and the map of the whole has to point at it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from onepeace.data.sample import Sample
from onepeace.errors import UserError
from onepeace.evaluate.metrics import Figure
from onepeace.evaluate.protocols.classes import ClassNames

if TYPE_CHECKING:
    from onepeace.embed.explain import Explanation

SIDE = 2
"""Pictures along a side of a mosaic."""
CLIPS, SECONDS = 3, 5.0
"""Sounds that follow one another, and the length of each: longer ones are cut, shorter ones repeated."""

Region = tuple[float, ...]
"""(x0, y0, x1, y1) from 0 to 1 in a picture, or (start, end) in seconds of a sound."""


@dataclass(frozen=True, kw_only=True)
class Pointing(ClassNames):
    """Share of the maps whose maximum lies in the region; one that is no larger than the rest of the map is a miss."""

    count: int = 300
    """Mosaics, drawn at random but the same each time."""

    def __post_init__(self) -> None:
        if self.modality not in MOSAICS:
            raise UserError(f"modality is {self.modality!r}; maps are of {' and '.join(MOSAICS)}")
        super().__post_init__()
        if self.count < 1:
            raise UserError(f"count is {self.count}; it should be at least 1")

    def run(self, embedder: Any, root: Path) -> list[Figure]:
        samples: dict[str, list[Sample]] = {}
        for sample in self.read_labelled(root):
            samples.setdefault(sample.label, []).append(sample)
        labels, number = sorted(samples), SIDE**2 if self.modality == "image" else CLIPS
        if len(labels) < number:
            raise UserError(f"{self.place}: {len(labels)} classes are too few for mosaics of {number}")
        vectors = torch.from_numpy(self.class_vectors(embedder, labels))
        random, right = np.random.default_rng(0), []
        for _ in range(self.count):
            classes, asked = random.choice(len(labels), number, replace=False), int(random.integers(number))
            drawn = [samples[labels[one]] for one in classes]
            parts = [of_class[random.integers(len(of_class))] for of_class in drawn]
            item, regions = MOSAICS[self.modality](embedder.processors[self.modality], parts)
            try:
                found = embedder.explain({self.modality: item}, vectors[classes[asked]])
            except UserError as error:
                raise UserError(f"{parts[asked].source}: mosaic around {parts[asked].key}: {error}") from error
            right.append(float(points_at(found, regions[asked])))
        return [Figure("pointing", float(np.mean(right)), 1 / number, len(right), tuple(right))]


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


def mosaic_of_pictures(processor: Any, samples: Sequence[Sample]) -> tuple[Any, list[Region]]:
    """A picture of equal fields, row by row, each with a whole picture squeezed into it, and the regions of them."""
    from PIL import Image

    size = (processor.width, processor.height)
    mosaic = Image.new("RGB", (SIDE * size[0], SIDE * size[1]))
    regions: list[Region] = []
    for number, sample in enumerate(samples):
        row, column = divmod(number, SIDE)
        picture = _loaded(processor, "image", sample).resize(size, Image.Resampling.BICUBIC)
        mosaic.paste(picture, (column * size[0], row * size[1]))
        regions.append((column / SIDE, row / SIDE, (column + 1) / SIDE, (row + 1) / SIDE))
    return mosaic, regions


def row_of_sounds(processor: Any, samples: Sequence[Sample]) -> tuple[Any, list[Region]]:
    """A sound of equally long and equally loud clips, and the seconds of each."""
    length, clips = round(SECONDS * processor.sample_rate), []
    for sample in samples:
        clip = _loaded(processor, "audio", sample)
        clip = clip.repeat(-(-length // len(clip)))[:length]
        clips.append(0.1 * clip / clip.square().mean().sqrt().clamp_min(1e-5))
    regions: list[Region] = [(k * SECONDS, (k + 1) * SECONDS) for k in range(len(clips))]
    return (torch.cat(clips), processor.sample_rate), regions


def _loaded(processor: Any, modality: str, sample: Sample) -> Any:
    try:
        return processor.load(sample.inputs[modality])
    except UserError as error:
        raise UserError(f"{sample.source}: {sample.key}: {error}") from error


MOSAICS = {"image": mosaic_of_pictures, "audio": row_of_sounds}
