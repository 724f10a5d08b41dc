"""The recipe of a fine-tuning, by its data and its model; the command line can override each field."""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from onepeace.config import Options, apply_override, build, merge
from onepeace.device import count_parameters
from onepeace.finetune.split import TRAIN, SplitSummary
from onepeace.hub.architectures import build_encoder
from onepeace.hub.folder import read_config
from onepeace.model.adapters import Adapter
from onepeace.model.stems import PretrainedStem
from onepeace.train.recipe import Recipe

FROZEN = "frozen"
"""Folder of the outputs of frozen stems."""

LARGE = 300_000_000
"""Number of parameters from which LoRA is trained instead of all weights."""
TEMPLATES = {
    "image": ["{}", "a photo of {}", "a picture of {}"],
    "audio": ["{}", "the sound of {}", "a recording of {}"],
}
"""Templates of captions made from class names."""
LABEL_RATE = 2e-4
PAIR_RATE = 5e-5
"""Peak learning rates. With 344 captioned photographs, 2e-4 was too high: text to image recall at 5 among 86 held-out
ones fell by 2.8 points, and rose by 0.5 with 5e-5."""
STEM = "adapters.{}.stem.network.*"
"""Pattern of the weights of a modality's pretrained stem."""
STEM_VIEWS = 4
"""Augmented views of each item for which the features of a frozen stem are computed, once."""
MANY = 200
"""Number of items above which a separate process decodes."""
LARGEST_BATCH = 128
"""Maximum number of items in a batch."""
LARGEST_BATCH_OF_LARGE = 16
"""The same for a large model."""
ITEMS_SEEN = 20_000
"""Number of items, with repetitions, that a model is trained on, within the limits below."""
FEWEST_EPOCHS = 3.0
MOST_EPOCHS = 30.0
FEWEST_STEPS = 30
AUGMENT: dict[str, Options] = {
    "image": {"crop_scale": [0.6, 1.0], "flip": True, "color": 0.2},
    "audio": {"shift": True, "gain_db": 6.0, "noise": 0.2},
}
HEAD: Options = {"kind": "classifier", "task": "label", "pool": "cls", "hidden_ratio": 0}
LORA: Options = {
    "lora": {"rank": 16, "alpha": 32},
    "freeze": {"except": ["heads.*", "logit_scale"]},
    "run": {"recompute": "blocks"},
}


def auto_recipe(model: Path, data: Path, out: Path, summary: SplitSummary) -> Options:
    """The recipe of a fine-tuning, as plain values.

    Args:
        model: folder of the model to start from.
        data: folder of the shards.
        out: folder of the fine-tuning.
        summary: contents of the shards.
    """
    config = read_config(model)
    with torch.device("meta"):
        module = build_encoder(config)
    is_large = count_parameters(module) >= LARGE
    num_samples = {key: summary.counts[f"{TRAIN}/{key}"] for key in summary.combinations(TRAIN)}
    frozen = _frozen_stems(module.adapters, _modalities(num_samples))
    recipe: dict[str, Any] = {
        "model": {"from": str(model), "drop_path": 0.1 if is_large else 0.05},
        "data": _data_options(data, out, summary, frozen),
        "objective": [{"term": "contrastive", "multi_positive": True}],
        "optim": _optim_options(summary.labels),
        **_schedule_and_run(num_samples, LARGEST_BATCH_OF_LARGE if is_large else LARGEST_BATCH),
    }
    recipe["run"]["out"] = str(out)
    if frozen and not is_large:
        recipe["freeze"] = [STEM.format(modality) for modality in frozen]
    if summary.labels:
        _add_heads(recipe, summary, config.model.heads)
    return merge(recipe, LORA) if is_large else recipe


def overridden(content: Options, overrides: Sequence[str]) -> Recipe:
    """The recipe of plain values as `auto_recipe` returns them, with fields set by the user."""
    filled = deepcopy(content)
    for override in overrides:
        apply_override(filled, override)
    return build(Recipe, filled, "the recipe of the fine-tuning")


OF_DATA = ("model", "data", "objective", "freeze", "lora", "run.batch_size")
"""Beginnings of the fields of which only the data tell whether they fit."""


def check_overrides(overrides: Sequence[str]) -> None:
    """UserError for a wrong field that has nothing to do with the data, which are read for minutes."""
    some_recipe: Options = {
        "model": {},
        "data": {"train": [{"shards": "*.tar", "pair": ["image", "text"]}]},
        "objective": [{"term": "contrastive"}],
        "schedule": {"steps": 10**9},
        "run": {"out": ""},
    }
    overridden(some_recipe, [override for override in overrides if not override.startswith(OF_DATA)])


def _modalities(combinations: Iterable[str]) -> list[str]:
    """The modalities in combinations such as "image+text", in their order."""
    modalities: dict[str, None] = {}
    for combination in combinations:
        modalities |= dict.fromkeys(combination.split("+"))
    return list(modalities)


def _frozen_stems(adapters: Mapping[str, Adapter], modalities: Sequence[str]) -> list[str]:
    """Modalities with a pretrained stem, whose weights are not trained."""
    frozen = []
    for modality in modalities:
        if isinstance(adapters[modality].stem, PretrainedStem):
            frozen.append(modality)
    return frozen


def _data_options(
    data: Path,
    out: Path,
    summary: SplitSummary,
    frozen: Sequence[str],
) -> Options:
    combinations = summary.combinations(TRAIN)
    media = [modality for modality in _modalities(combinations) if modality != "text"]
    templates = {}
    targets = {}
    if summary.labels:
        targets = {"targets": ["label"]}
        templates = {modality: TEMPLATES[modality] for modality in media if modality in TEMPLATES}
    sources = []
    for name in combinations:
        sources.append({"shards": f"{TRAIN}/{name}-*.tar", "pair": name.split("+"), "name": name, **targets})
    return {
        "root": str(data),
        "train": sources,
        "augment": {modality: AUGMENT[modality] for modality in media if modality in AUGMENT},
        "templates": templates,
        "stem_views": {modality: STEM_VIEWS for modality in media if modality in frozen},
        "frozen_folder": str(out / FROZEN),
    }


def _optim_options(labels: Sequence[str]) -> Options:
    options: Options = {
        "lr": LABEL_RATE if labels else PAIR_RATE,
        "betas": [0.9, 0.98],
        "weight_decay": 0.05,
        "grad_clip": 3.0,
        "layer_decay": 0.9,
    }
    if labels:
        options["groups"] = {"heads.classifier*": {"lr_scale": 10.0}}
    return options


def _schedule_and_run(num_samples: Mapping[str, int], largest_batch: int) -> dict[str, Options]:
    """The sections schedule and run, by the number of training samples of each combination of modalities."""
    total = sum(num_samples.values())
    # At most half of the items, so that the items of a batch vary from step to step.
    batch_size = {}
    for key, count in num_samples.items():
        half = min(count // 2, largest_batch)
        batch_size[key] = 2 ** max(1, half.bit_length() - 1)
    epochs = min(MOST_EPOCHS, max(FEWEST_EPOCHS, ITEMS_SEEN / total))
    steps_per_epoch = max(count / batch_size[key] for key, count in num_samples.items())
    steps = max(FEWEST_STEPS, round(epochs * steps_per_epoch))
    return {
        "schedule": {"steps": steps, "warmup_ratio": 0.1},
        "run": {
            "batch_size": batch_size,
            "log_every": max(1, steps // 200),
            "save_minutes": 1.0,
            "workers": 1 if total > MANY else 0,
        },
    }


def _add_heads(
    recipe: dict[str, Any],
    summary: SplitSummary,
    heads_of_start: Mapping[str, Options],
) -> None:
    """Add a classifier with its loss term for each modality.

    Args:
        heads_of_start: the heads of the model to start from.
    """
    heads: dict[str, Options] = {}
    fresh = []
    for modality, name in head_names(summary).items():
        head: Options = {**HEAD, "on": modality, "labels": list(summary.labels)}
        heads[name] = head
        older = heads_of_start.get(name)
        if older is not None and not head.items() <= older.items():
            # It has other classes: its weights would not fit, or would mean something else.
            fresh.append(f"heads.{name}.*")
        term = {"term": "classification", "on": [modality], "head": name, "label_smoothing": 0.1}
        recipe["objective"].append(term)
    recipe["model"]["heads"] = heads
    if fresh:
        recipe["model"]["fresh"] = fresh


def head_names(summary: SplitSummary) -> dict[str, str]:
    """Names of the classifiers of labelled data, by the modality they read; empty without labels."""
    if not summary.labels:
        return {}
    media = [modality for modality in _modalities(summary.combinations(TRAIN)) if modality != "text"]
    if len(media) == 1:
        return {media[0]: "classifier"}
    return {modality: f"classifier_{modality}" for modality in media}


def described(recipe: Recipe) -> str:
    """The main settings, in words."""
    items = ", ".join(f"{recipe.batch_size(name)} {name}" for name in recipe.data.modalities)
    trained = "all weights"
    if recipe.lora is not None:
        trained = "LoRA"
    elif isinstance(recipe.freeze, Mapping):
        trained = f"only {', '.join(recipe.freeze['except'])}"
    elif recipe.freeze:
        trained += f" but {', '.join(recipe.freeze)}"
    settings = f"steps {recipe.schedule.steps}, items {items}, rate {recipe.optim.lr}, training {trained}"
    return f"{settings} (change them by a.b=value)"
