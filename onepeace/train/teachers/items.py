"""Inputs of teachers, and the reading of an item for one."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from onepeace.device import bfloat16_is_fast
from onepeace.processors import AudioProcessor

Teacher = Callable[[list[Any]], Tensor]
"""Items of one modality -> (n, F) float32: pictures of PIL, strings, or sounds, (N,) float32 mono at SAMPLE_RATE."""

SAMPLE_RATE = 16000
"""Hz of the sounds that a teacher is given, whatever the model's own rate is."""


def item_reader(modality: str, processor: Any) -> Callable[[Any], Any]:
    """A function from an encoded item to what a teacher reads: whole pictures, and of a sound as much as the model
    reads of it."""
    if modality == "audio":
        sounds = AudioProcessor(sample_rate=SAMPLE_RATE)
        return lambda item: sounds.load(item, seconds=getattr(processor, "max_seconds", None))
    return getattr(processor, "load", lambda item: item)


def autocast(device: torch.device) -> Any:
    """Multiplications in bfloat16 where that is fast."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bfloat16_is_fast(device))
