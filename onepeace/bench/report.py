"""Measurements as text, and the check that what is compared computes the same."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from onepeace.files.table import markdown_table


def check_equal(ours: Mapping[str, Tensor], baseline: Mapping[str, Tensor], tolerance: float, what: str) -> None:
    """RuntimeError unless both have the same tensors, each at most this far apart by norms."""
    if ours.keys() != baseline.keys():
        names = ", ".join(sorted(ours.keys() ^ baseline.keys()))
        raise RuntimeError(f"the two ways do not compute the same: only one of them has {what} {names}")
    for name, value in baseline.items():
        apart, size = float((ours[name] - value).norm()), float(value.norm())
        if not apart <= tolerance * size:
            raise RuntimeError(f"the two ways differ: {what} {name} is {apart} apart, of {size}")


def dtype_name(dtype: torch.dtype) -> str:
    """ "float32"."""
    return str(dtype).removeprefix("torch.")


def short(value: float) -> str:
    """Three significant figures, without an exponent."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def around(ratio: Mapping[str, float]) -> str:
    """A median, and its quartiles in brackets."""
    return f"{ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})"


def markdown_report(head: Sequence[str], rows: Sequence[Sequence[str]], where: Mapping[str, Any]) -> str:
    """A Markdown table, and the machine (`timing.machine`) below it."""
    on = f"{where['processor']}, {where['threads']} threads, {where['device']}, torch {where['torch']}"
    return f"{markdown_table(head, rows)}\n\n{on}"
