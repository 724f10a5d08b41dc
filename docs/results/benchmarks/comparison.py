"""Comparison of candidates: that they compute the same, the time of each, and its peak memory.

Candidates take turns, so that other load on the machine slows all of them.
"""

import math
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import quantiles
from typing import Any

import torch
from torch import Tensor
from trackers import PeakTracker

from onepeace.files.table import markdown_table

SHORTEST = 0.05
"""Minimum seconds of a turn; shorter calls are repeated."""
MIN_ROUNDS = 3


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    return dict(zip(("low", "median", "high"), quantiles(values, method="inclusive"), strict=True))


def take_turns(
    candidates: Mapping[str, Callable[[], object]], seconds: float, device: torch.device
) -> dict[str, list[float]]:
    """Seconds per call of each candidate and round: A B A B ..., after a warm-up call of each.

    Args:
        seconds: time after which no round is started; there are at least `MIN_ROUNDS`.
    """
    repeats = {}
    for name, call in candidates.items():
        call()
        repeats[name] = math.ceil(SHORTEST / max(_seconds_of(call, 1, device), 1e-9))
    times: dict[str, list[float]] = {name: [] for name in candidates}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < MIN_ROUNDS:
        for name, call in candidates.items():
            times[name].append(_seconds_of(call, repeats[name], device))
    return times


def _seconds_of(call: Callable[[], object], repeats: int, device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    _wait(device)
    return (time.perf_counter() - start) / repeats


def _wait(device: torch.device) -> None:
    """Wait for the device: kernels run asynchronously."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def markdown_report(rows: Sequence[Mapping[str, str]], device: torch.device) -> str:
    """A Markdown table of the rows, and the machine the times are from."""
    columns = list(rows[0]) if rows else []
    table = markdown_table(columns, [list(row.values()) for row in rows])
    machine = f"{_processor()}, {torch.get_num_threads()} threads, {device}, torch {torch.__version__}"
    return f"{table}\n\n{machine}"


def _processor() -> str:
    """Name of the CPU."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def check_equal(ours: Mapping[str, Tensor], baseline: Mapping[str, Tensor], tolerance: float, what: str) -> None:
    """RuntimeError unless both have the same tensors, up to a relative difference in norm."""
    if ours.keys() != baseline.keys():
        names = ", ".join(sorted(ours.keys() ^ baseline.keys()))
        raise RuntimeError(f"the two candidates differ: only one of them has {what} {names}")
    for name, value in baseline.items():
        difference = float((ours[name] - value).norm())
        norm = float(value.norm())
        if not difference <= tolerance * norm:
            raise RuntimeError(f"the two candidates differ: {what} {name} by {difference}, with a norm of {norm}")


def compare(
    candidates: Mapping[str, Callable[[], object]], tensors: Iterable[Any], seconds: float, device: torch.device
) -> dict[str, Any]:
    """Time and peak memory of "ours" and "baseline", and the ratios.

    Args:
        tensors: those whose memory does not count.
    """
    tensors = list(tensors)
    peaks = {name: peak_bytes(run, tensors) for name, run in candidates.items()}
    times = take_turns(candidates, seconds, device)
    return {
        "seconds": {name: spread(values) for name, values in times.items()},
        "time_ours_over_baseline": ratios(times, "ours", "baseline"),
        "peak_bytes": peaks,
        "memory_ours_over_baseline": peaks["ours"] / peaks["baseline"],
    }


def peak_bytes(run: Callable[[], object], tensors: Sequence[Any]) -> int:
    """Peak memory of a call, without the memory of these ``tensors`` and without the work space of kernels."""
    tracker = PeakTracker()
    tracker.track_external(*tensors)
    with tracker:
        before = tracker.peak().total()
        run()
    return tracker.peak().total() - before


def ratios(times: Mapping[str, list[float]], over: str, under: str) -> dict[str, float]:
    """Spread of the ratios of two candidates' times, round by round."""
    return spread([a / b for a, b in zip(times[over], times[under], strict=True)])


def short(value: float) -> str:
    """Three significant figures, without an exponent."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def compared(row: Mapping[str, Any]) -> dict[str, str]:
    """Columns of a table for a result of `compare`: medians, with quartiles in brackets."""
    ratio = row["time_ours_over_baseline"]
    seconds = [short(row["seconds"][name]["median"]) for name in ("ours", "baseline")]
    megabytes = [short(row["peak_bytes"][name] / 1e6) for name in ("ours", "baseline")]
    return {
        "seconds": ", baseline ".join(seconds),
        "ours / baseline, time": f"{ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})",
        "MB": ", baseline ".join(megabytes),
        "ours / baseline, memory": f"{row['memory_ours_over_baseline']:.3f}",
    }
