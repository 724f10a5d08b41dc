"""Recipes of small models on the shards of small_shards.py."""

import torch
from safetensors.torch import load_file

from onepeace.config import build
from onepeace.train.log import read_log
from onepeace.train.recipe import Recipe
from onepeace.train.terms.registry import read_terms

MODEL = {
    "size": "tiny", "dim": 32, "embed_dim": 32, "depth": 2, "num_heads": 2, "ffn_dim": 64,
    "modalities": ["text", "image"],
    "adapters": {
        "text": {"vocab_size": 400, "num_positions": 32, "num_buckets": 8},
        "image": {"patch_size": 8, "grid": 3, "bias_grid": 3},
        "audio": {"num_mels": 32, "width": 8, "num_buckets": 8, "pos_groups": 4},
    },
    "decoder": {"dim": 16, "depth": 1, "num_heads": 2, "ffn_dim": 32},
}  # fmt: skip
DENOISING = {
    "objective": {
        "contrastive": {"multi_positive": True},
        "denoising/text": {"weight": 0.5, "label_smoothing": 0.1},
        "denoising/image": {"weight": 1.0},
        "denoising/text+image": {"weight": 0.5},
    },
    "mask": {
        "text": {"unimodal": 0.15, "joint": 0.4, "unit": "word"},
        "image": {"unimodal": 0.75, "joint": 0.6875, "unit": "patch"},
    },
}


ALL = ["text", "image", "audio"]
EVERY = {"modalities": ALL, "projections": ALL}
"""Fields of a model of three modalities."""


def entries(by_name):
    """Entries of an objective: {"denoising/text+image": {"weight": 2}} is the term denoising, on text and image."""
    parts = [(*name.partition("/")[::2], options) for name, options in by_name.items()]
    return [{"term": term, "on": on.split("+") if on else [], **options} for term, on, options in parts]


def terms(by_name):
    """The same as the options of terms."""
    return read_terms(entries(by_name))


def source(pair="image", **fields):
    """The squares, or the tones."""
    return {"shards": {"image": "squares.tar", "audio": "tones.tar"}[pair], "pair": [pair, "text"], **fields}


def recipe(root, out, steps=80, pair="image", model=None, data=(), run=(), **fields):
    """Of a small model on one set; `data` and `run` hold what is other than here, `model` all of it."""
    run = {"batch_size": 24, "workers": 0, "log_every": 4, "precision": "float32", **dict(run)}
    content = {
        "model": model or MODEL,
        "processors": {"image": {"size": 24}, "text": {"max_tokens": 16}, "audio": {"min_seconds": 0.5}},
        "tokenizer": {"vocab_size": 300},
        "data": {"root": str(root), "train": [source(pair)], **dict(data)},
        "objective": {"contrastive": {"multi_positive": True}},
        "optim": {"lr": 3e-3},
        "schedule": {"steps": steps, "warmup_steps": min(10, steps)},
        "run": {"out": str(out), **run},
        **fields,
    }
    if isinstance(content["objective"], dict):
        content["objective"] = entries(content["objective"])
    return build(Recipe, content, "recipe")


CLOCK = ("items_per_second", "data_wait", "seconds", "peak_gigabytes")
"""Fields of a log that are not the same in two runs."""


def logged(folder):
    """Lines of a run's log, without its times."""
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in read_log(folder / "log.jsonl")]


def assert_same_weights(folder, other):
    """Equal to the bit."""
    ours, theirs = (load_file(path / "model.safetensors") for path in (folder, other))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
