"""The answers of a model to a part of the data, as ranks of the right classes, texts or items, and their figures.

A model answers with its trained head if it has one, otherwise by the class names (zero-shot).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onepeace.data.sample import Sample
from onepeace.data.source import read_source
from onepeace.embed.classify import TEMPLATES
from onepeace.embed.embedder import Embedder
from onepeace.evaluate.intervals import Estimate, gain_of_groups
from onepeace.evaluate.metrics import best_ranks
from onepeace.evaluate.protocols.protocol import encode
from onepeace.files.atomic import write_text_atomic
from onepeace.finetune.split import FILE, GROUP, VAL
from onepeace.index.groups import connected

WORDS = "words"
"""A class was chosen by the vectors of the class names."""
HEAD = "head"
"""A class was chosen by a trained head."""
AT = (1, 5, 10)
"""The k of the accuracies and recalls."""


@dataclass(frozen=True)
class Answers:
    """Answers of a model to the queries of a set."""

    modalities: str
    """Modalities of the samples, such as "image+text"."""
    modality: str
    """Modality of the queries."""
    set: str
    """Name of the set, such as "image by head"; the modalities for captions."""
    direction: str
    """Direction of the search, such as "image to text"; "" in a set of classes."""
    candidates: int
    """Number of classes, texts or items to choose from."""
    ranks: list[int]
    """Rank of the best right candidate of each query, from 1."""
    groups: list[int]
    """Group of each query's item (split.py)."""
    queries: list[str]
    """The query: its text, or the name of its file."""
    labels: list[str] = field(default_factory=list)
    """Right class of each query, in a set of classes."""
    predicted: list[str] = field(default_factory=list)
    """Predicted class of each query."""
    confidence: list[float] = field(default_factory=list)
    """Probability of the predicted class."""


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
    results: list[Answers] = []
    for modalities in combinations:
        samples = read_source(f"{part}/{modalities}-*.tar", modalities.split("+"), data, broken_limit=1.0)
        if labels:
            results += _class_answers(model, modalities, samples, labels, heads)
        else:
            results += _caption_answers(model, modalities, samples)
    return results


def _caption_answers(
    model: Embedder,
    modalities: str,
    samples: Sequence[Sample],
) -> list[Answers]:
    """Searches for items by text, and for texts by item; the text may also be an item of another modality."""
    modality, *others = modalities.split("+")
    other = others[-1]
    item_groups = [sample.targets[GROUP] for sample in samples]
    texts, has_text = _distinct([_texts(sample, other) for sample in samples])
    items = [sample.read(modality) for sample in samples]
    item_vectors = encode(model, modality, items)
    text_vectors = encode(model, other, texts)
    scores = item_vectors @ text_vectors.T
    text_groups = _groups_of_texts(has_text, item_groups)
    files = [sample.targets[FILE] for sample in samples]
    text_names = []
    for text, has_it in zip(texts, has_text.T, strict=True):
        text_names.append(text if isinstance(text, str) else files[has_it.argmax()])
    return [
        _search(modalities, other, modality, scores.T, has_text.T, text_groups, text_names),
        _search(modalities, modality, other, scores, has_text, item_groups, files),
    ]


def _texts(sample: Sample, modality: str) -> list[Any]:
    return sample.captions if modality == "text" else [sample.read(modality)]


def _distinct(texts_of_items: Sequence[Sequence[Any]]) -> tuple[list[Any], NDArray[np.bool_]]:
    """The M different texts, and which of n items has which: (n, M). Equal texts are one, right for all their items."""
    columns: dict[Any, int] = {}
    for texts in texts_of_items:
        for text in texts:
            columns.setdefault(text, len(columns))
    has_text = np.zeros((len(texts_of_items), len(columns)), bool)
    for row, texts in enumerate(texts_of_items):
        has_text[row, [columns[text] for text in texts]] = True
    return list(columns), has_text


def _groups_of_texts(has_text: NDArray[np.bool_], item_groups: Sequence[int]) -> list[int]:
    """The group of each text, given the items (n, M) that have it: groups with a text in common are one."""
    group_of_item = np.array(item_groups)
    first_groups = []
    pairs = []
    for has_it in has_text.T:
        groups = group_of_item[has_it].tolist()
        first_groups.append(groups[0])
        pairs += [(groups[0], group) for group in groups]
    number_of_group = {}
    for number, members in enumerate(connected(max(item_groups) + 1, pairs)):
        number_of_group.update(dict.fromkeys(members, number))
    return [number_of_group[group] for group in first_groups]


def _search(
    modalities: str,
    modality: str,
    target: str,
    scores: NDArray,
    is_right: NDArray[np.bool_],
    groups: list[int],
    queries: list[str],
) -> Answers:
    """Answers to n queries of a modality, by the scores (n, M) of M candidates and which of them are right."""
    ranks = []
    for row, right in zip(scores, is_right, strict=True):
        (rank,) = best_ranks(row[None], [1], right)
        ranks.append(int(rank))
    return Answers(
        modalities=modalities,
        modality=modality,
        set=modalities,
        direction=f"{modality} to {target}",
        candidates=scores.shape[1],
        ranks=ranks,
        groups=groups,
        queries=queries,
    )


def _class_answers(
    model: Embedder,
    modalities: str,
    samples: Sequence[Sample],
    labels: Sequence[str],
    heads: Mapping[str, str],
) -> Iterator[Answers]:
    """Classifications of the items of each modality, by the class names and by the head."""
    right = [labels.index(sample.label) for sample in samples]
    for modality in modalities.split("+"):
        if modality == "text":
            continue
        name = modality if modalities == f"{modality}+text" else f"{modality} of {modalities}"
        items = [{modality: sample.read(modality)} for sample in samples]
        by_words = np.asarray(model.classify(items, labels, template=TEMPLATES[modality]))
        by_head = by_words
        if modality in heads:
            by_head = _head_probabilities(model, heads[modality], items, labels)
        for how, probabilities in ((WORDS, by_words), (HEAD, by_head)):
            yield Answers(
                modalities=modalities,
                modality=modality,
                set=f"{name} by {how}",
                direction="",
                candidates=len(labels),
                ranks=best_ranks(probabilities, right, range(len(labels))).tolist(),
                groups=[sample.targets[GROUP] for sample in samples],
                queries=[sample.targets[FILE] for sample in samples],
                labels=[labels[number] for number in right],
                predicted=[labels[number] for number in probabilities.argmax(axis=1)],
                confidence=probabilities.max(axis=1).tolist(),
            )


def _head_probabilities(
    model: Embedder,
    head: str,
    items: Sequence[object],
    labels: Sequence[str],
) -> NDArray:
    """Probabilities (n, C) of the classes."""
    rows = []
    for result in model.predict(items, head=head, top=len(labels)):
        probabilities = {entry["label"]: entry["score"] for entry in result["labels"]}
        rows.append([probabilities[label] for label in labels])
    return np.array(rows)


def score(results: Sequence[Answers]) -> float:
    """The mean of the mean reciprocal ranks; used to choose weights, as it covers ranks beyond the k of a figure."""
    means = []
    for result in results:
        reciprocal_ranks = 1 / np.array(result.ranks)
        means.append(reciprocal_ranks.mean())
    return float(np.mean(means))


def write_answers(path: Path, results: Sequence[Answers]) -> None:
    """Write a line of JSON for each set."""
    lines = [json.dumps(asdict(result)) for result in results]
    write_text_atomic(path, "\n".join(lines) + "\n")


def read_answers(path: Path) -> list[Answers]:
    """Read the answers written by `write_answers`."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Answers(**json.loads(line)) for line in lines]


class Gain(NamedTuple):
    """A figure before and after the fine-tuning."""

    set: str
    metric: str
    before: Estimate
    after: Estimate
    gain: Estimate


def gains(before: Sequence[Answers], after: Sequence[Answers]) -> list[Gain]:
    """The metrics of every set, except those that are always 100 %, such as top-5 of five classes."""
    results = []
    for first, second in zip(before, after, strict=True):
        queries = np.arange(len(first.ranks))
        for k in AT:
            if k == 1 or k < first.candidates:
                gain = _gain(_metric(first, k), first, second, k=k, queries=queries)
                results.append(gain)
    return results


def _metric(answers: Answers, k: int) -> str:
    if answers.labels:
        return f"top-{k} of {answers.candidates}"
    return f"{answers.direction} R@{k}"


def by_class(before: Answers, after: Answers) -> list[tuple[str, int, int, Gain]]:
    """Name, number of files and groups, and accuracy of each class; the lowest after the fine-tuning first."""
    labels = np.array(before.labels)
    results = []
    for label in np.unique(labels).tolist():
        queries = np.flatnonzero(labels == label)
        num_groups = len({before.groups[query] for query in queries})
        results.append((label, len(queries), num_groups, _gain(label, before, after, k=1, queries=queries)))
    return sorted(results, key=lambda result: result[3].after.value)


def _gain(
    metric: str,
    before: Answers,
    after: Answers,
    k: int,
    queries: NDArray[np.int64],
) -> Gain:
    """The gain in the share of these queries whose rank is k or better."""
    estimates = gain_of_groups(
        np.array(before.ranks)[queries] <= k,
        np.array(after.ranks)[queries] <= k,
        np.array(before.groups)[queries],
    )
    return Gain(before.set, metric, *estimates)
