"""Small shards of pictures and sounds, and the steps that are made of them."""

import json
from types import SimpleNamespace

import numpy as np
import torch
from support.images import encoded_image, noise_pixels
from support.sounds import RATE, encoded_sound, noise

from onepeace.config import build
from onepeace.data.batch import Batch
from onepeace.data.builder import BatchBuilder
from onepeace.data.source import open_sources
from onepeace.data.steps import Step, Steps
from onepeace.special_ids import PAD
from onepeace.train.recipe import Recipe

SIZE = 24


def picture(seed):
    return encoded_image(noise_pixels(30, 40, seed=seed))


def sound(seed):
    """1.25 seconds of noise."""
    return encoded_sound(noise(RATE * 5 // 4, seed))


def about(captions, label=None):
    return json.dumps({"captions": captions, "label": label}).encode()


def pictures(count, first=0, label=None):
    members = {}
    for i in range(first, first + count):
        members[f"p{i}.png"] = picture(i)
        members[f"p{i}.json"] = about([f"picture number {i}", f"a photo of thing {i}"], label)
    return members


def sounds(count):
    members = {}
    for i in range(count):
        members[f"s{i}.wav"] = sound(i)
        members[f"s{i}.json"] = about([f"sound {i}."], f"class {i % 3}")
    return members


def tokens_of_texts(batch):
    return (batch["ids"] != PAD).sum(1)


def tokens_of_pictures(batch):
    return torch.full((len(batch["pixels"]),), (SIZE // 8) ** 2)


def tokens_of_sounds(batch):
    num_sounds, num_samples = batch["waveform"].shape
    lengths = batch.get("lengths", torch.full((num_sounds,), num_samples))
    return lengths // 1000


NUM_TOKENS = {"text": tokens_of_texts, "image": tokens_of_pictures, "audio": tokens_of_sounds}
ADAPTERS = {key: SimpleNamespace(token_lengths=count) for key, count in NUM_TOKENS.items()}
IMAGES = {"shards": "pictures-*", "pair": ["image", "text"]}
SOUNDS = {"shards": "sounds.tar", "pair": ["audio", "text"]}
DENOISING = {
    "objective": [{"term": "contrastive"}, {"term": "denoising", "on": ["image"]}],
    "mask": {
        "text": {"unit": "word", "unimodal": 0.15, "joint": 0.4},
        "image": {"unit": "patch", "unimodal": 0.75, "joint": 0.6875},
    },
}


def recipe(root, train=(IMAGES,), data=None, batch_size=4, **fields):
    content = {
        "model": {},
        "data": {"root": str(root), "train": list(train), **(data or {})},
        "objective": [{"term": "contrastive"}],
        "schedule": {"steps": 10},
        "run": {"out": "unused", "batch_size": batch_size},
        **fields,
    }
    return build(Recipe, content, "recipe")


def make_steps(processors, recipe, rank=0, world_size=1, cursors=None):
    masks = recipe.mask if recipe.uses_masks else {}
    builder = BatchBuilder(recipe.data, processors, ADAPTERS, masks)
    sizes = {name: recipe.batch_size(name) for name in recipe.data.modalities}
    return Steps(builder, open_sources(recipe.data), recipe.seed, sizes, cursors, rank, world_size)


def batches(steps, *numbers):
    """The batches of these steps."""
    batches = []
    for number in numbers:
        batches += steps[number].batches
    return batches


def keyed(batch):
    return list(zip(batch.keys, batch.captions, strict=True))


def same(a, b):
    """Equal to the bit, also what they hold."""
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, Batch | Step):
        return same(vars(a), vars(b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and same(list(a.values()), [b[key] for key in a])
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b
