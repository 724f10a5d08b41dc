"""Measurements as text and as files. Next: timing.py."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from onepeace.bench.timing import Spread
from onepeace.errors import UserError


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    return Spread.of(values)._asdict()


def dtype_name(dtype: torch.dtype) -> str:
    """ "float32"."""
    return str(dtype).removeprefix("torch.")


def short(value: float) -> str:
    """Three significant figures, without an exponent."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def lines_of(head: Sequence[str], rows: Sequence[Sequence[str]], where: Mapping[str, Any]) -> str:
    """A Markdown table, and the machine (`timing.machine`) below it."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    text = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines]
    return "\n".join([*text, "", f"{where['processor']}, {where['threads']} threads, {where['device']}, "
                                 f"torch {where['torch']}"])  # fmt: skip


def write_json(report: Mapping[str, Any], path: str | Path) -> None:
    """The report as a file."""
    import json

    try:
        Path(path).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
