"""What a model makes of a part of the data: figures with intervals, among them the rank of the right text of each item.

A model with a head of its own is asked by it; one that was not trained for the classes yet chooses among their names.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onepeace.data.sample import Sample
from onepeace.data.shards import read_source
from onepeace.embed.embedder import Embedder
from onepeace.evaluate.protocols import EvaluationProtocol, Retrieval, TaskHead, ZeroShot
from onepeace.evaluate.report import Row
from onepeace.evaluate.run import run

WORDS, HEAD = "words", "head"
"""How a class was chosen: by the vectors of the class names, or by a trained head."""
RANK = "MRR"
"""The mean reciprocal rank, by the end of its metric's name."""


def figures(
    model: Embedder, data: Path, pairs: Sequence[str], labels: Path | None, heads: Mapping[str, str], part: str = "val"
) -> list[Row]:
    """The figures of every pair, as "image+text".

    Args:
        data: folder of the shards.
        labels: file of the class names, below ``data``; None for pairs with captions.
        heads: the model's heads by modality; of a modality without one the class names are asked twice, so that what
            a head gains can be compared.
        part: "val", which is held out, or "choose".
    """
    rows: list[Row] = []
    for pair in pairs:
        shards = f"{part}/{pair}-*.tar"
        modality, *others = pair.split("+")
        if labels is None:
            protocol = Retrieval(modality=modality, shards=shards, other=others[-1], reciprocal_rank=True)
            rows += run(model, {pair: protocol}, data)
            continue
        for key in (key for key in pair.split("+") if key != "text"):
            by_words, by_head = (_set_name(pair, key, how) for how in (WORDS, HEAD))
            sets: dict[str, EvaluationProtocol] = {
                by_words: ZeroShot(modality=key, shards=shards, classes=str(labels), reciprocal_rank=True)
            }
            if key in heads:
                sets[by_head] = TaskHead(modality=key, shards=shards, head=heads[key], reciprocal_rank=True)
            found = list(run(model, sets, data))
            rows += found
            if key not in heads:
                rows += [row._replace(set=by_head) for row in found]
    return rows


def _set_name(pair: str, modality: str, how: str) -> str:
    """As "image by head". Pictures that have a sound as well are a pair of their own, and its name tells them apart."""
    return f"{modality} by {how}" if pair == f"{modality}+text" else f"{modality} of {pair} by {how}"


def held_out(data: Path, pair: str) -> list[Sample]:
    """The samples of a pair that are held out."""
    return read_source(f"val/{pair}-*.tar", pair.split("+"), data, broken_limit=1.0)


def score(rows: Sequence[Row]) -> float:
    """The mean of the mean reciprocal ranks: what models are chosen by, as it sees ranks beyond the k of a recall."""
    return float(np.mean([row.value for row in rows if row.metric.endswith(RANK)]))


def ranks(results: Sequence[Mapping[str, Any]], pair: str, labelled: bool) -> list[int]:
    """The place, from 1, at which each held-out item finds what belongs to it: its class, or one of its own texts.

    Args:
        results: the figures as they are kept (``evaluate.compare.read_results``).
    """
    modality, *others = pair.split("+")
    wanted = (_set_name(pair, modality, HEAD), RANK) if labelled else (pair, f"{modality} to {others[-1]} {RANK}")
    (row,) = (row for row in results if (row["set"], row["metric"]) == wanted)
    return [round(1 / value) for value in row["per_query"]]
