"""`onepeace bench index`: filling an index beside its limits, the decoding alone and the model alone.

All three go through the same files with the same threads and batches: the first fills in made-up vectors, the second
has the batches in memory, the third is `onepeace index build` into a folder that is then removed. Where the model has
a device of its own, filling takes at least as long as the slower of the two; where it computes on the CPU that
decodes, both share its cores, and the sum is the limit.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from onepeace.bench.comparison import ratios, short, spread, take_turns
from onepeace.embed.embedder import Embedder, load
from onepeace.embed.options import Options
from onepeace.embed.stream import Waiting
from onepeace.errors import UsageError
from onepeace.index.build import Builder, Report
from onepeace.index.identity import identity
from onepeace.index.sources import Scan, roots_of, scan
from onepeace.index.store import Store

log = logging.getLogger(__name__)


class Recorder(Embedder):
    """Decodes, and hands batches to a function in place of the model. All vectors are the same."""

    def __init__(self, embedder: Embedder, take: Callable[[str, dict[str, torch.Tensor]], None]) -> None:
        super().__init__(embedder.module, embedder.processors)
        self.take = take
        self._vector = torch.nn.functional.normalize(torch.ones(embedder.embed_dim), dim=0)

    def _compute(self, batch: list[Waiting], options: Options) -> torch.Tensor:
        modality = batch[0].modality
        self.take(modality, self.inputs(modality, [entry.sample for entry in batch]))
        return self._vector.expand(len(batch), -1)


def bench_index(folders: Sequence[str], model: str, device: torch.device, seconds: float) -> Iterator[dict[str, Any]]:
    """One row.

    Raises:
        UsageError: no files there.
    """
    found = scan(roots_of(folders))
    if all(entry.item.problem for entry in found.entries.values()):
        raise UsageError(f"{', '.join(folders)}: no picture, sound or text in it")
    embedder = load(model, device=str(device))
    about = identity(model)
    batches: list[tuple[str, dict[str, torch.Tensor]]] = []
    log.info("reading %d files ...", len(found.entries))
    report = _fill(found, about, Recorder(embedder, lambda *batch: batches.append(batch)))
    decoder = Recorder(embedder, lambda *_: None)

    @torch.inference_mode()
    def compute() -> None:
        for modality, inputs in batches:
            embedder.module({modality: inputs})

    ways: dict[str, Callable[[], object]] = {
        "decode": lambda: _fill(found, about, decoder),
        "model": compute,
        "build": lambda: _fill(found, about, embedder),
    }
    times = take_turns(ways, seconds, device)
    times["limit"] = [max(pair) for pair in zip(times["decode"], times["model"], strict=True)]
    times["sum"] = [sum(pair) for pair in zip(times["decode"], times["model"], strict=True)]
    yield {
        "files": report.added,
        "vectors": report.vectors,
        "problems": len(report.problems),
        "rounds": len(times["build"]),
        "seconds": {way: spread(values) for way, values in times.items()},
        "time_over_limit": ratios(times, "build", "limit"),
        "time_over_sum": ratios(times, "build", "sum"),
    }


def _fill(found: Scan, about: dict[str, str], embedder: Embedder) -> Report:
    with tempfile.TemporaryDirectory(prefix="onepeace-bench-") as folder:
        store = Store.create(Path(folder), embedder.embed_dim, about)
        builder = Builder(store, lambda: embedder, progress=False)
        try:
            builder.add(found.entries.values())
        finally:
            store.close()
    return builder.report


def columns(row: Mapping[str, Any]) -> dict[str, str]:
    """A row for people: medians, quartiles in brackets."""
    seconds = {way: short(values["median"]) for way, values in row["seconds"].items()}
    over = {
        name: f"{ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})"
        for name, ratio in (("limit", row["time_over_limit"]), ("sum", row["time_over_sum"]))
    }
    return {
        "files": f"{row['files']} ({row['problems']} broken)" if row["problems"] else str(row["files"]),
        "s to decode": seconds["decode"],
        "s of the model": seconds["model"],
        "s to build": seconds["build"],
        "files / s": short(row["files"] / row["seconds"]["build"]["median"]),
        "build / slower of the two": over["limit"],
        "build / their sum": over["sum"],
    }
