"""The ``data`` section of a recipe: the sources, and how batches are made of them."""

from dataclasses import dataclass, field
from typing import Literal

from onepeace.config import Options
from onepeace.config.limits import Count, Positive, Probability, Share
from onepeace.data.augment import make_augments
from onepeace.errors import UserError


@dataclass(frozen=True)
class SourceConfig:
    """Shards of one kind, and what is taken from a sample of them."""

    shards: str
    """Pattern below data.root, with *, ? and {a,b} or {000..031}."""
    pair: tuple[str, ...]
    """The modalities of a sample, e.g. [image, text]."""
    name: str = ""
    """Sources of one name are mixed, and a batch is of one name; "image+text", from the pair, if it is not given. Terms
    of the objective name the sources that they learn from."""
    keys: str = "*"
    """Pattern of the samples' keys: a part of the shards."""
    targets: tuple[str, ...] = ()
    """Targets that every sample must have, e.g. [label]."""
    candidates: str | None = None
    """Sentence with {text} and {candidate}: an item has one text for each of its target "candidates", in place of its
    caption, e.g. "{text} answer: {candidate}"."""
    weight: Positive = 1.0
    """Times that an item comes in an epoch; 2.5 = two or three times, 0.1 = every tenth item, other ones each epoch."""

    def __post_init__(self) -> None:
        if not self.pair or len(set(self.pair)) != len(self.pair):
            raise UserError(f"pair {list(self.pair)} of {self.shards} should be different modalities, as [image, text]")
        if not self.name:
            object.__setattr__(self, "name", "+".join(self.pair))
        fits = "text" in self.pair and "candidates" in self.targets
        if self.candidates is not None and not (fits and _is_template(self.candidates, "{text}", "{candidate}")):
            raise UserError(
                f"candidates {self.candidates!r} of {self.shards} should have {{text}} and {{candidate}}, "
                "of a pair with text whose targets have candidates"
            )


@dataclass(frozen=True)
class DataConfig:
    """The ``data`` section of a recipe."""

    train: tuple[SourceConfig, ...]
    root: str = "${ONEPEACE_DATA}"
    """Folder of the shards; environment variables are expanded."""
    batches: Literal["mixed", "by_source"] = "mixed"
    """mixed: a batch has items of all sources of its pair; by_source: of one, so that its negatives are of one kind."""
    templates: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By modality: sentences with {} for the class name, further captions of samples that have a label."""
    augment: dict[str, Options] = field(default_factory=dict)
    """By modality: augmentation of training items (onepeace/data/augment.py); none where it is left out."""
    stem_views: dict[str, Count] = field(default_factory=dict)
    """By modality with a frozen pretrained stem: augmented views of each item whose features are computed once, before
    the first step, and kept on disk; without it the stem runs in every step."""
    frozen_folder: str | None = None
    """Folder of those features and of the answers of outside teachers; null = in the run's folder. Runs that agree
    on network and views share them."""
    token_dropout: dict[str, Share] = field(default_factory=dict)
    """By modality: share of the tokens dropped in the contrastive pass, for speed (FLIP, arXiv 2212.00794)."""
    shuffle_buffer: Count = 20_000
    """Samples of a pair that are shuffled together, at least: shards are drawn by chance until they hold so many. A
    pair that has fewer is shuffled as a whole."""
    cache_gigabytes: Positive = 20.0
    """Size at most of $ONEPEACE_CACHE/shards: copies of shards that are compressed or lie elsewhere, and indexes of
    all; the least recently used gives way."""
    broken_limit: Probability = 0.02
    """Share of a source's samples that may be unusable, and of a pair's items that may fail to decode, before the run
    stops."""

    def __post_init__(self) -> None:
        if not self.train:
            raise UserError("data.train is empty; name at least one source of shards")
        named: dict[str, SourceConfig] = {}
        for source in self.train:
            first = named.setdefault(source.name, source)
            for name in ("pair", "targets", "candidates"):
                if (one := getattr(first, name)) != (other := getattr(source, name)):
                    raise UserError(
                        f"data.train: sources of {source.name} have {name} {one} and {other}; give all the same"
                    )
        make_augments(self.augment)
        for source in self.train:
            if source.targets and any(self.augment.get(modality, {}).get("mix") for modality in source.pair):
                raise UserError(
                    f"data.augment mixes two items of {source.name}, and a mixed item has no {source.targets[0]}; set "
                    "mix to 0, or take the targets out"
                )
        if "text" in self.stem_views:
            raise UserError(
                "data.stem_views.text: leave it out; a text is drawn anew each time, so nothing can be kept"
            )
        for modality, templates in self.templates.items():
            if bad := [template for template in templates if not _is_template(template, "{}")]:
                raise UserError(
                    f"data.templates.{modality}: {bad[0]!r} should have one {{}}, for the class name, alone"
                )

    @property
    def modalities(self) -> dict[str, tuple[str, ...]]:
        """The modalities of the sources, by name."""
        return {source.name: source.pair for source in self.train}


def _is_template(text: str, *places: str) -> bool:
    """True for a text that has each of the places once, and no other brace."""
    return all(text.count(place) == 1 for place in places) and text.count("{") == text.count("}") == len(places)
