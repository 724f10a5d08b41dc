"""Small recipes of both stages for plans and dry runs."""

from support.training import terms

from onepeace.config import build
from onepeace.train.recipe import Recipe

SMALL = {"dim": 64, "embed_dim": 32, "num_heads": 4, "ffn_dim": 160}
DENOISING = {"scale": 2.5, "label_smoothing": 0.1}
TEXT = {"vocab_size": 300, "num_positions": 40, "num_buckets": 8}
TABLES = "adapters.*.bias_tables.*"
"""No kernel on a CPU computes their gradient without keeping the scores of attention."""
STAGES = {
    "image": {
        "objective": terms(
            {
                "contrastive": {},
                "denoising/text": DENOISING,
                "denoising/image": DENOISING,
                "denoising/text+image": DENOISING,
            }
        ),
        "mask": {
            "text": {"unit": "word", "unimodal": 0.15, "joint": 0.4},
            "image": {"unit": "patch", "unimodal": 0.75, "joint": 0.6875},
        },
        "freeze": [TABLES],
    },
    "audio": {
        "objective": terms(
            {
                "contrastive": {},
                "denoising/audio": {**DENOISING, "teacher": "joint"},
                "denoising/text+audio": DENOISING,
            }
        ),
        "mask": {
            "text": {"unit": "word", "joint": 0.4},
            "audio": {"unit": "span", "unimodal": 0.55, "joint": 0.45},
        },
        "freeze": {
            "except": [
                "adapters.audio.[cps]*",
                "norms.audio.*",
                "blocks.*.ffn.audio.*",
                "heads.audio.*",
                "logit_scale",
                "decoder.*",
            ]
        },
    },
}
ADAPTERS = {
    "text": TEXT,
    "image": {"patch_size": 16, "grid": 10, "bias_grid": 10},
    "audio": {"stem": "wave", "convs": [[24, 10, 5], [24, 8, 8], [24, 8, 8]], "num_buckets": 8, "pos_groups": 4},
}


def planned_recipe(modality, batch=4, depth=1, adapters=ADAPTERS, stage=None, **run):
    """Contrast and denoising of texts and another modality."""
    content = {
        "model": {
            **SMALL,
            "size": "tiny",
            "depth": depth,
            "decoder": {"dim": 32, "depth": 1, "num_heads": 2, "ffn_dim": 64},
            "adapters": {**ADAPTERS, **adapters},
            "modalities": ["text", modality],
            "projections": ["text", modality],
        },
        "processors": {"text": {"max_tokens": 20}, "image": {"size": 160}, "audio": {"max_seconds": 1}},
        "data": {"train": [{"shards": "x.tar", "pair": [modality, "text"]}]},
        "schedule": {"steps": 10},
        "run": {"out": "x", "batch_size": batch, "precision": "bfloat16", **run},
        **(STAGES[modality] if stage is None else stage),
    }
    return build(Recipe, content, "recipe")


def contrastive(modality="audio", **fields):
    """Without masked passes: the fewest operations."""
    return planned_recipe(modality, stage={"objective": terms({"contrastive": {}})}, **fields)
