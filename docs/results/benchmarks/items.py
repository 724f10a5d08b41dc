"""Random items of a given size for the benchmarks."""

from collections.abc import Sequence

import torch

from onepeace.config import Config
from onepeace.data.batch import Inputs
from onepeace.plan.plan import largest_item
from onepeace.special_ids import EOS

SAMPLE_RATE = 16000
FIRST_WORD_ID = 4
UNITS = {"text": "tokens", "image": "px", "audio": "s", "video": "px"}
"""Units of an item's size: text tokens with eos, the side of a picture or of a clip's frames, seconds of sound."""


def item_batch(config: Config, key: str, size: int, count: int = 1) -> Inputs:
    """Model input with `count` random items of modality `key`, all of one `size` (see `UNITS`)."""
    options = config.model.adapters[key]
    if key == "text":
        return random_values({"ids": torch.zeros(1, size, dtype=torch.int64)}, options, count)
    if key == "audio":
        return random_values({"waveform": torch.zeros(1, size * SAMPLE_RATE)}, options, count)
    frames = [int(options.get("frames", 16))] if key == "video" else []
    return random_values({"pixels": torch.zeros(1, *frames, 3, size, size)}, options, count)


def random_values(item: Inputs, options: dict[str, int], count: int) -> Inputs:
    """`count` items of the shape of one: noise, and words that end with eos."""
    generator = torch.Generator().manual_seed(0)
    inputs = {}
    for name, tensor in item.items():
        shape = (count, *tensor.shape[1:])
        if tensor.is_floating_point():
            inputs[name] = torch.randn(shape, generator=generator)
        else:
            inputs[name] = torch.randint(FIRST_WORD_ID, int(options.get("vocab_size", 256)), shape, generator=generator)
            inputs[name][:, -1] = EOS
    return inputs


def largest_items(config: Config, modalities: Sequence[str], count: int) -> dict[str, Inputs]:
    """`count` random items by modality, each of the largest size that the processors allow."""
    items = {}
    for key in modalities:
        items[key] = random_values(largest_item(config, key), config.model.adapters[key], count)
    return items


def picture_size(config: Config, key: str = "image") -> int:
    """Side of a model's input pictures in pixels; the longer one if they are not square."""
    return max(largest_item(config, key)["pixels"].shape[-2:])
