"""``bench encode``: items per second, compared with the limit that matrix products set, and with open_clip.

The limit is measured in the same rounds: the matrix products of one block (`F.linear`) for the same number of tokens.
A fraction of 1 means that everything else in the model takes no time.
"""

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.comparison import ratios, short, spread, take_turns
from benchmarks.items import UNITS, item_batch, picture_size
from onepeace.config import SIZES, Config, ModelConfig, build, merge
from onepeace.hub import weights as weight_files
from onepeace.hub.architectures import build_encoder
from onepeace.hub.folder import read_config
from onepeace.hub.resolve import fetch_model
from onepeace.model import Encoder

log = logging.getLogger(__name__)

BATCH_TOKENS = 1600
"""Default maximum of tokens in a batch: enough for matrix products to reach full speed."""
TEXT_TOKENS = 14
"""Tokens of a caption, with eos; all texts of a batch have this length, as `encode` sorts texts by length."""
AUDIO_SECONDS = 5
BASELINE = "ViT-B-16"
BASELINE_SIZE = 224
"""Side in pixels of the baseline's pictures; our model of base size gets the same."""


def bench_encode(
    sizes: Sequence[str], dtypes: Sequence[torch.dtype], device: torch.device, seconds: float, batch: int | None
) -> Iterator[dict[str, Any]]:
    """Rows of the table, one per model, dtype and modality; open_clip is compared with the base size.

    Args:
        sizes: "base" (random weights) or names of models.
        seconds: per row.
        batch: items per batch; None = as many as `BATCH_TOKENS` allow.
    """
    for size in sizes:
        name, config, module = make(size)
        image_tower = _baseline() if size == "base" else None
        for dtype in dtypes:
            module.to(device, dtype)
            for key in module.config.projections:
                baseline = None
                if image_tower is not None and key == "image":
                    baseline = image_tower.to(device, dtype)
                log.info("%s, %s, %s ...", name, key, dtype)
                candidate = Candidate(config=config, module=module, key=key, device=device, dtype=dtype)
                yield {"model": name, **_measure(candidate, baseline, seconds, batch)}


def make(size: str) -> tuple[str, Config, Encoder]:
    """Name, configuration and model of a size: "base" with random weights, or a model by name."""
    if size == "base":
        config = base_config()
        return "base, random weights", config, build_encoder(config).eval()
    folder = fetch_model(size).folder
    return size, read_config(folder), weight_files.load_encoder(folder)


def base_config() -> Config:
    """The base size without a decoder, for pictures of `BASELINE_SIZE`."""
    model = build(ModelConfig, SIZES["base"], "base")
    side = BASELINE_SIZE // int(model.adapters["image"].get("patch_size", 16))
    adapters = merge(model.adapters, {"image": {"grid": side, "bias_grid": side}})
    return Config(replace(model, adapters=adapters, decoder=None), {"image": {"size": BASELINE_SIZE}})


class Candidate(NamedTuple):
    """A model that encodes items of one modality."""

    config: Config
    module: Encoder
    key: str
    """The modality."""
    device: torch.device
    dtype: torch.dtype


def _measure(candidate: Candidate, baseline: Any, seconds: float, batch_size: int | None) -> dict[str, Any]:
    """A row of the table; ``baseline`` is another model for the same pixels, or None."""
    config, module, key, device, dtype = candidate
    size = {"text": TEXT_TOKENS, "audio": AUDIO_SECONDS}.get(key) or picture_size(config, key)
    tokens = int(module.adapters[key].token_lengths(item_batch(config, key, size))) + 1
    count = batch_size or _power_of_two(BATCH_TOKENS // tokens)
    batch = _on_device(item_batch(config, key, size, count), device, dtype)
    products, product_flops = _products(config.model, count * tokens, device, dtype)
    calls: dict[str, Callable[[], object]] = {"limit": products, "ours": lambda: module({key: batch})[key]}
    flops = module_flops(module, {key: batch}) / count
    with torch.inference_mode():
        _check(module({key: batch})[key], (count, config.model.embed_dim))
        if baseline is not None:
            calls["baseline"] = lambda: baseline(batch["pixels"])
            _check(F.normalize(baseline(batch["pixels"]).float(), dim=-1), (count, baseline.output_dim))
        times = take_turns(calls, seconds, device)

    limits = []
    speeds = []
    fractions = []
    for seconds_of_products, seconds_of_ours in zip(times["limit"], times["ours"], strict=True):
        limit = product_flops / seconds_of_products
        speed = count / seconds_of_ours
        limits.append(limit / 1e9)
        speeds.append(speed)
        fractions.append(speed * flops / limit)
    return {
        "modality": key,
        "item": f"{size} {UNITS[key]}",
        "tokens": tokens,
        "gflop_per_item": flops / 1e9,
        "dtype": str(dtype).removeprefix("torch."),
        "batch": count,
        "items_per_second": spread(speeds),
        "limit_gflops": spread(limits),
        "fraction_of_limit": spread(fractions),
        "baseline": None if baseline is None else _baseline_cells(baseline, batch, times),
    }


def _baseline_cells(baseline: Any, batch: Mapping[str, Tensor], times: Mapping[str, list[float]]) -> dict[str, Any]:
    """The part of a row about the baseline."""
    count = len(batch["pixels"])
    return {
        "gflop_per_item": module_flops(baseline, batch["pixels"][:1]) / 1e9,
        "items_per_second": spread([count / seconds for seconds in times["baseline"]]),
        "ours_over_baseline": ratios(times, "baseline", "ours"),
    }


def _power_of_two(limit: int) -> int:
    """The largest power of two up to a limit, at least 1."""
    return max(1, 2 ** (limit.bit_length() - 1))


def _on_device(batch: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """A batch on a device, its floating-point numbers in a precision."""
    moved = {}
    for name, tensor in batch.items():
        moved[name] = tensor.to(device, dtype if tensor.is_floating_point() else None)
    return moved


def _products(
    config: ModelConfig, tokens: int, device: torch.device, dtype: torch.dtype
) -> tuple[Callable[[], None], int]:
    """The matrix products of one block for a number of tokens, and their FLOPs."""
    dim = config.dim
    hidden = config.ffn_dim
    shapes = [(dim, dim)] * 4 + [(hidden, dim)] * 2 + [(dim, hidden)]
    layers = [torch.randn(shape, device=device).to(dtype) for shape in shapes]
    inputs = {width: torch.randn(tokens, width, device=device).to(dtype) for width in (dim, hidden)}

    def run() -> None:
        for weight in layers:
            F.linear(inputs[weight.shape[1]], weight)

    flops = sum(2 * tokens * rows * columns for rows, columns in shapes)
    return run, flops


def module_flops(module: nn.Module, inputs: Any) -> int:
    """FLOPs of a call with tensors, or mappings of tensors, counted on the meta device with a copy of the module."""
    dry = copy.deepcopy(module).to("meta").requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        dry(tree_map_only(Tensor, lambda tensor: tensor.to("meta"), inputs))
    return counter.get_total_flops()


def _baseline() -> Any:
    """Image tower of an open_clip model, with random weights."""
    import open_clip

    return open_clip.create_model(BASELINE, load_weights=False).visual.eval()


def _check(vectors: Tensor, shape: tuple[int, int]) -> None:
    """RuntimeError unless there is one finite unit vector per item."""
    norms = vectors.float().norm(dim=-1)
    if vectors.shape != shape or not bool(((norms - 1).abs() < 1e-3).all()):
        raise RuntimeError(f"vectors of shape {tuple(vectors.shape)} and norms {norms.tolist()[:4]}; expected {shape}")


def columns(row: Mapping[str, Any]) -> dict[str, str]:
    """Columns of the table: medians, with the quartiles of the speed in brackets."""
    speed = row["items_per_second"]
    baseline = row["baseline"]
    against = ""
    if baseline is not None:
        ratio = baseline["ours_over_baseline"]["median"]
        baseline_speed = short(baseline["items_per_second"]["median"])
        against = f"{ratio:.2f} x its {baseline_speed}/s of {short(baseline['gflop_per_item'])} GFLOP"
    return {
        "model": row["model"],
        "item": f"{row['modality']}, {row['item']}",
        "dtype": row["dtype"],
        "batch": str(row["batch"]),
        "items/s": f"{short(speed['median'])} ({short(speed['low'])}-{short(speed['high'])})",
        "GFLOP/item": short(row["gflop_per_item"]),
        "of the GEMM limit": f"{row['fraction_of_limit']['median']:.2f} of {row['limit_gflops']['median']:.0f} GFLOP/s",
        "against open_clip": against,
    }
