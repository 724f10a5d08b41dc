"""Held-out shard sets named in a recipe, each measured by its protocol; the rows of a table of results.

A recipe is a mapping of named sets and the folder their paths start from (recipes/evaluate/tiny.yaml). Three tasks:

zero_shot   items with a class name as label, against all class names of the set (zero_shot.py)
retrieval   items and texts in both directions (retrieval.py), by one of two rules for what a text is:
            "captions"  each caption of each item is one query and belongs to that item alone, even when another item
                        has the same caption (Flickr8k, COCO)
            "names"     the first caption of an item is its name; each distinct name is one query, and every item of
                        that name is right (emoji: one name, several drawings)
same_class  items and labelled items of another modality in both directions, right when their classes are the same thing
            by the recipe's list (same_class.py): for modalities whose items were never paired
"""

import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from onepeace.config import Options, apply_override, build, read_yaml
from onepeace.data.sample import Sample
from onepeace.data.shards import read_source
from onepeace.embed.zero_shot import TEMPLATES
from onepeace.errors import UserError
from onepeace.evaluate.metrics import Figure
from onepeace.evaluate.rerank import RERANKERS
from onepeace.evaluate.retrieval import retrieval
from onepeace.evaluate.same_class import Labelled, same_class
from onepeace.evaluate.zero_shot import zero_shot

log = logging.getLogger(__name__)

TEXTS = ("captions", "names")


@dataclass(frozen=True)
class DataRoot:
    """Where the sets lie."""

    root: str = "${ONEPEACE_DATA}"
    """Folder the paths of the sets start from; environment variables are expanded."""


@dataclass(frozen=True)
class OtherSide:
    """The second modality of same_class."""

    modality: str
    shards: str
    """Pattern of shard files, below the root; every sample has a label."""


@dataclass(frozen=True)
class BenchmarkSet:
    """One set and how it is measured."""

    task: str
    """zero_shot, retrieval or same_class."""
    modality: str
    """Modality of the items (image, audio); the other side is text, but for same_class."""
    shards: str
    """Pattern of shard files, below the root."""
    at: tuple[int, ...] = ()
    """The k of the figures; by default 1, 5 (zero_shot), 1, 5, 10 (retrieval) or 10 (same_class)."""
    classes: str | None = None
    """zero_shot: a JSON list of class names, or of objects with a "name"; by default the labels in the shards."""
    templates: tuple[str, ...] = ()
    """zero_shot: sentences with {} for the name or {a} for the name with its article; by default those of TEMPLATES."""
    texts: str = "captions"
    """retrieval: "captions" or "names", see above."""
    rerank: tuple[str, ...] = ()
    """retrieval: methods of RERANKERS (rerank.py), each with figures of its own beside the plain ones."""
    rerank_scale: float = 100.0
    """retrieval: factor on the similarities in a re-ranking's softmax; to be fixed, not tuned on the set."""
    other: OtherSide | None = None
    """same_class: the other side."""
    matches: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """same_class: label of an item -> labels of the other side that are the same thing."""

    def __post_init__(self) -> None:
        if self.task not in _TASKS:
            raise UserError(f"task is {self.task!r}; known: {', '.join(_TASKS)}")
        if self.texts not in TEXTS:
            raise UserError(f"texts is {self.texts!r}; known: {', '.join(TEXTS)}")
        if self.task == "zero_shot" and not self.templates and self.modality not in TEMPLATES:
            raise UserError(f"no default templates for {self.modality}; give templates (known: {', '.join(TEMPLATES)})")
        if any(k < 1 for k in self.at):
            raise UserError(f"at is {list(self.at)}; every k is at least 1")
        if lacking := [t for t in self.templates if "{}" not in t and "{a}" not in t]:
            raise UserError(f"template {lacking[0]!r} has no {{}} for the class name")
        if self.rerank and self.task != "retrieval":
            raise UserError(f"rerank is for retrieval, not for {self.task}")
        if unknown := [method for method in self.rerank if method not in RERANKERS]:
            raise UserError(f"rerank has {unknown[0]!r}; known: {', '.join(RERANKERS)}")
        if not self.rerank_scale > 0:
            raise UserError(f"rerank_scale is {self.rerank_scale}; it is above 0")
        if self.task != "same_class" and (self.other or self.matches):
            raise UserError(f"other and matches are for same_class, not for {self.task}")
        if self.task == "same_class" and not (self.other and self.matches and all(self.matches.values())):
            raise UserError("same_class needs other: {modality, shards} and matches: {label: [labels of the other]}")

    @property
    def sides(self) -> list[tuple[str, str]]:
        """Modality and shards of the items; of the texts there is nothing to say."""
        return [(side.modality, side.shards) for side in (self, self.other) if side]


@dataclass(frozen=True)
class BenchmarkRecipe:
    """The content of an evaluation recipe."""

    sets: dict[str, BenchmarkSet]
    data: DataRoot = field(default_factory=DataRoot)


class Row(NamedTuple):
    """One line of the table of results."""

    set: str
    metric: str
    value: float
    chance: float
    n: int
    seconds: float
    """Time of the whole set, reading included."""

    @property
    def ratio(self) -> float:
        """How many times chance the value is."""
        return self.value / self.chance


def read_recipe(path: Path | str, overrides: Sequence[str] = ()) -> BenchmarkRecipe:
    """Read an evaluation recipe; each override is "a.b=value" with the value in YAML, later ones win."""
    content: Options = read_yaml(path)
    for override in overrides:
        apply_override(content, override)
    return build(BenchmarkRecipe, content, str(path))


def run(embedder: Any, recipe: BenchmarkRecipe) -> list[Row]:
    """Measure an embedder on every set of a recipe; sets of a modality it lacks are left out. See `measure`."""
    root = data_root(recipe)
    return [row for name, benchmark in recipe.sets.items() for row in measure(embedder, name, benchmark, root)]


def measure(embedder: Any, name: str, benchmark: BenchmarkSet, root: Path) -> list[Row]:
    """The rows of one set.

    embedder: has encode_text and encode_<modality>, each a function of a list (texts; encoded file bytes) that returns
    (n, E) unit vectors. When it has `modalities` and lacks one of the set's, there are no rows, and a warning.

    Raises:
        UserError: no shards, a sample without its label, a file that cannot be decoded; names the set.
    """
    known = getattr(embedder, "modalities", None)
    if known is not None and (lacking := [m for m, _ in benchmark.sides if m not in known]):
        log.warning("%s: left out, the model has no %s", name, " and no ".join(lacking))
        return []
    start = time.perf_counter()
    try:
        figures = _TASKS[benchmark.task](embedder, benchmark, root)
    except UserError as error:
        raise UserError(f"set {name}: {error}") from error
    seconds = time.perf_counter() - start
    return [Row(name, *figure, seconds) for figure in figures]


def data_root(recipe: BenchmarkRecipe) -> Path:
    """The folder the sets lie in, its variables expanded; UserError when one is not set or the folder is missing."""
    root = recipe.data.root
    folder = os.path.expandvars(os.path.expanduser(root))
    if "$" in folder:
        raise UserError(
            f"data.root is {root}, and that variable is not set; set it to the folder of shards, or give --data FOLDER"
        )
    if not Path(folder).is_dir():
        raise UserError(f"data.root {folder} is not a folder; data/README.md says how its shards are made")
    return Path(folder)


def table(results: list[Row]) -> str:
    """Results as text for a person, values in percent, and how many times chance each is."""
    head = ("set", "metric", "value", "chance", "ratio", "n", "seconds")
    lines = [
        (r.set, r.metric, f"{r.value:.1%}", f"{r.chance:.1%}", f"{r.ratio:.1f}", f"{r.n:,}", f"{r.seconds:.1f}")
        for r in results
    ]
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            text.ljust(w) if i < 2 else text.rjust(w) for i, (text, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in [head, *lines]
    )


def _zero_shot(embedder: Any, benchmark: BenchmarkSet, root: Path) -> list[Figure]:
    samples = _labelled(benchmark.shards, benchmark.modality, root)
    labels = [s.label for s in samples]
    names = _class_names(root / benchmark.classes) if benchmark.classes else sorted(set(labels))
    number = {name: i for i, name in enumerate(names)}
    if strange := [s for s in samples if s.label not in number]:
        raise UserError(f"{_where(strange[0])}: label {strange[0].label!r} is not in {benchmark.classes}")
    return zero_shot(
        embedder,
        [s.inputs[benchmark.modality] for s in samples],
        [number[label] for label in labels],
        names,
        templates=benchmark.templates,
        modality=benchmark.modality,
        at=benchmark.at or (1, 5),
    )


def _retrieval(embedder: Any, benchmark: BenchmarkSet, root: Path) -> list[Figure]:
    samples = read_source(benchmark.shards, (benchmark.modality, "text"), root, broken_limit=1.0).samples
    if benchmark.texts == "names":
        item_ids: list[Any] = [s.captions[0] for s in samples]
        texts = text_ids = list(dict.fromkeys(item_ids))
    else:
        item_ids = list(range(len(samples)))
        texts = [caption for s in samples for caption in s.captions]
        text_ids = [i for i, s in enumerate(samples) for _ in s.captions]
    return retrieval(
        embedder,
        [s.inputs[benchmark.modality] for s in samples],
        texts,
        item_ids=item_ids,
        text_ids=text_ids,
        modality=benchmark.modality,
        at=benchmark.at or (1, 5, 10),
        rerank=benchmark.rerank,
        rerank_scale=benchmark.rerank_scale,
    )


def _same_class(embedder: Any, benchmark: BenchmarkSet, root: Path) -> list[Figure]:
    sides = []
    partners = [partner for match in benchmark.matches.values() for partner in match]
    for (modality, shards), wanted in zip(benchmark.sides, (benchmark.matches, partners), strict=True):
        samples = _labelled(shards, modality, root)
        labels = [s.label for s in samples]
        if strange := [label for label in wanted if label not in labels]:
            raise UserError(f"matches names {strange[0]!r}, which is no label in {shards}")
        sides.append(Labelled(modality, [s.inputs[modality] for s in samples], labels))
    first, second = sides
    return same_class(embedder, first, second, benchmark.matches, at=benchmark.at or (10,))


_TASKS = {"zero_shot": _zero_shot, "retrieval": _retrieval, "same_class": _same_class}


def _labelled(shards: str, modality: str, root: Path) -> list[Sample]:
    samples = read_source(shards, (modality,), root, broken_limit=1.0).samples
    if unlabelled := [s for s in samples if s.label is None]:
        raise UserError(f"{_where(unlabelled[0])} has no label in its .json, and this task needs one")
    return samples


def _where(sample: Sample) -> str:
    return f"{sample.source}: {sample.key}"


def _class_names(path: Path) -> list[str]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        names = [entry["name"] if isinstance(entry, dict) else entry for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a JSON list of class names ({error!r})") from error
    strange = [name for name in names if not isinstance(name, str) or names.count(name) > 1]
    if strange or not names:
        raise UserError(f"{path}: class names must be distinct texts; found {strange[0] if strange else 'none'!r}")
    return names
