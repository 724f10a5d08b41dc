"""Tokens of one item: their features, and a heat map of how well each matches the vector of a query.

For the map, each token is encoded alone, together with CLS only, through all blocks, the final norm and the projection;
its value is the cosine of that vector with the query's. The stem runs over the whole item first. A picture with few
patches is scaled to a multiple of the model's input size. docs/results/log.md compares this with other maps.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from onepeace.embed.base import LoadedModel
from onepeace.embed.items import parts_of
from onepeace.errors import UserError, expect
from onepeace.processors import ImageProcessor
from onepeace.processors.processor import Processor

if TYPE_CHECKING:
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
    """As in `Tokens`."""
    similarity: float
    """Cosine of the whole item, or of the best window of a long sound, with the query."""
    area: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    """The part (x0, y0, x1, y1) of a picture that the grid covers: (0, 0, 1, 1) is all of it, less if the model crops,
    and more if it adds margins."""

    @property
    def peak(self) -> tuple[float, ...]:
        """Position of the best match: (x, y) from 0 to 1 from the upper left corner of a picture, (second,) of a sound.

        For a picture, it is located in the bicubically upscaled map, more finely than the centres of the grid cells.
        """
        if self.values.ndim == 1:
            best = int(self.values.argmax())
            return (float(self.positions[best].float().mean()),)
        scale = max(1, round(FINE / max(self.values.shape)))
        fine = F.interpolate(self.values[None, None], scale_factor=scale, mode="bicubic")[0, 0]
        rows, columns = fine.shape
        x0, y0, x1, y1 = self.area
        x = x0 + (x1 - x0) * (torch.arange(columns) + 0.5) / columns
        y = y0 + (y1 - y0) * (torch.arange(rows) + 0.5) / rows
        is_margin = ((y < 0) | (y > 1))[:, None] | (x < 0) | (x > 1)
        row, column = divmod(int(fine.masked_fill(is_margin, -torch.inf).argmax()), columns)
        return (float(x[column]), float(y[row]))


class Tokens(NamedTuple):
    """Token features of one modality from a joint pass of all given modalities."""

    cls: Tensor
    """(D,) float32: the CLS token."""
    features: Tensor
    """(L, D) float32, without the CLS token."""
    positions: Tensor
    """(L, 2): the extent that each token covers, in `unit`."""
    unit: str
    """"patch": row and column; "second": start and end; "character": start and end in the text after
    `onepeace.processors.TextProcessor.prepare`; "token" (custom modalities): its index and the next."""


@torch.no_grad()
def token_features(embedder: LoadedModel, item: Mapping[str, object]) -> dict[str, Tokens]:
    """Token features of one item; see `Embedder.features`."""
    if not isinstance(item, Mapping) or not item:
        raise UserError(f'features takes a dictionary by modality: {{"{embedder.modalities[0]}": ...}}')
    inputs = {}
    for modality, value in item.items():
        sample = embedder.processor(modality).decode(value)
        inputs[modality] = embedder.inputs(modality, [sample])
    outputs = embedder.encoder.features(inputs)
    tokens_by_modality = {}
    for modality, value in item.items():
        cls_and_tokens = outputs[modality][0].float().cpu()
        positions, unit = token_positions(embedder, modality, value, inputs[modality])
        tokens_by_modality[modality] = Tokens(cls_and_tokens[0], cls_and_tokens[1:], positions, unit)
    return tokens_by_modality


def token_positions(
    embedder: LoadedModel, modality: str, value: object, inputs: dict[str, Tensor]
) -> tuple[Tensor, str]:
    """The extent (L, 2) of each token, and its unit, by the processor or else by the model's adapter."""
    positions = embedder.processors[modality].token_positions(value)
    if positions is None:
        return embedder.encoder.adapters[modality].token_positions(inputs)
    return positions


@torch.no_grad()
def explain(embedder: LoadedModel, item: object, vector: Tensor) -> Explanation:
    """Map of how well each part of an item matches the unit vector (E,) of a query; see `Embedder.explain`."""
    parts = parts_of(item, embedder.processors)
    if len(parts) != 1:
        names = " and ".join(modality for modality, _ in parts)
        raise UserError(f"one picture or sound is explained at a time, not {names}")
    modality, value = parts[0]
    processor = embedder.processor(modality, projected=True)
    values_by_window = []
    positions_by_window = []
    similarities = []
    for start, end, sample in processor.windows(value):
        inputs = embedder.inputs(modality, [sample])
        embedding = embedder.encoder({modality: inputs})[modality][0].float().cpu()
        similarities.append(float(embedding @ vector))
        if isinstance(processor, ImageProcessor):
            inputs = _enlarged(embedder, modality, value, inputs)
        values = _relevance(embedder.encoder, modality, inputs, vector)
        positions, unit = token_positions(embedder, modality, value, inputs)
        if unit == "second":
            values, positions = _between(start, end, values, positions)
        values_by_window.append(values)
        positions_by_window.append(positions)
    return Explanation(
        modality=modality,
        values=torch.cat(values_by_window),
        positions=torch.cat(positions_by_window),
        unit=unit,
        similarity=max(similarities),
        area=_area(processor, value),
    )


def _enlarged(embedder: LoadedModel, modality: str, value: object, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Input of the model for a picture, upscaled if it has few patches."""
    processor = embedder.processors[modality]
    rows_and_columns, _ = embedder.encoder.adapters[modality].token_positions(inputs)
    patches = int(rows_and_columns.amax()) + 1
    scale = math.ceil(PATCHES / patches)
    larger = expect(processor, ImageProcessor).enlarged(scale)
    return embedder.inputs(modality, [larger.decode(value)])


def _between(start: float, end: float, values: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """The frames of a window that starts and ends at these seconds; frames of a short sound are repeated after it."""
    frame_seconds = float(positions[0, 1])
    inside = positions[:, 0] < max(end - start, frame_seconds)
    return values[inside], (positions[inside] + start).clamp(max=end)


def _relevance(module: "Encoder", modality: str, inputs: dict[str, Tensor], vector: Tensor) -> Tensor:
    """Cosine of each token of a single item with a query, on the grid of the stem.

    Args:
        inputs: raw input of the modality, a batch of one.
        vector: (E,) unit vector of the query.
    """
    stem = module.stems({modality: inputs})[modality]
    num_tokens = stem.tokens.shape[1]
    pooled = None
    if stem.pooled is not None:  # the terms added to CLS if each token were an item
        adapter = module.adapters[modality]
        features = adapter.stem_features(inputs).flatten(0, -2)
        pooled = adapter.pooled(features[:num_tokens, None], None)
    embeddings = []
    for rows in torch.arange(num_tokens, device=stem.tokens.device).split(TOKENS_AT_ONCE):
        cls_and_token = F.pad(rows[:, None] + 1, (1, 0))
        copies = stem._replace(
            tokens=stem.tokens.expand(len(rows), -1, -1),
            padding_mask=None,  # one item has no padding
            pooled=None if pooled is None else pooled[rows],
        )
        encoded = module.encode({modality: copies}, keep={modality: cls_and_token})[modality]
        embeddings.append(module.embed(modality, encoded))
    return (torch.cat(embeddings).float().cpu() @ vector).view(stem.grid)


def _area(processor: Processor, value: object) -> tuple[float, float, float, float]:
    """The part of a picture that the model sees, relative to the picture."""
    if not isinstance(processor, ImageProcessor) or processor.shows_whole_pictures:
        return (0.0, 0.0, 1.0, 1.0)
    width, height = processor.size_in_pixels(value)
    left, top, right, bottom = processor.area(width, height)
    return (left / width, top / height, right / width, bottom / height)
