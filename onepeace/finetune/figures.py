"""The answers of a model to a part of the data, and metrics with intervals.

A model answers with its trained head if it has one, otherwise by the class names (zero-shot).
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from onepeace.data.sample import Sample
from onepeace.data.shards import read_source
from onepeace.embed.embedder import Embedder
from onepeace.embed.zero_shot import TEMPLATES
from onepeace.evaluate.metrics import best_ranks
from onepeace.evaluate.protocols.protocol import encode
from onepeace.files.atomic import write_text_atomic
from onepeace.finetune.split import GROUP
from onepeace.index.groups import connected

WORDS, HEAD = "words", "head"
"""How a class was chosen: by the vectors of the class names, or by a trained head."""
AT = (1, 5, 10)
"""The k of the accuracies and recalls."""
DRAWS, LEVEL = 1000, 0.95


@dataclass(frozen=True)
class Answers:
    """Answers of a model to the queries of a set."""

    pair: str
    """Modalities of the samples, such as "image+text"."""
    modality: str
    """Modality of the queries."""
    set: str
    """Name of the set, such as "image by head"; the pair for captions."""
    direction: str
    """Direction of the search, such as "image to text"; "" in a set of classes."""
    candidates: int
    """Number of classes, texts or items to choose from."""
    ranks: list[int]
    """Rank of the best right candidate of each query, from 1."""
    groups: list[int]
    """Group of each query's item (split.py)."""
    labels: list[str] = field(default_factory=list)
    """Right class of each query, in a set of classes."""
    said: list[str] = field(default_factory=list)
    """Predicted class of each query."""
    confidence: list[float] = field(default_factory=list)
    """Probability of the predicted class."""


def answers(
    model: Embedder,
    data: Path,
    pairs: Sequence[str],
    labels: Sequence[str],
    heads: Mapping[str, str],
    part: str = "val",
) -> list[Answers]:
    """The answers of a model to one part of the samples of each pair of modalities.

    Args:
        data: folder of the shards.
        labels: the class names; empty for pairs with captions.
        heads: the model's heads by modality; for a modality without one, the zero-shot answers are used for both.
        part: "val", which is held out, or "choose".
    """
    return [found for pair in pairs for found in _answers(model, pair, samples_of(data, pair, part), labels, heads)]


def samples_of(data: Path, pair: str, part: str = "val") -> list[Sample]:
    """The samples of a pair in a part."""
    return read_source(f"{part}/{pair}-*.tar", pair.split("+"), data, broken_limit=1.0)


def _answers(
    model: Embedder, pair: str, samples: Sequence[Sample], labels: Sequence[str], heads: Mapping[str, str]
) -> Iterator[Answers]:
    modality, *others = pair.split("+")
    groups = [sample.targets[GROUP] for sample in samples]
    if not labels:
        items = encode(model, modality, [sample.read(modality) for sample in samples])
        # Equal captions are one text, for which every item with it is right.
        texts = [sample.captions if others[-1] == "text" else [sample.read(others[-1])] for sample in samples]
        numbers = {text: number for number, text in enumerate(dict.fromkeys(text for own in texts for text in own))}
        has = np.zeros((len(samples), len(numbers)), bool)
        for i, own in enumerate(texts):
            has[i, [numbers[text] for text in own]] = True
        scores = items @ encode(model, others[-1], list(numbers)).T
        sides = (others[-1], scores.T, has.T, _joined(has, groups)), (modality, scores, has, groups)
        for (key, found, correct, of), (name, *_) in (sides, sides[::-1]):
            ranks = [int(best_ranks(row[None], [1], own)[0]) for row, own in zip(found, correct, strict=True)]
            yield Answers(pair, key, pair, f"{key} to {name}", found.shape[1], ranks, of)
        return
    right = [labels.index(sample.label) for sample in samples]
    for key in (key for key in pair.split("+") if key != "text"):
        name = key if pair == f"{key}+text" else f"{key} of {pair}"
        contents = [{key: sample.read(key)} for sample in samples]
        scores = {WORDS: np.asarray(model.classify(contents, labels, template=TEMPLATES[key]))}
        scores[HEAD] = _by_head(model, heads[key], contents, labels) if key in heads else scores[WORDS]
        for how, found in scores.items():
            ranks = best_ranks(found, right, range(len(labels))).tolist()
            said, confidence = [labels[i] for i in found.argmax(axis=1)], found.max(axis=1).tolist()
            yield Answers(
                pair, key, f"{name} by {how}", "", len(labels), ranks, groups,
                [sample.label for sample in samples], said, confidence,
            )  # fmt: skip


def _joined(has: np.ndarray, groups: Sequence[int]) -> list[int]:
    """The group of each text, given the items (n, M) that have it: groups with a text in common are one."""
    owners = [np.array(groups)[own].tolist() for own in has.T]
    joined = connected(max(groups) + 1, [(own[0], other) for own in owners for other in own])
    number = {group: n for n, members in enumerate(joined) for group in members}
    return [number[own[0]] for own in owners]


def _by_head(model: Embedder, head: str, contents: Sequence[object], labels: Sequence[str]) -> np.ndarray:
    """(n, C) probabilities of the classes."""
    results: list[Any] = list(model.predict(contents, head=head, top=len(labels)))
    named = [{one["label"]: one["score"] for one in result["labels"]} for result in results]
    return np.array([[scores[label] for label in labels] for scores in named])


def score(found: Sequence[Answers]) -> float:
    """The mean of the mean reciprocal ranks; used to choose weights, as it covers ranks beyond the k of a figure."""
    return float(np.mean([np.mean(1 / np.array(one.ranks)) for one in found]))


def write_answers(path: Path, found: Sequence[Answers]) -> None:
    """Write a line of JSON for each set."""
    write_text_atomic(path, "".join(f"{json.dumps(asdict(one))}\n" for one in found))


def read_answers(path: Path) -> list[Answers]:
    """Read the answers written by `write_answers`."""
    return [Answers(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


class Estimate(NamedTuple):
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1%} ({self.low:.0%}..{self.high:.0%})"

    @property
    def signed(self) -> str:
        """The figure as text with signs, for a difference."""
        return f"{self.value:+.1%} ({self.low:+.0%}..{self.high:+.0%})"


class Gain(NamedTuple):
    """A figure before and after the fine-tuning."""

    set: str
    metric: str
    before: Estimate
    after: Estimate
    gain: Estimate


def gains(before: Sequence[Answers], after: Sequence[Answers]) -> list[Gain]:
    """The metrics of every set, except those that are always 100 %, such as top-5 of five classes."""
    found = []
    for first, second in zip(before, after, strict=True):
        name = "top-{} of " + str(first.candidates) if first.labels else first.direction + " R@{}"
        moving = [k for k in AT if k == 1 or k < first.candidates]
        found += [_gain(name.format(k), first, second, k, np.arange(len(first.ranks))) for k in moving]
    return found


def by_class(before: Answers, after: Answers) -> list[tuple[int, Gain]]:
    """Number of files and accuracy of each class; the lowest accuracy after the fine-tuning first."""
    labels = np.array(before.labels)
    places = {str(label): np.flatnonzero(labels == label) for label in np.unique(labels)}
    found = [(len(own), _gain(label, before, after, 1, own)) for label, own in places.items()]
    return sorted(found, key=lambda one: one[1].after.value)


def _gain(metric: str, before: Answers, after: Answers, k: int, queries: np.ndarray) -> Gain:
    """The gain in the share of these queries whose rank is k or better."""
    first, second = (np.array(one.ranks)[queries] <= k for one in (before, after))
    return Gain(before.set, metric, *gained(first, second, np.array(before.groups)[queries]))


def gained(before: np.ndarray, after: np.ndarray, groups: np.ndarray) -> tuple[Estimate, Estimate, Estimate]:
    """Means before and after of a value from 0 to 1 for each query (n,), and their difference, with intervals.

    The interval of a figure covers its value on another sample of the same size (two-sample bootstrap over groups);
    that of the difference is a paired bootstrap. One right and one wrong query are added as groups, so that the
    interval is never a single point.

    Args:
        groups: number of each query's group (n,).
    """
    numbers = np.unique(groups, return_inverse=True)[1]
    sums = np.array([np.bincount(numbers, values) for values in (np.ones(len(groups)), before, after)])
    sums = np.concatenate([sums, [[1, 1], [0, 1], [0, 1]]], axis=1)
    drawn = [sums @ counts.T for counts in _draws(sums.shape[1])]
    (first, second), (other, another) = (one[1:] / one[0] for one in drawn)
    middle = sums[1:].sum(axis=1) / sums[0].sum()
    return (
        _figure(before.mean(), (first + other - middle[0]).clip(0, 1)),
        _figure(after.mean(), (second + another - middle[1]).clip(0, 1)),
        _figure(after.mean() - before.mean(), second - first),
    )


def _draws(count: int) -> Iterator[np.ndarray]:
    """Yield two arrays (DRAWS, count): how often each of ``count`` is drawn, with replacement and a fixed seed."""
    random = np.random.default_rng(0)
    rows = count * np.arange(DRAWS)[:, None]
    for _ in range(2):
        drawn = rows + random.integers(count, size=(DRAWS, count))
        yield np.bincount(drawn.ravel(), minlength=DRAWS * count).reshape(DRAWS, count)


def _figure(value: float, draws: np.ndarray) -> Estimate:
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return Estimate(float(value), min(float(value), low), max(float(value), high))


def confusions(found: Answers, most: int) -> tuple[list[str], np.ndarray]:
    """The ``most`` classes that are most often confused with others, and their confusion matrix (c, c): a row for each
    right class, a column for each predicted one."""
    pairs = Counter(zip(found.labels, found.said, strict=True))
    errors = Counter[str]()
    for (right, said), n in pairs.items():
        errors.update({right: n, said: n} if right != said else {right: 0})
    classes = sorted(label for label, _ in errors.most_common(most))
    return classes, np.array([[pairs[right, said] for said in classes] for right in classes])


def confident_errors(found: Answers) -> list[int]:
    """Numbers of the queries with a wrong class, the most confident first."""
    wrong = [i for i, (right, said) in enumerate(zip(found.labels, found.said, strict=True)) if right != said]
    return sorted(wrong, key=lambda i: -found.confidence[i])
