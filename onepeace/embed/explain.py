"""Heat map of a picture or sound: how well each of its tokens matches the vector of a query.

Each token is encoded alone, together with CLS only, through all blocks, the final norm and the projection; its value
is the cosine of that vector with the query's. The stem runs over the whole item first. A picture with few patches is
scaled to a multiple of the model's input size. docs/results/log.md compares this with other maps.
"""

from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from onepeace.embed.items import parts_of
from onepeace.errors import UserError
from onepeace.processors import ImageProcessor
from onepeace.processors.processor import Processor

if TYPE_CHECKING:
    from onepeace.embed.embedder import Embedder
    from onepeace.model import Encoder

FINE = 160
"""Cells along the longer side of the grid in which the peak of a picture is located."""
PATCHES = 8
"""Pictures whose longer side has fewer patches are upscaled by 2 or more, for a finer map."""
TOKENS_AT_ONCE = 256
"""Tokens per forward pass; each is encoded on its own."""


@dataclass(frozen=True)
class Explanation:
    """Heat map of how well the parts of one item match a query."""

    modality: str
    """The item's modality."""
    values: Tensor
    """(rows, columns) for a picture, (frames,) for a sound, float32; larger is a better match."""
    positions: Tensor
    """(L, 2), position of each value in ``unit``; grids are row-major."""
    unit: str
    """As in `onepeace.embed.embedder.Tokens`."""
    similarity: float
    """Cosine of the whole item, or of the best window of a long sound, with the query."""
    area: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    """The part (x0, y0, x1, y1) of a picture that the grid covers, from 0 to 1; not all of it if the model crops."""

    @property
    def peak(self) -> tuple[float, ...]:
        """Position of the best match: (x, y) from 0 to 1 from the upper left corner of a picture, (second,) of a sound.

        For a picture, it is located in the bicubically upscaled map, more finely than the centres of the grid cells.
        """
        if self.values.ndim == 1:
            return (float(self.positions[int(self.values.argmax())].float().mean()),)
        scale = max(1, round(FINE / max(self.values.shape)))
        fine = F.interpolate(self.values[None, None], scale_factor=scale, mode="bicubic")[0, 0]
        rows, columns = fine.shape
        row, column = divmod(int(fine.argmax()), columns)
        x0, y0, x1, y1 = self.area
        return (x0 + (x1 - x0) * (column + 0.5) / columns, y0 + (y1 - y0) * (row + 0.5) / rows)


@torch.no_grad()
def explain(embedder: "Embedder", item: object, vector: Tensor) -> Explanation:
    """Map of how well each part of an item matches the unit vector (E,) of a query; see `Embedder.explain`."""
    parts = parts_of(item, embedder.processors)
    if len(parts) != 1:
        raise UserError(f"one picture or sound is explained at a time, not {' and '.join(key for key, _ in parts)}")
    key, value = parts[0]
    processor, module = embedder.processor(key, projected=True), embedder.module
    values, positions, similarities = [], [], []
    for start, end, sample in processor.windows(value):
        inputs = embedder.inputs(key, [sample])
        similarities.append(float(module({key: inputs})[key][0].float().cpu() @ vector))
        if isinstance(processor, ImageProcessor):
            patches = int(module.adapters[key].token_positions(inputs)[0].amax()) + 1
            larger, scale = copy(processor), -(-PATCHES // patches)
            larger.height, larger.width = scale * processor.height, scale * processor.width
            inputs = embedder.inputs(key, [larger.decode(value)])
        found = _relevance(module, key, inputs, vector)
        covered, unit = processor.token_positions(value) or module.adapters[key].token_positions(inputs)
        if unit == "second":
            # A short sound is repeated; frames after its end are repetitions.
            inside = covered[:, 0] < max(end - start, float(covered[0, 1]))
            found, covered = found[inside], (covered[inside] + start).clamp(max=end)
        values.append(found)
        positions.append(covered)
    return Explanation(key, torch.cat(values), torch.cat(positions), unit, max(similarities), _area(processor, value))


def _relevance(module: "Encoder", key: str, inputs: dict[str, Tensor], vector: Tensor) -> Tensor:
    """Cosine of each token of a single item with a query, on the grid of the stem.

    Args:
        inputs: raw input of the modality, a batch of one.
        vector: (E,) unit vector of the query.
    """
    stem = module.stems({key: inputs})[key]
    count, pooled = stem.tokens.shape[1], None
    if stem.pooled is not None:  # the terms added to CLS if each token were an item
        adapter = module.adapters[key]
        pooled = adapter.pooled(adapter.stem_features(inputs).flatten(0, -2)[:count, None], None)
    found = []
    for rows in torch.arange(count, device=stem.tokens.device).split(TOKENS_AT_ONCE):
        keep = F.pad(rows[:, None] + 1, (1, 0))  # CLS and the token
        tokens, own = stem.tokens.expand(len(keep), -1, -1), None if pooled is None else pooled[rows]
        copies = stem._replace(tokens=tokens, padding_mask=None, pooled=own)  # one item has no padding
        found.append(module.embed(key, module.encode({key: copies}, keep={key: keep})[key]))
    return (torch.cat(found).float().cpu() @ vector).view(stem.grid)


def _area(processor: Processor, value: object) -> tuple[float, float, float, float]:
    """The part of a picture that the model sees; with "crop", the largest central part of its aspect ratio."""
    if not isinstance(processor, ImageProcessor) or processor.resize != "crop":
        return (0.0, 0.0, 1.0, 1.0)
    width, height = processor.size_in_pixels(value)
    ratio = processor.width * height / (processor.height * width)
    x, y = (min(1.0, ratio), min(1.0, 1 / ratio))
    return ((1 - x) / 2, (1 - y) / 2, (1 + x) / 2, (1 + y) / 2)
