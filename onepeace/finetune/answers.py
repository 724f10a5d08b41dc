"""The answers of a model to a part of the data, measured by the protocols of evaluate/, and the gains of another one.

A model answers with its trained head if it has one, otherwise by the class names (zero-shot).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onepeace.config import build
from onepeace.embed.classify import TEMPLATES
from onepeace.embed.embedder import Embedder
from onepeace.evaluate.intervals import Estimate, gain_of_groups
from onepeace.evaluate.metrics import hits, mean_reciprocal_rank
from onepeace.evaluate.protocols import EvaluationProtocol
from onepeace.evaluate.protocols.classes import ZeroShot
from onepeace.evaluate.protocols.retrieval import Retrieval
from onepeace.evaluate.protocols.task_head import TaskHead
from onepeace.evaluate.ranking import Ranking
from onepeace.files.atomic import write_text_atomic
from onepeace.finetune.split import VAL

WORDS = "words"
"""A class was chosen by the vectors of the class names."""
HEAD = "head"
"""A class was chosen by a trained head."""
AT = (1, 5, 10)
"""The k of the accuracies and recalls."""


@dataclass(frozen=True, kw_only=True)
class Answers(Ranking):
    """Answers of a model to the queries of a set, as ranks of the right classes, texts or items."""

    set: str
    """Name of the set, such as "image by head"; the modalities for captions."""


def answers(
    model: Embedder,
    data: Path,
    combinations: Sequence[str],
    labels: Sequence[str],
    heads: Mapping[str, str],
    part: str = VAL,
) -> list[Answers]:
    """The answers of a model to one part of the samples.

    Args:
        data: folder of the shards.
        combinations: combinations of the modalities of samples, such as "image+text".
        labels: the class names; empty for samples with captions.
        heads: the model's heads by modality; for a modality without one, the zero-shot answers are used for both.
        part: "val", which is held out, or "choose".
    """
    rankings: dict[EvaluationProtocol, Sequence[object]] = {}
    results: list[Answers] = []
    for combination in combinations:
        for name, protocol in _sets(f"{part}/{combination}-*.tar", combination.split("+"), labels, heads):
            if protocol not in rankings:
                rankings[protocol] = protocol.run(model, data)
            for ranking in rankings[protocol]:
                if isinstance(ranking, Ranking):
                    results.append(Answers(**{**vars(ranking), "at": AT}, set=name))
    return results


def _sets(
    shards: str,
    modalities: Sequence[str],
    labels: Sequence[str],
    heads: Mapping[str, str],
) -> Iterator[tuple[str, EvaluationProtocol]]:
    """The sets of samples with some modalities, and how they are measured.

    Captions are searched by items, and items by captions, or by those of another modality that come with them. The
    items of each modality are classified by the class names and by the head.
    """
    first, *others = modalities
    if not labels:
        yield "+".join(modalities), Retrieval(modality=first, shards=shards, other=others[-1], texts="distinct")
        return
    for modality in modalities:
        if modality == "text":
            continue
        name = modality if others == ["text"] else f"{modality} of {'+'.join(modalities)}"
        templates = TEMPLATES.get(modality, ("{}",))
        by_words = ZeroShot(modality=modality, shards=shards, classes=tuple(labels), templates=templates)
        by_head = TaskHead(modality=modality, shards=shards, head=heads[modality]) if modality in heads else by_words
        yield f"{name} by {WORDS}", by_words
        yield f"{name} by {HEAD}", by_head


def score(results: Sequence[Answers]) -> float:
    """The mean of the mean reciprocal ranks; used to choose weights, as it covers ranks beyond the k of a figure."""
    return float(np.mean([mean_reciprocal_rank(result.ranks) for result in results]))


def write_answers(path: Path, results: Sequence[Answers]) -> None:
    """Write a line of JSON for each set."""
    lines = [json.dumps(asdict(result)) for result in results]
    write_text_atomic(path, "\n".join(lines) + "\n")


def read_answers(path: Path) -> list[Answers]:
    """Read the answers written by `write_answers`."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [build(Answers, json.loads(line), str(path)) for line in lines]


class Gain(NamedTuple):
    """A figure before and after the fine-tuning."""

    set: str
    metric: str
    before: Estimate
    after: Estimate
    gain: Estimate


def gains(before: Sequence[Answers], after: Sequence[Answers]) -> list[Gain]:
    """The metrics of every set."""
    results = []
    for first, second in zip(before, after, strict=True):
        queries = np.arange(len(first.ranks))
        results += [_gain(first.metric_at(k), first, second, k, queries) for k in first.ks]
    return results


def by_class(before: Answers, after: Answers) -> list[tuple[str, int, int, Gain]]:
    """Name, number of files and groups, and accuracy of each class; the lowest after the fine-tuning first."""
    labels = np.array(before.labels)
    results = []
    for label in np.unique(labels).tolist():
        queries = np.flatnonzero(labels == label)
        num_groups = len({before.groups[query] for query in queries})
        results.append((label, len(queries), num_groups, _gain(label, before, after, 1, queries)))
    return sorted(results, key=lambda result: result[3].after.value)


def _gain(metric: str, before: Answers, after: Answers, k: int, queries: NDArray[np.int64]) -> Gain:
    """The gain in the share of these queries whose rank is k or better."""
    estimates = gain_of_groups(
        hits(before.ranks, k)[queries],
        hits(after.ranks, k)[queries],
        np.array(before.groups)[queries],
    )
    return Gain(before.set, metric, *estimates)
