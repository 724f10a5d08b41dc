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
        members[f"{key}.jpg"] = np.random.default_rng(list(key.encode())).bytes(size)
        members[f"{key}.json"] = b"{" if key in without else json.dumps({"captions": [f"it is {key}"]}).encode()
    return str(write_tar(path, members))


def write_shards(folder, sizes, **kw):
    """000.tar, 001.tar.gz, 002.tar, ... with samples 0-0, 0-1, ..., 1-0, ..."""
    shards = []
    for s, size in enumerate(sizes):
        name = f"{s:03}.tar.gz" if s == 1 else f"{s:03}.tar"
        shards.append(write(folder / name, [f"{s}-{i}" for i in range(size)], **kw))
    return shards


def keys(samples, count=None):
    return [sample.key for sample in islice(samples, count)]
