"""OFA's original numbers (tests/golden/ofa), and our model with the original's weights."""

from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from onepeace.generative.config import OFAConfig
from onepeace.generative.convert import to_ours
from onepeace.generative.model import OFA

FOLDER = Path(__file__).parents[1] / "golden" / "ofa"
SIZES = {
    "dim": 32,
    "encoder_depth": 3,
    "decoder_depth": 2,
    "num_heads": 4,
    "ffn_dim": 64,
    "num_words": 64,
    "num_codes": 32,
    "num_bins": 40,
    "num_positions": 64,
    "num_buckets": 8,
    "image_grid": 8,
    "stem_depths": (2, 2, 2),
    "stem_width": 8,
}

# Tolerances, relative to a tensor's largest number: the original differs from itself in float64 by up to 1.2e-6 in
# outputs (8e-6 with statistics of the batch) and 1.4e-5 in gradients (1.2e-4).
OUTPUT = 1e-5
GRADIENT = 1e-4
BATCH_STATISTICS = 1e-3


@cache
@torch.inference_mode(False)  # the first test that asks may be in that mode, and others compute gradients
def golden(name: str) -> dict[str, Tensor]:
    """A case: what goes in under our names, what comes out ("out."), gradients ("grad.") under the original's."""
    return load_file(FOLDER / f"{name}.safetensors")


def golden_ofa(**options: object) -> OFA:
    """Our model with the original's weights, in evaluation mode; ``options``: more fields of OFAConfig."""
    model = OFA(OFAConfig(**{**SIZES, **options}))
    state = {}
    for name, tensor in golden("weights").items():
        our_name = to_ours(name)
        if our_name:
            state[our_name] = tensor
    model.load_state_dict(state, strict=True)
    return model.eval()


def part(case: dict[str, Tensor], start: str) -> dict[str, Tensor]:
    """The tensors of a case whose names begin so, by the rest of their names."""
    return {name.removeprefix(start): tensor for name, tensor in case.items() if name.startswith(start)}


def assert_near(actual: Tensor, expected: Tensor, tolerance: float, rows: Tensor | None = None) -> None:
    """Equal shapes, finite numbers, no difference above ``tolerance`` of the largest number (at ``rows``)."""
    assert actual.shape == expected.shape
    if rows is not None:
        actual = actual[rows]
        expected = expected[rows]
    assert actual.numel() > 0
    assert bool(torch.isfinite(actual).all())
    difference = (actual - expected).abs().max() / expected.abs().max()
    assert difference <= tolerance
