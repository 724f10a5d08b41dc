"""Options of the ``data`` section of a recipe: sources, and how batches are made from them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from onepeace.config import Options
from onepeace.config.reader import Count, Positive, Probability, Share
from onepeace.data.augment import make_augments
from onepeace.errors import UserError

TABLES = frozenset({".csv", ".tsv", ".jsonl", ".parquet"})
"""Endings of files that `onepeace shards` reads, and training does not."""


@dataclass(frozen=True)
class SourceConfig:
    """Shards of one kind, and the parts of their samples to use."""

    shards: str
    """Path pattern relative to data.root, with *, ? and {a,b} or {000..031}."""
    pair: tuple[str, ...]
    """Modalities of a sample in any order, e.g. [image, text]; in the code they are called ``modalities``."""
    name: str = ""
    """Name by which terms of the objective choose sources; default: the pair, as "image+text". Sources of one name are
    mixed, and a batch has items of one name."""
    keys: str = "*"
    """Pattern of the keys of samples to use."""
    targets: tuple[str, ...] = ()
    """Targets that every sample must have, e.g. [label]."""
    candidates: str | None = None
    """Template with {text} and {candidate}, e.g. "{text} answer: {candidate}": an item then has one text for each value
    of its target "candidates", instead of its caption."""
    weight: Positive = 1.0
    """Repetitions of an item per epoch; 2.5 = two or three, 0.1 = a random tenth of the items each epoch."""

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities of a sample."""
        return self.pair

    def __post_init__(self) -> None:
        if Path(self.shards).suffix.lower() in TABLES:
            raise UserError(f"{self.shards} is a table; make shards of it first: onepeace shards {self.shards} -o NAME")
        if not self.pair or len(set(self.pair)) != len(self.pair):
            raise UserError(
                f"pair {list(self.pair)} of {self.shards} should be different modalities, such as [image, text]"
            )
        object.__setattr__(self, "pair", tuple(sorted(self.pair, key=lambda modality: (modality == "text", modality))))
        if not self.name:
            object.__setattr__(self, "name", "+".join(self.modalities))
        fits = "text" in self.modalities and "candidates" in self.targets
        if self.candidates is not None and not (fits and _is_template(self.candidates, "{text}", "{candidate}")):
            raise UserError(
                f"candidates {self.candidates!r} of {self.shards} should contain {{text}} and {{candidate}}; "
                "its pair needs text, and its targets candidates"
            )


@dataclass(frozen=True)
class DataConfig:
    """The ``data`` section of a recipe."""

    train: tuple[SourceConfig, ...]
    root: str = "${ONEPEACE_DATA}"
    """Folder of the shards; environment variables are expanded."""
    batches: Literal["mixed", "by_source"] = "mixed"
    """mixed: a batch has items of all sources of its name; by_source: of one source, for harder negatives."""
    templates: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Sentences with {} for the class name, by modality: further captions of samples that have a label."""
    augment: dict[str, Options] = field(default_factory=dict)
    """Augmentation by modality (onepeace/data/augment.py); none by default."""
    stem_views: dict[str, Count] = field(default_factory=dict)
    """Augmented views per item, by modality with a frozen pretrained stem: their features are computed before the first
    step and stored on disk. A stem without views runs in every step."""
    frozen_folder: str | None = None
    """Folder of these features and of the outputs of teachers, which runs with the same networks and views can share;
    null = in the run's folder."""
    token_dropout: dict[str, Share] = field(default_factory=dict)
    """Share of tokens dropped in the contrastive pass, by modality, for speed (FLIP, arXiv 2212.00794)."""
    lanes: Count | None = None
    """Number of parts of a batch that are read from shards of their own. A process reads only the lanes under its rows,
    so that with as many lanes as processes, each reads its part of the shards alone. The order of a run depends on it.
    null = the divisor of the batch, at most 64 (or the number of machines) and at most the number of shards, with which
    the fewest machines fetch a shard, and the largest of these; 1 for batches by source."""
    shuffle_buffer: Count = 20_000
    """Minimum number of samples that are shuffled together, over all lanes: a lane takes shards until they hold its
    part."""
    cache_gigabytes: Positive = 20.0
    """Maximum size of $ONEPEACE_CACHE/shards: copies of compressed and remote shards, and the index of every shard; the
    least recently used files are removed."""
    broken_limit: Probability = 0.02
    """Share of a source above which losses stop the run: unreadable shards, of all, and broken samples after the first
    ten, of those drawn since the run began."""

    def __post_init__(self) -> None:
        if not self.train:
            raise UserError("data.train is empty; name at least one source of shards")
        if self.batches == "by_source" and self.lanes not in (None, 1):
            raise UserError(f"data.lanes is {self.lanes}, and batches by source have one lane; leave it out")
        if "text" in self.stem_views:
            raise UserError(
                "data.stem_views.text: leave it out; a text is drawn anew each time, so nothing can be kept"
            )
        make_augments(self.augment)
        self._check_sources()
        for modality, templates in self.templates.items():
            for template in templates:
                if not _is_template(template, "{}"):
                    raise UserError(
                        f"data.templates.{modality}: {template!r} should contain {{}} once, for the class name, and "
                        "no other field"
                    )

    def _check_sources(self) -> None:
        """`UserError` if sources of one name differ, or if one has targets and mixed items."""
        first_of_name: dict[str, SourceConfig] = {}
        for source in self.train:
            first = first_of_name.setdefault(source.name, source)
            for name in ("pair", "targets", "candidates"):
                expected = getattr(first, name)
                value = getattr(source, name)
                if expected != value:
                    raise UserError(
                        f"data.train: sources of {source.name} have {name} {expected} and {value}; give all the same"
                    )
            is_mixed = any(self.augment.get(modality, {}).get("mix") for modality in source.modalities)
            if source.targets and is_mixed:
                raise UserError(
                    f"data.augment mixes two items of {source.name}, and a mixed item has no {source.targets[0]}; set "
                    "mix to 0, or take the targets out"
                )

    @property
    def modalities(self) -> dict[str, tuple[str, ...]]:
        """Modalities of the sources by name."""
        return {source.name: source.modalities for source in self.train}


def _is_template(text: str, *placeholders: str) -> bool:
    """Whether a text has each of the placeholders exactly once, and no other braces."""
    is_complete = all(text.count(placeholder) == 1 for placeholder in placeholders)
    return is_complete and text.count("{") == text.count("}") == len(placeholders)
