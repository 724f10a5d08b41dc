"""``bench encode``: items per second, compared with the limit that matrix products set, and with open_clip.

The limit is measured in the same rounds: the matrix products of one block (`F.linear`) for the same number of tokens.
A fraction of 1 means that everything else in the model takes no time.
"""

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from onepeace.bench.comparison import ratios, short, spread, take_turns
from onepeace.config import SIZES, Config, ModelConfig, build, merge
from onepeace.data.synthetic import UNITS, item_batch, picture_size
from onepeace.hub import weights as weight_files
from onepeace.hub.architectures import build_encoder
from onepeace.hub.folder import read_config
from onepeace.hub.resolve import resolve
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
        tower = _baseline() if size == "base" else None
        for dtype in dtypes:
            module.to(device, dtype)
            for key in module.config.projections:
                other = tower.to(device, dtype) if tower is not None and key == "image" else None
                log.info("%s, %s, %s ...", name, key, dtype)
                yield {"model": name, **_measure(config, module, key, dtype, device, seconds, batch, other)}


def make(size: str) -> tuple[str, Config, Encoder]:
    """Name, configuration and model of a size: "base" with random weights, or a model by name."""
    if size == "base":
        config = base_config()
        return "base, random weights", config, build_encoder(config).eval()
    module = weight_files.load_encoder(folder := resolve(size))
    return size, read_config(folder), module


def base_config() -> Config:
    """The base size without a decoder, for pictures of `BASELINE_SIZE`."""
    model = build(ModelConfig, SIZES["base"], "base")
    side = BASELINE_SIZE // int(model.adapters["image"].get("patch_size", 16))
    adapters = merge(model.adapters, {"image": {"grid": side, "bias_grid": side}})
    return Config(replace(model, adapters=adapters, decoder=None), {"image": {"size": BASELINE_SIZE}})


def _measure(
    config: Config,
    module: Encoder,
    key: str,
    dtype: torch.dtype,
    device: torch.device,
    seconds: float,
    wanted: int | None,
    baseline: Any,
) -> dict[str, Any]:
    size = {"text": TEXT_TOKENS, "audio": AUDIO_SECONDS}.get(key) or picture_size(config, key)
    tokens = int(module.adapters[key].token_lengths(item_batch(config, key, size))) + 1
    count = wanted or max(1, 2 ** ((BATCH_TOKENS // tokens).bit_length() - 1))
    made = item_batch(config, key, size, count)
    batch = {name: t.to(device, dtype if t.is_floating_point() else None) for name, t in made.items()}
    products, product_flops = _products(config.model, count * tokens, device, dtype)
    calls: dict[str, Callable[[], object]] = {"limit": products, "ours": lambda: module({key: batch})[key]}
    flops = module_flops(module, {key: batch}) / count
    with torch.inference_mode():
        _check(module({key: batch})[key], (count, config.model.embed_dim))
        if baseline is not None:
            calls["baseline"] = lambda: baseline(batch["pixels"])
            _check(F.normalize(baseline(batch["pixels"]).float(), dim=-1), (count, baseline.output_dim))
        times = take_turns(calls, seconds, device)
    limits = [product_flops / seconds for seconds in times["limit"]]
    speeds = [count / seconds for seconds in times["ours"]]
    row = {
        "modality": key,
        "item": f"{size} {UNITS[key]}",
        "tokens": tokens,
        "gflop_per_item": flops / 1e9,
        "dtype": str(dtype).removeprefix("torch."),
        "batch": count,
        "items_per_second": spread(speeds),
        "limit_gflops": spread([limit / 1e9 for limit in limits]),
        "fraction_of_limit": spread([speed * flops / limit for speed, limit in zip(speeds, limits, strict=True)]),
        "baseline": None,
    }
    if baseline is not None:
        row["baseline"] = {
            "gflop_per_item": module_flops(baseline, batch["pixels"][:1]) / 1e9,
            "items_per_second": spread([count / seconds for seconds in times["baseline"]]),
            "ours_over_baseline": ratios(times, "baseline", "ours"),
        }
    return row


def _products(
    config: ModelConfig, tokens: int, device: torch.device, dtype: torch.dtype
) -> tuple[Callable[[], None], int]:
    """The matrix products of one block for a number of tokens, and their FLOPs."""
    dim, hidden = config.dim, config.ffn_dim
    shapes = [(dim, dim)] * 4 + [(hidden, dim)] * 2 + [(dim, hidden)]
    layers = [torch.randn(shape, device=device).to(dtype) for shape in shapes]
    inputs = {width: torch.randn(tokens, width, device=device).to(dtype) for width in (dim, hidden)}

    def run() -> None:
        for weight in layers:
            F.linear(inputs[weight.shape[1]], weight)

    return run, sum(2 * tokens * rows * columns for rows, columns in shapes)


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
    speed, baseline, beside = row["items_per_second"], row["baseline"], ""
    if baseline is not None:
        beside = f"{baseline['ours_over_baseline']['median']:.2f} x its "
        beside += f"{short(baseline['items_per_second']['median'])}/s of {short(baseline['gflop_per_item'])} GFLOP"
    return {
        "model": row["model"],
        "item": f"{row['modality']}, {row['item']}",
        "dtype": row["dtype"],
        "batch": str(row["batch"]),
        "items/s": f"{short(speed['median'])} ({short(speed['low'])}-{short(speed['high'])})",
        "GFLOP/item": short(row["gflop_per_item"]),
        "of the GEMM limit": f"{row['fraction_of_limit']['median']:.2f} of {row['limit_gflops']['median']:.0f} GFLOP/s",
        "against open_clip": beside,
    }
