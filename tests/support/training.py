"""Recipes of small models on the shards of small_shards.py."""

from onepeace.config import build
from onepeace.train.recipe import Recipe

MODEL = {
    "size": "tiny", "dim": 32, "embed_dim": 32, "depth": 2, "num_heads": 2, "ffn_dim": 64,
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


def recipe(root, out, steps=80, pair="image", **fields):
    shards = {"image": "squares.tar", "audio": "tones.tar"}[pair]
    content = {
        "model": {**MODEL, "modalities": ["text", "image"]},
        "processors": {"image": {"size": 24}, "text": {"max_tokens": 16}, "audio": {"min_seconds": 0.5}},
        "tokenizer": {"vocab_size": 300},
        "data": {"root": str(root), "train": [{"shards": shards, "pair": [pair, "text"]}]},
        "objective": {"contrastive": {"multi_positive": True}},
        "optim": {"lr": 3e-3},
        "schedule": {"steps": steps, "warmup_steps": min(10, steps)},
        "run": {
            "out": str(out),
            "batch_size": 24,
            "workers": 0,
            "log_every": 4,
            "save_every": 0,
            "precision": "float32",
        },
        **fields,
    }
    return build(Recipe, content, "recipe")
