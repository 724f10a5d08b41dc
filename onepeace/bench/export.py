"""`onepeace bench export`: size, speed and accuracy of exported branches, float32 and int8, beside the model in torch.

All formats of a branch take turns in the same rounds, on inputs in memory. Their accuracy is that of one branch at a
time: what it is compared with, the texts of a picture or the pictures of a text, are vectors of the model.
"""

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from onepeace.bench.comparison import check_equal, ratios, short, spread, take_turns
from onepeace.bench.encode import AUDIO_SECONDS, BATCH_TOKENS, TEXT_TOKENS
from onepeace.config import Config, Options
from onepeace.cost.dry_run import pass_cost
from onepeace.cost.items import UNITS, item_batch, picture_size
from onepeace.embed.embedder import Embedder, load
from onepeace.errors import UserError
from onepeace.evaluate.run import EvaluationRecipe, recipe_from, run
from onepeace.export.embedder import open_export
from onepeace.export.folder import INT8_TOLERANCE, RECORD, TOLERANCE, export_model
from onepeace.export.int8 import INT8
from onepeace.hub.folder import TOKENIZER, read_config
from onepeace.hub.resolve import resolve

log = logging.getLogger(__name__)

TORCH, ONNX = "torch float32", "onnx float32"
SETS: dict[str, tuple[str, Options]] = {
    "text": (
        "text to image R@10",
        {"protocol": "retrieval", "modality": "image", "shards": "val/flickr8k/*.tar*", "at": [10]},
    ),
    "image": (
        "top-1",
        {"protocol": "zero_shot", "modality": "image", "shards": "val/tiny_imagenet/*.tar*",
         "classes": "val/tiny_imagenet/classes.json", "at": [1]},
    ),
    "audio": (
        "top-1",
        {"protocol": "zero_shot", "modality": "audio", "shards": "val/esc50_fold5/*.tar*",
         "classes": "val/esc50_fold5/classes.json", "at": [1]},
    ),
}  # fmt: skip
"""The figure of each branch, and the set it is of, as in recipes/evaluate/tiny.yaml."""


def bench_export(
    model: str,
    modalities: Sequence[str] | None,
    seconds: float,
    batch: int | None,
    data: str | None,
    overrides: Sequence[str] = (),
) -> Iterator[dict[str, Any]]:
    """A row for each format of each branch.

    Args:
        modalities: None: all that have vectors.
        seconds: of the rounds of a branch, for one item at a time and for a batch.
        batch: items in a batch; None: as many as `BATCH_TOKENS` allow.
        data: the folder of shards; None leaves accuracy out.
        overrides: "sets.text.keys=..." and the like, in place of fields of `SETS`.
    """
    config, embedder = read_config(resolve(model)), load(model, device="cpu", dtype="float32")
    chosen = tuple(modalities or config.model.projections)
    recipe = None if data is None else _recipe(chosen, data, overrides)
    root = None if recipe is None else recipe.data.folder()
    encoders = {name: cache(_of_tuple(embedder, name)) for name in embedder.modalities}
    with tempfile.TemporaryDirectory(prefix="onepeace-") as folder:
        formats, sizes = _formats(model, chosen, embedder, Path(folder))
        for key in chosen:
            log.info("%s: speed ...", key)
            speeds = _speeds(config, key, formats, seconds, batch)
            for name, candidate in formats.items():
                figure = None
                if recipe is not None and root is not None and {"text", recipe.sets[key].modality} <= set(encoders):
                    log.info("%s, %s: accuracy ...", key, name)
                    figure = _figure(key, candidate, encoders, recipe, root)
                about = {"model": model, "branch": key, "format": name, "bytes": sizes[name][key]}
                yield {**about, **speeds[name], **(figure or {})}


def _recipe(chosen: Sequence[str], data: str, overrides: Sequence[str]) -> EvaluationRecipe:
    if unknown := [key for key in chosen if key not in SETS]:
        raise UserError(f"no set to measure {unknown[0]} on; there are sets of {', '.join(SETS)}")
    sets = {key: dict(SETS[key][1]) for key in chosen}
    return recipe_from({"sets": sets, "data": {"root": data}}, overrides, "bench export")


def _formats(
    model: str, chosen: Sequence[str], embedder: Embedder, folder: Path
) -> tuple[dict[str, Embedder], dict[str, dict[str, int]]]:
    """The model and its exports, and the bytes of their branches."""
    plain = folder / "float32"
    files = {file.modality: file for file in export_model(model, plain, modalities=chosen)}
    sizes = {TORCH: {}, ONNX: {key: file.bytes for key, file in files.items()}}
    for key in chosen:
        alone = load(model, device="cpu", dtype="float32", modalities=[key]).module
        alone.decoder = None
        sizes[TORCH][key] = sum(parameter.nbytes for parameter in alone.parameters())
    threads = torch.get_num_threads()
    formats = {TORCH: embedder, ONNX: open_export(plain, threads=threads)}
    for kind, convert in INT8.items():
        name, target = f"onnx int8 {kind}", folder / kind
        target.mkdir()
        for other in (RECORD, TOKENIZER):
            if (plain / other).exists():
                shutil.copyfile(plain / other, target / other)
        sizes[name] = {}
        for key, file in files.items():
            convert(file.path, target / file.path.name)
            sizes[name][key] = sum(one.stat().st_size for one in target.glob(f"{file.path.name}*"))
        formats[name] = open_export(target, threads=threads)
    return formats, sizes


def _speeds(
    config: Config, key: str, formats: Mapping[str, Embedder], seconds: float, wanted: int | None
) -> dict[str, dict[str, Any]]:
    """By format: how many items a batch has, seconds of one item and of a batch, and the torch model's over them."""
    size = {"text": TEXT_TOKENS, "image": picture_size(config), "audio": AUDIO_SECONDS}[key]
    tokens = pass_cost(config, key, item_batch(config, key, size)).tokens
    count = wanted or max(1, 2 ** ((BATCH_TOKENS // tokens).bit_length() - 1))
    rows: dict[str, dict[str, Any]] = {
        name: {"item": f"{size} {UNITS[key]}", "batch": count, "seconds": {}, "torch_over_it": {}} for name in formats
    }
    for what, number in {"one": 1, "batch": count}.items():
        inputs = {key: item_batch(config, key, size, number)}
        calls: dict[str, Callable[[], Any]] = {
            name: partial(candidate.module, inputs) for name, candidate in formats.items()
        }
        with torch.inference_mode():
            wanted_vectors = calls[TORCH]()
            for name, call in calls.items():
                check_equal(call(), wanted_vectors, TOLERANCE if name == ONNX else INT8_TOLERANCE, f"{name} vectors of")
            times = take_turns(calls, seconds / 2, torch.device("cpu"))
        for name, row in rows.items():
            row["rounds"] = len(times[name])
            row["seconds"][what] = spread(times[name])
            row["torch_over_it"][what] = ratios(times, TORCH, name)
    return rows


def _of_tuple(embedder: Embedder, key: str) -> Callable[[tuple[Any, ...]], Any]:
    encode = getattr(embedder, f"encode_{key}")
    return lambda items: encode(items, output="numpy")


def _figure(
    key: str,
    candidate: Embedder,
    encoders: Mapping[str, Callable[[tuple[Any, ...]], Any]],
    recipe: EvaluationRecipe,
    root: Path,
) -> dict[str, Any]:
    """What the branch of a candidate reaches among the vectors of the model, which are computed once."""
    beside = {f"encode_{name}": lambda items, encode=encode: encode(tuple(items)) for name, encode in encoders.items()}
    mixed = SimpleNamespace(**{**beside, f"encode_{key}": getattr(candidate, f"encode_{key}")})
    rows = [row for row in run(mixed, {key: recipe.sets[key]}, root) if row.metric.startswith(SETS[key][0])]
    return {"metric": rows[0].metric, "value": rows[0].value, "n": rows[0].n, "interval": rows[0].interval}


def columns(row: Mapping[str, Any]) -> dict[str, str]:
    """A row for people: medians, quartiles in brackets; speeds are those of torch in the same rounds, times this."""

    def speed(what: str) -> str:
        ratio = row["torch_over_it"][what]
        return f"{ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})"

    figure = f"{row['value']:.1%} {row['metric']}, n = {row['n']:,}" if "value" in row else ""
    return {
        "branch": f"{row['branch']}, {row['item']}",
        "format": row["format"],
        "MB": short(row["bytes"] / 1e6),
        "ms, one item": short(row["seconds"]["one"]["median"] * 1e3),
        "speed / torch, one": speed("one"),
        "speed / torch, batch": f"{speed('batch')} of {row['batch']}",
        "accuracy": figure,
    }
