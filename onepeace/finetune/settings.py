"""Settings that suit the data and the machine, as a recipe; each can be overridden on the command line."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from onepeace.config import Options, merge
from onepeace.finetune.memory import LORA
from onepeace.finetune.split import SplitSummary
from onepeace.hub.architectures import build_encoder
from onepeace.hub.folder import read_config
from onepeace.model.stems import PretrainedStem
from onepeace.train.recipe import Recipe

LARGE = 300_000_000
"""Number of parameters from which on LoRA is trained instead of all weights."""
TEMPLATES = {
    "image": ["{}", "a photo of {}", "a picture of {}"],
    "audio": ["{}", "the sound of {}", "a recording of {}"],
}
"""Templates of captions made from class names."""
LABEL_RATE, PAIR_RATE = 2e-4, 5e-5
"""Peak learning rates. With 344 captioned photographs, 2e-4 was too high: text to image recall at 5 among 86 held-out
ones fell by 2.8 points, and rose by 0.5 with 5e-5."""
STEM = "adapters.{}.stem.network.*"
"""Pattern of the weights of a modality's pretrained stem."""
STEM_VIEWS = 4
"""Augmented views of each item for which the features of a frozen stem are computed, once."""
MANY = 200
"""Number of items above which a separate process decodes."""


WAYS: dict[str, Options] = {"probe": {"freeze": {"except": ["heads.*", "logit_scale"]}}, "lora": LORA, "full": {}}
"""Ways to train: only heads and projections, low-rank adapters as well, or all weights."""


def auto_recipe(model: Path, data: Path, out: Path, parts: SplitSummary, way: str = "") -> Options:
    """The recipe of a fine-tuning, as plain values.

    Args:
        model: folder of the model to start from.
        data: folder of the shards.
        out: folder of the fine-tuning, which has a folder for each way.
        way: one of `WAYS`, or "" for the one that suits the size of the model.
    """
    labels, counts = parts.labels, parts.counts
    config = read_config(model)
    with torch.device("meta"):
        module = build_encoder(config)
    number = sum(parameter.numel() for parameter in module.parameters())
    train = {name.removeprefix("train/"): count for name, count in counts.items() if name.startswith("train/")}
    total, large = sum(train.values()), number >= LARGE
    # At most half of the items, so that the items of a batch vary from step to step.
    batch = {name: _power_of_two(min(count // 2, 16 if large else 128)) for name, count in train.items()}
    epochs = min(30.0, max(3.0, 20_000 / total))
    steps = max(30, round(epochs * max(count / batch[name] for name, count in train.items())))
    modalities = list(dict.fromkeys(key for name in train for key in name.split("+")))
    frozen = [STEM.format(key) for key in modalities
              if isinstance(getattr(module.adapters[key], "stem", None), PretrainedStem)]  # fmt: skip
    keys = [key for key in modalities if key != "text"]
    recipe: dict[str, Any] = {
        "model": {"from": str(model), "drop_path": 0.1 if large else 0.05},
        "data": {
            "root": str(data),
            "train": [_source(name, labels) for name in train],
            "augment": {key: AUGMENT[key] for key in keys if key in AUGMENT},
            "templates": {key: TEMPLATES[key] for key in keys if labels and key in TEMPLATES},
            "stem_views": {key: STEM_VIEWS for key in keys if STEM.format(key) in frozen},
            "frozen_folder": str(out / "frozen"),
        },
        "objective": [{"term": "contrastive", "multi_positive": True}],
        "optim": {
            "lr": LABEL_RATE if labels else PAIR_RATE,
            "betas": [0.9, 0.98],
            "weight_decay": 0.05,
            "grad_clip": 3.0,
            "layer_decay": 0.9,
        },
        "schedule": {"steps": steps, "warmup_ratio": 0.1},
        "run": {
            "batch_size": batch,
            "out": str(out / way),
            "log_every": max(1, steps // 200),
            "save_minutes": 1.0,
            "workers": 1 if total > MANY else 0,
        },
    }
    if frozen and not large:
        recipe["freeze"] = frozen
    if labels:
        for key, name in head_names(parts).items():
            head: Options = {"kind": "classifier", "task": "label", "on": key, "labels": list(labels)}
            head |= {"pool": "cls", "hidden_ratio": 0}
            recipe["model"].setdefault("heads", {})[name] = head
            before = config.model.heads.get(name)
            if before is not None and any(before.get(option) != value for option, value in head.items()):
                # It has other classes: its weights would not fit, or would mean something else.
                recipe["model"].setdefault("fresh", []).append(f"heads.{name}.*")
            term = {"term": "classification", "on": [key], "head": name, "label_smoothing": 0.1}
            recipe["objective"].append(term)
        recipe["optim"]["groups"] = {"heads.classifier*": {"lr_scale": 10.0}}
    return merge(recipe, WAYS[way or ("lora" if large else "full")])


AUGMENT: dict[str, Options] = {
    "image": {"crop_scale": [0.6, 1.0], "flip": True, "color": 0.2},
    "audio": {"shift": True, "gain_db": 6.0, "noise": 0.2},
}


def head_names(parts: SplitSummary) -> dict[str, str]:
    """Names of the classifiers of labelled data, by the modality they read; empty without labels."""
    keys = dict.fromkeys(key for pair in parts.pairs("train") for key in pair.split("+") if key != "text")
    if not parts.labels:
        return {}
    return {key: "classifier" if len(keys) == 1 else f"classifier_{key}" for key in keys}


def trained(recipe: Recipe) -> str:
    """The weights that are trained, in words."""
    if recipe.lora is not None:
        return "LoRA"
    if recipe.freeze == WAYS["probe"]["freeze"]:
        return "heads and projections"
    if not recipe.freeze:
        return "all weights"
    stems = {STEM.format(key) for keys in recipe.data.modalities.values() for key in keys}
    only_stems = not isinstance(recipe.freeze, Mapping) and stems.issuperset(recipe.freeze)
    return "all but frozen stems" if only_stems else "what freeze leaves"


def _source(name: str, labels: Sequence[str]) -> Options:
    source = {"shards": f"train/{name}-*.tar", "pair": name.split("+")}
    return {**source, "targets": ["label"]} if labels else source


def _power_of_two(count: int) -> int:
    return 2 ** max(1, count.bit_length() - 1)
