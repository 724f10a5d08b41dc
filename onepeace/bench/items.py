"""Inputs of a stated size for measurements: no files, no decoding. Next: flops.py, encode.py."""

import torch
from torch import Tensor

from onepeace.config import Config

SAMPLE_RATE = 16000
EOS_ID = 2
FIRST_WORD_ID = 4
UNITS = {"text": "tokens", "image": "px", "audio": "s"}
"""What the size of an item of each modality counts: text tokens with eos, the side of a picture, seconds of sound."""


def item_batch(config: Config, key: str, size: int, count: int = 1) -> dict[str, Tensor]:
    """`count` random items of modality `key`, all of one `size` (see `UNITS`), as the model takes them."""
    generator = torch.Generator().manual_seed(0)
    if key == "text":
        words = int(config.model.adapters[key]["vocab_size"])
        ids = torch.randint(FIRST_WORD_ID, words, (count, size), generator=generator)
        ids[:, -1] = EOS_ID
        return {"ids": ids}
    if key == "image":
        return {"pixels": torch.randn(count, 3, size, size, generator=generator)}
    samples = size * SAMPLE_RATE
    waveform = torch.randn(count, samples, generator=generator)
    return {"waveform": waveform, "lengths": torch.full((count,), samples)}


def picture_size(config: Config) -> int:
    """Side of the pictures a model is fed, in pixels; of oblong ones the longer."""
    size = config.media.get("image", {}).get("size")
    if size is None:
        options = config.model.adapters["image"]
        return int(options.get("patch_size", 16)) * int(options.get("bias_grid", 16))
    return max(size) if isinstance(size, list) else int(size)
