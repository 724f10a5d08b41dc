"""Inputs of a stated size for measurements: no files, no decoding. Next: flops.py, encode.py."""

from collections.abc import Mapping
from math import ceil

import torch
from torch import Tensor

from onepeace.config import Config
from onepeace.data.batch import Batch
from onepeace.data.masking import MaskRates, draw_masks
from onepeace.model import OnePeace
from onepeace.model.adapters.text import PAD_ID

SAMPLE_RATE = 16000
EOS_ID = 2
FIRST_WORD_ID = 4
UNITS = {"text": "tokens", "image": "px", "audio": "s"}
"""What the size of an item of each modality counts: text tokens with eos, the side of a picture, seconds of sound."""
CAPTION_TOKENS = {4: 2, 5: 5, 6: 8, 7: 6, 8: 5, 10: 3, 11: 3, 12: 2, 13: 3}
"""How many of the captions in data/samples/captions.csv have so many tokens, the end included."""
CLIP_SECONDS = (1.0, 15.0)
"""Shortest and longest of the sounds in a batch of many lengths."""


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
    return {"waveform": waveform}


def picture_size(config: Config) -> int:
    """Side of the pictures a model is fed, in pixels; of oblong ones the longer."""
    size = config.processors.get("image", {}).get("size")
    if size is None:
        options = config.model.adapters["image"]
        return int(options.get("patch_size", 16)) * int(options.get("bias_grid", 16))
    return max(size) if isinstance(size, list) else int(size)


def training_batch(config: Config, model: OnePeace, other: str, rates: Mapping[str, MaskRates], count: int) -> Batch:
    """`count` pairs of a text and an item of modality `other`, of many lengths, as the objective takes them.

    Texts are as long as real captions (`CAPTION_TOKENS`), sounds evenly from `CLIP_SECONDS`; what is hidden is drawn
    by `rates`, where each text token counts as a word.
    """
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([tokens for tokens, times in CAPTION_TOKENS.items() for _ in range(times)])
    tokens = lengths[torch.randint(len(lengths), (count,), generator=generator)]
    ids = item_batch(config, "text", int(tokens.max()), count)["ids"]
    places = torch.arange(ids.shape[1])
    ids = ids.masked_fill(places == tokens[:, None] - 1, EOS_ID).masked_fill(places >= tokens[:, None], PAD_ID)
    shortest, longest = CLIP_SECONDS
    batch = item_batch(config, other, picture_size(config) if other == "image" else ceil(longest), count)
    if other == "audio":
        seconds = shortest + (longest - shortest) * torch.rand(count, generator=generator)
        batch["lengths"] = (seconds * SAMPLE_RATE).long()
        samples = torch.arange(int(batch["lengths"].max()))
        batch["waveform"] = batch["waveform"][:, : len(samples)] * (samples < batch["lengths"][:, None])
    items = {"text": {"ids": ids, "lengths": tokens}, other: batch}
    words = torch.ones_like(ids, dtype=torch.bool)
    counts = {key: model.adapters[key].token_lengths(item) for key, item in items.items()}
    masks = {key: draw_masks(rates[key], counts[key], generator, words) for key in items}
    names = [str(i) for i in range(count)]
    return Batch(items, names, names, [[name] for name in names], pair=f"{other}+text", masks=masks)
