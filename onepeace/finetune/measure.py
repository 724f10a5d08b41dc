"""What a model makes of the part that is held out: figures with intervals, and the rank of the right text of each item.

A model with a head of its own is asked by it; one that was not trained for the classes yet chooses among their names.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onepeace.data.sample import Sample
from onepeace.data.shards import read_source
from onepeace.embed.embedder import Embedder
from onepeace.embed.predict import Head
from onepeace.embed.zero_shot import TEMPLATES, prototypes
from onepeace.evaluate.metrics import best_ranks
from onepeace.evaluate.protocols import EvaluationProtocol, Retrieval, TaskHead, ZeroShot
from onepeace.evaluate.report import Row
from onepeace.evaluate.run import run

WORDS, HEAD = "words", "head"
"""How a class was chosen: by the vectors of the class names, or by a trained head."""


def figures(
    model: Embedder, data: Path, pairs: Sequence[str], labels: Path | None, heads: Mapping[str, str]
) -> list[Row]:
    """The figures of every pair, as "image+text".

    Args:
        data: folder of the shards; those of val are read.
        labels: file of the class names, below ``data``; None for pairs with captions.
        heads: the model's heads by modality; of a modality without one the class names are asked twice, so that what
            a head gains can be compared.
    """
    rows: list[Row] = []
    for pair in pairs:
        modality, *others = pair.split("+")
        shards = f"val/{pair}-*.tar"
        sets: dict[str, EvaluationProtocol] = {}
        if labels is None:
            sets[pair] = Retrieval(modality=modality, shards=shards, other=others[-1])
        else:
            sets[f"{modality} by {WORDS}"] = ZeroShot(modality=modality, shards=shards, classes=str(labels))
            if modality in heads:
                sets[f"{modality} by {HEAD}"] = TaskHead(modality=modality, shards=shards, head=heads[modality])
        found = list(run(model, sets, data))
        rows += found
        if labels is not None and modality not in heads:
            rows += [row._replace(set=f"{modality} by {HEAD}") for row in found]
    return rows


def held_out(data: Path, pair: str) -> list[Sample]:
    """The samples of a pair that are held out."""
    return read_source(f"val/{pair}-*.tar", pair.split("+"), data, broken_limit=1.0).samples


def ranks(model: Embedder, samples: Sequence[Sample], pair: str, labels: Sequence[str], head: str | None) -> list[int]:
    """The place, from 1, at which each item finds what belongs to it: its class, or one of its own texts."""
    modality, *others = pair.split("+")
    media = [sample.inputs[modality] for sample in samples]
    if head is not None:
        results = Head(model, head).predict(media, top=len(labels))
        names = [[one["label"] for one in (found.result or {"labels": []})["labels"]] for found in results]
        return [found.index(s.label) + 1 if s.label in found else len(labels)
                for found, s in zip(names, samples, strict=True)]  # fmt: skip
    vectors = np.asarray(getattr(model, f"encode_{modality}")(media))
    ids = list(range(len(samples)))
    if labels:
        candidates = prototypes(model.encode_text, labels, TEMPLATES.get(modality, ("{}",))).numpy()
        wanted: list[Any] = [sample.label for sample in samples]
        return best_ranks(vectors @ candidates.T, np.array(wanted), np.array(labels)).tolist()
    if others[-1] == "text":
        texts = [(i, text) for i, sample in enumerate(samples) for text in sample.captions]
        candidates = np.asarray(model.encode_text([text for _, text in texts]))
        return best_ranks(vectors @ candidates.T, ids, [i for i, _ in texts]).tolist()
    candidates = np.asarray(getattr(model, f"encode_{others[-1]}")([s.inputs[others[-1]] for s in samples]))
    return best_ranks(vectors @ candidates.T, ids, ids).tolist()
