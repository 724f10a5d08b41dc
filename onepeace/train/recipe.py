"""A recipe: one YAML file that says everything about a training run, as typed and frozen dataclasses.

`read_recipe` merges a base file, the file and overrides of the command line, and refuses what it does not know. Paths
of the base are relative to the recipe; shards are relative to ``data.root``. Next file: objective.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from onepeace.config import Options, apply_override, build, merge, read_yaml, to_plain
from onepeace.data.augment import make_augments
from onepeace.data.masking import MaskRates
from onepeace.errors import UserError


@dataclass(frozen=True)
class SourceConfig:
    """Shards of one kind, and what a sample of them gives."""

    shards: str
    """Pattern below data.root, with *, ? and {a,b} or {000..031}."""
    pair: tuple[str, ...]
    """The modalities a sample has, e.g. [image, text]; sources of the same pair are mixed."""
    weight: float = 1.0
    """How often an item comes in an epoch; 2.5 = two or three times, 0.1 = every tenth item, other ones each epoch.
    Of streams, whose number of items is not known: the source's share of the items, over the sum of all shares."""

    def __post_init__(self) -> None:
        if not self.pair or len(set(self.pair)) != len(self.pair):
            raise UserError(f"pair {list(self.pair)} of {self.shards} should be different modalities, as [image, text]")
        if not self.weight > 0:
            raise UserError(f"weight {self.weight} of {self.shards} should be above 0; leave the source out instead")

    @property
    def name(self) -> str:
        """The pair's name, as "image+text"."""
        return "+".join(self.pair)


@dataclass(frozen=True)
class Data:
    """What is read."""

    train: tuple[SourceConfig, ...]
    valid: tuple[SourceConfig, ...] = ()
    root: str = "${ONEPEACE_DATA}"
    """Folder of the shards; environment variables are expanded."""
    batches: str = "mixed"
    """mixed: a batch has items of all sources of its pair; by_source: of one, so that its negatives are of one kind."""
    pairs: str = "together"
    """Of several pairs: together, a batch of each in every step; in_turn, of one, the next step of the next."""
    templates: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By modality: sentences with {} for the class name, further captions of samples that have a label."""
    augment: dict[str, Options] = field(default_factory=dict)
    """By modality: how training media are varied (onepeace/data/augment.py); left out = taken as they are."""
    drop: dict[str, float] = field(default_factory=dict)
    """By modality: share of the tokens left out in the contrastive pass, for speed (FLIP, arXiv 2212.00794)."""
    stream: bool = False
    """Read the shards as they are needed, from disk or network; else all of them once, into memory."""
    window: int = 1000
    """Samples of a source that a worker holds to draw from, of a stream."""
    window_megabytes: float = 256.0
    """The same in bytes; the smaller of the two."""
    allow_pipe: bool = False
    """Let shards be the output of shell commands, as pipe:COMMAND."""
    cache_megabytes: int = 512
    """Memory of each worker for decoded sounds."""
    broken_limit: float = 0.02
    """Share of a pair's items that may fail to decode before the run stops."""

    def __post_init__(self) -> None:
        if self.batches not in ("mixed", "by_source"):
            raise UserError(f"data.batches {self.batches!r} is not known; known: mixed, by_source")
        if self.pairs not in ("together", "in_turn"):
            raise UserError(f"data.pairs {self.pairs!r} is not known; known: together, in_turn")
        if not self.train:
            raise UserError("data.train is empty; name at least one source of shards")
        names: dict[frozenset[str], str] = {}
        for source in self.train:
            if names.setdefault(frozenset(source.pair), source.name) != source.name:
                raise UserError(f"data.train has {names[frozenset(source.pair)]} and {source.name}; use one order")
        make_augments(self.augment)
        for modality, share in self.drop.items():
            if not 0 <= share < 1:
                raise UserError(f"data.drop.{modality} is {share}, a share below 1")
        for modality, templates in self.templates.items():
            if bad := [template for template in templates if "{}" not in template]:
                raise UserError(f"data.templates.{modality}: {bad[0]!r} has no {{}} for the class name")


@dataclass(frozen=True)
class Optim:
    """AdamW and its limits; the defaults are the released pretraining's."""

    name: str = "adamw"
    lr: float = 5e-4
    """Peak rate."""
    betas: tuple[float, ...] = (0.9, 0.98)
    eps: float = 1e-8
    weight_decay: float = 0.05
    grad_clip: float | None = 3.0
    """Largest norm of the whole gradient; null = not clipped."""
    layer_decay: float | None = None
    """Each layer's rate over the next one's, for fine-tuning."""

    def __post_init__(self) -> None:
        if len(self.betas) != 2:
            raise UserError(f"optim.betas {list(self.betas)} should be two numbers")


@dataclass(frozen=True)
class Schedule:
    """Learning rate over the steps."""

    steps: int
    """Length of the run, in updates."""
    name: str = "cosine"
    """cosine, or constant after the warm-up."""
    warmup_steps: int | None = None
    warmup_ratio: float | None = None
    """The warm-up as a share of the steps, instead of warmup_steps."""
    min_lr: float = 1e-6
    """Rate of the first and the last update."""

    def __post_init__(self) -> None:
        if self.name not in ("cosine", "constant"):
            raise UserError(f"schedule.name {self.name!r} is not known; known: cosine, constant")
        if self.warmup_steps is not None and self.warmup_ratio is not None:
            raise UserError("schedule.warmup_steps and schedule.warmup_ratio say the same; give one of them")
        if self.steps < 1 or not 0 <= self.warmup <= self.steps:
            raise UserError(f"schedule.steps {self.steps} should be at least 1, and hold a warm-up of {self.warmup}")

    @property
    def warmup(self) -> int:
        """Number of updates in the warm-up."""
        return self.warmup_steps if self.warmup_steps is not None else int(self.steps * (self.warmup_ratio or 0.0))


@dataclass(frozen=True)
class Run:
    """How the loop goes."""

    out: str
    """Folder of the run: checkpoints, log, the resolved recipe."""
    batch_size: int | dict[str, int] = 32
    """Items per step, of every pair or by pair: {image+text: 256, audio+text: 64}."""
    precision: str = "auto"
    """auto, float32 or bfloat16 autocast."""
    workers: int = 1
    """Processes that decode; 0 = none, decode between the steps."""
    log_every: int = 20
    eval_every: int = 0
    """Steps between validations; 0 = at the end only."""
    save_every: int = 1000
    """Steps between checkpoints; 0 = by time only."""
    save_minutes: float = 5.0
    """Minutes between checkpoints at most; 0 = by steps only."""
    keep: int = 2
    """How many checkpoints stay, the best one besides."""
    ema: float | None = None
    """Decay of the averaged weights; null = none."""
    accumulate: int = 1
    """Parts a process computes its batch in, one after another: less memory for the same loss and gradient."""
    checkpoint_activations: bool = False
    """Keep only the input of each block, and compute it again in the backward pass."""
    max_padding: float = 0.1
    """Share of padding from which items are computed in groups of similar length; 1 = never."""
    parallel: str = "ddp"
    """Over several processes: ddp, each holds the whole model; fsdp, each a share of it."""
    compile: bool = False
    """torch.compile each block."""
    skip: int = 3
    """So many steps in a row may have a gradient that is not finite; they are left out and named."""
    trackers: tuple[str, ...] = ()
    """Where the log goes besides: tensorboard, wandb."""

    def __post_init__(self) -> None:
        sizes = self.batch_size.values() if isinstance(self.batch_size, dict) else [self.batch_size]
        if bad := [size for size in sizes if size < 1]:
            raise UserError(f"run.batch_size {bad[0]} should be at least 1")
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise UserError(f"run.precision {self.precision!r} is not known; known: auto, float32, bfloat16")
        for name in ("keep", "accumulate"):
            if getattr(self, name) < 1:
                raise UserError(f"run.{name} {getattr(self, name)} should be at least 1")
        if self.parallel not in ("ddp", "fsdp"):
            raise UserError(f"run.parallel {self.parallel!r} is not known; known: ddp, fsdp")
        if unknown := [name for name in self.trackers if name not in ("tensorboard", "wandb")]:
            raise UserError(f"run.trackers {unknown[0]!r} is not known; known: tensorboard, wandb")


@dataclass(frozen=True)
class Recipe:
    """Everything about a run. `to_yaml` and `read_recipe` are inverse to each other."""

    model: Options
    """size (a row of SIZES) or from (a model folder or run), with copy and fresh (build.make_model), and any field of
    ModelConfig in its place."""
    data: Data
    objective: dict[str, Options]
    """Loss terms by name: their weight and options."""
    schedule: Schedule
    run: Run
    seed: int = 1
    media: Options = field(default_factory=dict)
    """By modality: options of its decoder, in place of the model's."""
    tokenizer: Options = field(default_factory=lambda: {"vocab_size": 8000})
    """vocab_size: trained on the captions of the sources; file: a tokenizer.json; name: clip or released."""
    mask: dict[str, MaskRates] = field(default_factory=dict)
    """By modality: share of tokens hidden in the denoising passes."""
    freeze: dict[str, tuple[str, ...]] | tuple[str, ...] = ()
    """Patterns of parameters that do not train, or {except: patterns} of those that do."""
    optim: Optim = field(default_factory=Optim)
    evaluate: Options = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UserError(f"seed {self.seed} should not be negative")
        if isinstance(self.run.batch_size, dict):
            pairs = {source.name for source in self.data.train}
            if missing := sorted(pairs - set(self.run.batch_size)):
                raise UserError(f"run.batch_size has no {missing[0]}; it has {', '.join(self.run.batch_size)}")

    def batch_size(self, pair: str) -> int:
        """Items per step of a pair, named as "image+text"."""
        sizes = self.run.batch_size
        return sizes[pair] if isinstance(sizes, dict) else sizes


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file.

    Args:
        path: YAML. A ``base`` key names a file, relative to this one, whose fields it replaces one by one; null
            takes out a term of the objective, or a modality of mask, drop, augment or templates.
        overrides: "a.b=value", later ones win; the value is YAML, a number in the path counts into a list.

    Raises:
        UserError: not YAML, a field that does not exist (with the nearest that does), or a value that cannot be.
    """
    content = read_yaml(path)
    base = content.pop("base", None)
    if base is not None:
        below = read_yaml(Path(path).parent / str(base))
        if "base" in below:
            raise UserError(f"{path}: its base {base} has a base itself; one level is the limit")
        content = merge(below, content)
    for override in overrides:
        apply_override(content, override)
    for place in (content, content.get("data")):
        for name in ("objective", "mask", "drop", "augment", "templates"):
            if isinstance(place, dict) and isinstance(place.get(name), dict):
                place[name] = {key: value for key, value in place[name].items() if value is not None}
    _check_keys(content, str(path))
    return build(Recipe, content, str(path))


def to_yaml(recipe: Recipe) -> str:
    """The recipe with every default filled in, as YAML."""
    return yaml.safe_dump(to_plain(recipe), sort_keys=False, allow_unicode=True, width=120)


def from_yaml(text: str, where: str) -> Recipe:
    """The inverse of `to_yaml`; ``where`` is the file it was found in, for messages."""
    return build(Recipe, yaml.safe_load(text), where)


def check_same(saved: str, resolved: str, out: Path) -> None:
    """A run goes on only under its own recipe; where it lies and how often it speaks may change."""
    old, new = yaml.safe_load(saved), yaml.safe_load(resolved)
    for recipe in (old, new):
        recipe.pop("run")
        recipe["data"].pop("root")
    for name in new:
        if old.get(name) != new[name]:
            raise UserError(f"{out} holds a run with another {name}; give run.out another folder, or remove this one")


def _check_keys(value: Any, where: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise UserError(
                    f"{where}: the key {key} is no text; YAML takes on, off, yes and no as true and false: quote it"
                )
            _check_keys(item, where)
    elif isinstance(value, list):
        for item in value:
            _check_keys(item, where)
