"""Shards of numbered samples, and the keys of what is read of them."""

import json
from itertools import islice

import numpy as np
from support.small_shards import write_tar

PAIR = ("image", "text")


def write(path, keys, size=8, without=()):
    """A shard of samples whose picture is `size` bytes; those in `without` have no caption."""
    members = {}
    for key in keys:
        seed = list(key.encode())
        members[f"{key}.jpg"] = np.random.default_rng(seed).bytes(size)
        metadata = json.dumps({"captions": [f"it is {key}"]}).encode()
        members[f"{key}.json"] = b"{" if key in without else metadata
    return str(write_tar(path, members))


def write_shards(folder, sizes, **options):
    """000.tar, 001.tar.gz, 002.tar, ... with samples 0-0, 0-1, ..., 1-0, ..."""
    shards = []
    for number, size in enumerate(sizes):
        suffix = "tar.gz" if number == 1 else "tar"
        keys = [f"{number}-{i}" for i in range(size)]
        shards.append(write(folder / f"{number:03}.{suffix}", keys, **options))
    return shards


def keys(samples, count=None):
    return [sample.key for sample in islice(samples, count)]
