"""Recipes of small models on the shards of small_shards.py, and what their runs leave."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from onepeace.config import build
from onepeace.train import trainer
from onepeace.train.logging import read_log
from onepeace.train.recipe import Recipe
from onepeace.train.terms import read_terms

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


CAPTION_HEAD = {
    "kind": "caption",
    "on": ["image"],
    "vocab_size": 400,
    "dim": 16,
    "depth": 1,
    "num_heads": 2,
    "ffn_dim": 16,
}
ALL = ["text", "image", "audio"]
EVERY = {"modalities": ALL, "projections": ALL}
"""Fields of a model of three modalities."""


def entries(options_by_name):
    """Entries of an objective: {"denoising/text+image": {"weight": 2}} is the term denoising, on text and image."""
    result = []
    for name, options in options_by_name.items():
        term, _, modalities = name.partition("/")
        on = modalities.split("+") if modalities else []
        result.append({"term": term, "on": on, **options})
    return result


def terms(options_by_name):
    """The same as the options of terms."""
    return read_terms(entries(options_by_name))


def source(modality="image", **fields):
    """The squares, or the tones."""
    shards = "squares.tar" if modality == "image" else "tones.tar"
    return {"shards": shards, "pair": [modality, "text"], **fields}


def make_recipe(root, out, steps=80, pair="image", model=None, data=(), run=(), **fields):
    """A recipe for a small model on one set; `data` and `run` are merged into those here, `model` replaces it."""
    content = {
        "model": model or MODEL,
        "processors": {
            "image": {"size": 24},
            "text": {"max_tokens": 16},
            "audio": {"min_seconds": 0.5},
        },
        "tokenizer": {"vocab_size": 300},
        "data": {
            "root": str(root),
            "train": [source(pair)],
            **dict(data),
        },
        "objective": {"contrastive": {"multi_positive": True}},
        "optim": {"lr": 3e-3},
        "schedule": {"steps": steps, "warmup_steps": min(10, steps)},
        "run": {
            "out": str(out),
            "batch_size": 24,
            "workers": 0,
            "log_every": 4,
            "precision": "float32",
            **dict(run),
        },
        **fields,
    }
    if isinstance(content["objective"], dict):
        content["objective"] = entries(content["objective"])
    return build(Recipe, content, "recipe")


STEMS = {
    "text": {"vocab_size": 400, "num_positions": 32, "num_buckets": 8},
    "image": {"stem": "timm", "name": "test_efficientnet", "patch_size": 32, "grid": 2, "bias_grid": 2},
    "audio": {"stem": "aisfx", "width": 2, "num_buckets": 8, "pos_depth": 1, "pos_groups": 4},
}


def stem_recipe(root, out, views, data=(), run=(), freeze=("adapters.*.stem.network.*",)):
    """A recipe of two steps with frozen stems of pictures and sounds, of which each item has ``views``."""
    return make_recipe(
        root,
        out,
        steps=2,
        model={**MODEL, **EVERY, "adapters": STEMS, "pretrained": False},
        data={
            "train": [source("image"), source("audio")],
            "stem_views": views,
            **dict(data),
        },
        run={"batch_size": 8, "log_every": 1, **dict(run)},
        processors={
            "image": {"size": 64},
            "text": {"max_tokens": 16},
            "audio": {"min_seconds": 0.5},
        },
        freeze=list(freeze),
    )


CLOCK = {"items_per_second", "tokens_per_second", "mfu", "hfu", "data_wait", "seconds", "peak_gigabytes"}
"""Fields of a log that are not the same in two runs."""


def logged(out):
    """Lines of a run's log, without its times."""
    lines = read_log(out / "log.jsonl")
    for line in lines:
        for field in list(line):
            if field.partition("/")[0] in CLOCK:
                del line[field]
    return lines


def series(out, name):
    """The values of one field of a run's log, where it has it."""
    return [line[name] for line in logged(out) if name in line]


def losses(out):
    """The losses of each line of a run's log."""
    lines = []
    for line in logged(out):
        names = [name for name in line if name.startswith(("loss", "contrastive", "denoising"))]
        lines.append({name: line[name] for name in names})
    return lines


def assert_same_losses(out, other, rel=2e-4):
    """That the losses of two runs are finite, and equal but for the order in which they are summed."""
    expected_lines = losses(other)
    assert expected_lines
    for line, expected in zip(losses(out), expected_lines, strict=True):
        assert all(math.isfinite(loss) for loss in expected.values())
        assert line == pytest.approx(expected, rel=rel)


def assert_falls(out, name, factor=1.0):
    """That the last value in the log is below a share of the first."""
    values = series(out, name)
    assert values[-1] < factor * values[0]


def assert_same_tensors(ours, theirs):
    """That two dictionaries of tensors are bit-identical."""
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def assert_same_weights(folder, other):
    """That the weights of two model folders are bit-identical."""
    assert_same_tensors(load_file(folder / "model.safetensors"), load_file(other / "model.safetensors"))


def assert_resume_is_exact(make, *, stop_at, steps, torn=None):
    """That a run that is cut off and resumed is bit-identical to one that is not; ``make`` makes its recipe, by a name.

    ``steps`` have a line in the log. That of the step ``torn`` differs: it averages steps before and after the cut.
    """
    whole = trainer.train(make("whole"))
    trainer.train(make("cut"), stop_at=stop_at)
    resumed = trainer.train(make("cut"))

    assert_same_weights(resumed, whole)
    lines = {}
    for name in ("whole", "cut"):
        log = logged(Path(make(name).run.out))
        assert [line["step"] for line in log] == steps
        lines[name] = [line for line in log if line["step"] != torn]
    assert lines["cut"] == lines["whole"]


def with_slow(names, is_slow):
    """Parameters of a test, of which some are marked as slow."""
    params = []
    for name in names:
        params.append(pytest.param(name, marks=pytest.mark.slow if is_slow(name) else ()))
    return params
