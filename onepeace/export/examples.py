"""Random inputs of a modality, to trace its branch and to check the trace."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from onepeace.errors import UserError
from onepeace.processors.processor import Processor
from onepeace.processors.tokenizer import EOS, UNK

Batch = dict[str, Tensor]
SHARES = (0.5, 0.25, 1.0, 0.0, 0.75)
"""Length of each sample, from the shortest (0) to the longest (1)."""


def examples(key: str, processor: Processor) -> tuple[Batch, Batch]:
    """Two batches of random items, which differ in the number of items and their lengths.

    Raises:
        UserError: the modality has no entry in `SAMPLES`.
    """
    if key not in SAMPLES:
        raise UserError(f"no example inputs of {key} to trace it; add them to onepeace.export.examples.SAMPLES")
    generator = torch.Generator().manual_seed(0)
    samples = [SAMPLES[key](processor, share, generator) for share in SHARES]
    batches = []
    for samples_of_batch in (samples[:2], samples[2:]):
        batch = processor.collate(samples_of_batch)
        sizes = [processor.size(sample) for sample in samples_of_batch]
        if all(sizes):  # lengths are an input of the graph even if all are equal
            batch["lengths"] = torch.tensor(sizes)
        batches.append(batch)
    return batches[0], batches[1]


def _text(processor: Any, share: float, generator: torch.Generator) -> Tensor:
    longest = min(processor.max_tokens or 8, 8)
    count = max(1, round(share * longest))
    ids = torch.randint(UNK + 1, processor.tokenizer.get_vocab_size(), (count,), generator=generator)
    return torch.cat([ids, torch.tensor([EOS])])


def _image(processor: Any, share: float, generator: torch.Generator) -> Tensor:
    return torch.randn(3, processor.height, processor.width, generator=generator)


def _audio(processor: Any, share: float, generator: torch.Generator) -> Tensor:
    shortest = max(processor.min_seconds, 0.5)
    longest = min(processor.max_seconds or shortest + 1, shortest + 1)
    seconds = shortest + share * (longest - shortest)
    return torch.randn(round(seconds * processor.sample_rate), generator=generator)


SAMPLES: dict[str, Callable[[Any, float, torch.Generator], Tensor]] = {"text": _text, "image": _image, "audio": _audio}
"""Functions that create a decoded sample, by modality: (processor, length from 0 to 1, generator) -> tensor."""
