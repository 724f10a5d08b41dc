"""Timing that compares: candidates take turns, so that what slows the machine down slows all of them."""

import math
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import quantiles
from typing import Any

import torch

SHORTEST = 0.05
"""Seconds a candidate's turn lasts at least; shorter calls are repeated."""
MIN_ROUNDS = 3


def spread(values: list[float]) -> dict[str, float]:
    """A median with the quartiles around it."""
    return dict(zip(("low", "median", "high"), quantiles(values, method="inclusive"), strict=True))


def ratios(times: Mapping[str, list[float]], over: str, under: str) -> dict[str, float]:
    """Spread of a time over another of the same round."""
    return spread([a / b for a, b in zip(times[over], times[under], strict=True)])


def take_turns(
    candidates: Mapping[str, Callable[[], object]], seconds: float, device: torch.device
) -> dict[str, list[float]]:
    """Seconds per call of each candidate, once per round: A B A B ..., after a warm-up call of each.

    Args:
        seconds: rounds are started until this time is over, `MIN_ROUNDS` at least.
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
    """Accelerators return before they are done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def usable_cpus() -> int:
    """CPUs this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine(device: torch.device) -> dict[str, Any]:
    """Where the times were taken."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line[:10] == "model name"]
        processor = names[0] if names else processor
    return {
        "processor": processor,
        "capabilities": [name for name, has in torch.cpu.get_capabilities().items() if has is True],
        "threads": torch.get_num_threads(),
        "device": str(device) if device.type == "cpu" else f"{device} ({torch.accelerator.current_accelerator()})",
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
