"""Random items of a given size, and batches of them, for plans and benchmarks."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil
from typing import Any

import numpy as np
import torch

from onepeace.config import Config
from onepeace.data.batch import Batch, Inputs
from onepeace.data.config import DataConfig
from onepeace.data.masking import MaskRates, draw_masks
from onepeace.errors import UserError
from onepeace.special_ids import EOS

SAMPLE_RATE = 16000
FIRST_WORD_ID = 4
UNITS = {"text": "tokens", "image": "px", "audio": "s", "video": "px"}
"""Units of an item's size: text tokens with eos, the side of a picture or of a clip's frames, seconds of sound."""


def item_batch(config: Config, key: str, size: int, count: int = 1) -> Inputs:
    """Model input with `count` random items of modality `key`, all of one `size` (see `UNITS`)."""
    generator = torch.Generator().manual_seed(0)
    options = config.model.adapters[key]
    if key == "text":
        ids = torch.randint(FIRST_WORD_ID, int(options.get("vocab_size", 256)), (count, size), generator=generator)
        ids[:, -1] = EOS
        return {"ids": ids}
    if key == "audio":
        return {"waveform": torch.randn(count, size * SAMPLE_RATE, generator=generator)}
    frames = [int(options.get("frames", 16))] if key == "video" else []
    return {"pixels": torch.randn(count, *frames, 3, size, size, generator=generator)}


def picture_size(config: Config, key: str = "image") -> int:
    """Side of a model's input pictures in pixels; the longer one if they are not square."""
    size = config.processors.get(key, {}).get("size")
    if size is None:
        options = config.model.adapters[key]
        return int(options.get("patch_size", 16)) * int(options.get("bias_grid", 16))
    return max(size) if isinstance(size, list) else int(size)


def largest_items(config: Config, modalities: Sequence[str], count: int) -> dict[str, Inputs]:
    """`count` items, each of the maximum size that the processors allow, by modality.

    Raises:
        UserError: a modality whose sizes have no unit.
    """
    items = {}
    for key in modalities:
        options = config.processors.get(key, {})
        if key == "text":
            size = (options.get("max_tokens") or 70) + 1
        elif key == "audio":
            size = ceil(options.get("max_seconds") or 15)
        elif key in UNITS:
            size = picture_size(config, key)
        else:
            raise UserError(f"the size of an item of {key} is not known; a plan supports {', '.join(UNITS)}")
        items[key] = item_batch(config, key, size, count)
    return items


def synthetic_batch(
    config: DataConfig,
    rates: Mapping[str, MaskRates],
    adapters: Mapping[str, Any],
    inputs: Mapping[str, Inputs],
    rows_of_item: int = 1,
) -> Batch:
    """Batch of these inputs, without targets.

    Args:
        config: the recipe's data section, for token dropout.
        rates: shares of masked tokens by modality; each token of a text is taken for a word.
        adapters: the model's adapters by modality, which count tokens.
        inputs: model inputs by modality.
        rows_of_item: rows of the inputs that make an item.
    """
    rows = len(next(iter(next(iter(inputs.values())).values())))
    keys = [f"item{number}" for number in range(rows // rows_of_item)]
    batch = Batch(inputs=inputs, keys=keys, captions=keys, names=[[key] for key in keys], rows=rows_of_item)
    batch = batch.measured(adapters)
    generators = [np.random.default_rng(row) for row in range(rows)]
    masks = {}
    for key in inputs:
        lengths = batch.lengths[key] - 1
        words = torch.ones(rows, int(lengths.max()), dtype=torch.bool) if key == "text" else None
        masks[key] = draw_masks(rates.get(key), config.token_dropout.get(key, 0.0), lengths, generators, words)
    return replace(batch, masks=masks)
