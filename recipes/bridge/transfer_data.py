"""Pictures, sounds and their sentences for `transfer.py`, and their features, computed once."""

import random
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from onepeace import Embedder
from onepeace.data.sample import Sample
from onepeace.data.shards import read_source

NAMED = ("tiny_imagenet", "caltech101", "imagenet_samples", "labelled_mix", "emoji", "tuxpaint")
"""Sets whose sentences name one thing."""
PER_NAME = 40
"""Pictures of one name at most, so that no class of tiny-ImageNet rules."""


def read(root: Path, pattern: str, key: str) -> list[Sample]:
    return read_source(pattern, (key, "text"), root)


def words(text: str) -> set[str]:
    return {word.removesuffix("s") for word in re.findall("[a-z]+", text.lower())} - {"and", "a", "of", "the"}


def name_of(sample: Sample) -> str:
    """The class name; of a drawing its first sentence."""
    return sample.label or sample.captions[0]


def named_pictures(root: Path, names: list[str]) -> list[Sample]:
    """Pictures whose name shares a word with one of ``names``, shuffled."""
    wanted = set().union(*map(words, names))
    found: dict[str, list[Sample]] = {}
    for part in NAMED:
        for sample in read(root, f"train/image_text/{part}-*.tar*", "image"):
            # A cat is no caterpillar, and a water tower no water drops: whole words, and not only a part of many.
            if words(name_of(sample)) & wanted and len(words(name_of(sample))) <= 2:
                found.setdefault(name_of(sample), []).append(sample)
    draw = random.Random(0)  # noqa: S311
    chosen = [one for _, group in sorted(found.items()) for one in draw.sample(group, min(len(group), PER_NAME))]
    draw.shuffle(chosen)
    return chosen


def features(embedder: Embedder, samples: list[Sample], key: str, file: Path) -> dict[str, Tensor]:
    """What stands for each item: "tokens" (N, L, D) of the last block, "cls" (N, 1, D), "shared" (N, 1, E).

    A unit vector is so small that its numbers are multiplied by sqrt(E). Kept in ``file``.
    """
    if not file.exists():
        module, found = embedder.module, []
        for start in range(0, len(samples), 32):
            decoded = [embedder.processors[key].decode(one.inputs[key]) for one in samples[start : start + 32]]
            with torch.no_grad():
                last = module.encode(module.stems({key: embedder.inputs(key, decoded)}), out_indices=(-1,))[key]
                shared = module.embed(key, last) * module.config.embed_dim**0.5
            found.append((last.intermediates[0].tokens[:, 1:], last.cls[:, None], shared[:, None]))
        parts = (torch.cat(part).half() for part in zip(*found, strict=True))
        save_file(dict(zip(("tokens", "cls", "shared"), parts, strict=True)), file)
    return {name: value.float() for name, value in load_file(file).items()}
