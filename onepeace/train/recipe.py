"""Recipes: all options of a training run in one YAML file, as typed and frozen dataclasses.

`read_recipe` merges a base file, the file and overrides from the command line, and refuses unknown fields. The base is
relative to the recipe, shards to ``data.root``. Fields are validated here, combinations of sections in start.py.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from onepeace.config import Options, apply_override, build, merge, read_yaml, to_plain
from onepeace.config.limits import Count, Natural, NotNegative, Positive, Probability, Share
from onepeace.config.reader import nearest
from onepeace.data.config import DataConfig, SourceConfig
from onepeace.data.masking import MaskRates
from onepeace.errors import UserError
from onepeace.train.term import TermOptions
from onepeace.train.terms.known import TERMS, read_terms


@dataclass(frozen=True)
class StartConfig:
    """Fields of a recipe's ``model`` about its initial weights; all others belong to its configuration."""

    architecture: str | None = None
    """Key of ARCHITECTURES; default: that of ``from``, else onepeace."""
    size: str | None = None
    """Named size of the architecture."""
    source: str | None = None
    """``from`` in YAML: a model folder, a run, "tiny" or a released name."""
    modalities: tuple[str, ...] = ()
    """Modalities of the model; empty = all that it has."""
    copy: dict[str, str] = field(default_factory=dict)
    """{new: old}: FFNs and norms of a new modality are initialised from those of another, and so is an adapter of the
    same kind (frames of a video and pictures), whose options are also copied unless the recipe sets them."""
    fresh: tuple[str, ...] = ()
    """Patterns of weights of ``from`` that are not used."""
    pretrained: bool = True
    """Whether a stem that names a network starts from its published weights."""


@dataclass(frozen=True)
class TokenizerConfig:
    """Options of the tokenizer; with model.from, that model's tokenizer is used."""

    vocab_size: int = 8000
    """Size of the vocabulary trained on the captions of the sources, if there is no name."""
    name: Literal["clip"] | None = None
    """clip for CLIP's tokenizer, from open_clip."""


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (lora.py); all other parameters are frozen, except those of freeze: {except: patterns}."""

    rank: Count = 8
    alpha: Positive = 16.0
    """An adapter's output is multiplied by alpha / rank."""
    dropout: Share = 0.0
    """Dropout of an adapter's input."""
    targets: tuple[str, ...] = ("blocks.*.attn.[qkv]", "blocks.*.attn.proj")
    """Patterns of module names; their linear layers get adapters: ["blocks.*.attn.*", "blocks.*.ffn.image.*"]."""

    def __post_init__(self) -> None:
        if not self.targets:
            raise UserError("lora.targets is empty: name the layers that get adapters")


@dataclass(frozen=True)
class OptimGroup:
    """Optimizer settings of some parameters."""

    lr_scale: NotNegative = 1.0
    """Factor of the learning rate, on top of that of optim.layer_decay."""
    weight_decay: NotNegative | None = None
    """Weight decay of those parameters that decay at all; null = optim.weight_decay."""


@dataclass(frozen=True)
class OptimConfig:
    """Options of AdamW; the defaults are those of the released pretraining."""

    lr: NotNegative = 5e-4
    """Peak learning rate."""
    betas: tuple[Share, Share] = (0.9, 0.98)
    eps: NotNegative = 1e-8
    weight_decay: NotNegative = 0.05
    decay_all: bool = False
    """Whether biases, norms and positions decay as well (OFA)."""
    grad_clip: Positive | None = 3.0
    """Maximum norm of the gradient; null = no clipping."""
    layer_decay: NotNegative | None = None
    """Ratio of a layer's learning rate to the next layer's, for fine-tuning."""
    groups: dict[str, OptimGroup] = field(default_factory=dict)
    """Settings by pattern of parameter names, as {"heads.*": {lr_scale: 0.1}}; the first match counts."""


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate schedule."""

    steps: Count
    """Length of the run in updates."""
    name: Literal["cosine", "linear"] = "cosine"
    """Decay to min_lr after the warm-up."""
    warmup_steps: Natural | None = None
    warmup_ratio: Probability | None = None
    """Warm-up as a share of the steps, instead of warmup_steps."""
    min_lr: float = 1e-6
    """Learning rate of the first and the last update."""

    def __post_init__(self) -> None:
        if self.warmup_steps is not None and self.warmup_ratio is not None:
            raise UserError("schedule.warmup_steps and schedule.warmup_ratio say the same; give one of them")
        if self.warmup > self.steps:
            raise UserError(f"schedule.warmup_steps {self.warmup} is more than schedule.steps {self.steps}")

    @property
    def warmup(self) -> int:
        """Number of updates in the warm-up."""
        return self.warmup_steps if self.warmup_steps is not None else int(self.steps * (self.warmup_ratio or 0.0))


@dataclass(frozen=True)
class RunConfig:
    """Options of the training loop."""

    out: str
    """Folder of the run: checkpoints, log, the resolved recipe."""
    batch_size: dict[str, Count] | Count = 32
    """Items per step for each name of sources, or by name: {image+text: 256, audio+text: 64}."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """float32, or autocast to bfloat16; auto = bfloat16 where it is fast."""
    workers: Natural = 1
    """Number of processes that load data; 0 = load it between the steps."""
    log_every: Count = 20
    eval_every: Natural = 0
    """Steps between evaluations; 0 = at the end only."""
    save_every: Natural = 1000
    """Steps between checkpoints; 0 = by time only."""
    save_minutes: NotNegative = 5.0
    """Maximum number of minutes between checkpoints; 0 = by steps only."""
    keep: Count = 2
    """Number of checkpoints to keep."""
    ema: Share | None = None
    """Decay of the averaged weights; null = none."""
    grad_cache_chunks: Count = 1
    """Number of parts in which a process computes its batch; more parts need less memory, with the same result."""
    checkpoint_activations: bool = False
    """Whether to recompute each block's activations in the backward pass."""
    max_padding: NotNegative = 0.1
    """Share of padding above which items are computed in groups of similar length; 1 = never."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Layout over several processes: ddp, each holds the whole model; fsdp, each holds a shard."""
    compile: bool = False
    """Whether to compile the blocks with torch.compile, where it pays (`onepeace.compiling`)."""
    max_bad_steps: Natural = 3
    """Consecutive steps with a gradient that is not finite, which are skipped and logged; one more stops the run."""
    tensorboard: bool = False
    """Whether to write the log for tensorboard too."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluation of the run."""

    recipe: str
    """Evaluation recipe, such as recipes/evaluate/tiny.yaml: a path relative to the working folder or else to the
    nearest folder above this recipe that has it."""
    sets: tuple[str, ...] | None = None
    """Names of its sets to use; null = all."""


@dataclass(frozen=True)
class Recipe:
    """Options of a run. `to_yaml` and `read_recipe` are inverse to each other."""

    model: Options
    """Fields of StartConfig and of the model's configuration."""
    data: DataConfig
    objective: tuple[Any, ...]
    """Loss terms (terms/), whose mappings are parsed as the options of the term; see `terms`."""
    schedule: ScheduleConfig
    run: RunConfig
    seed: Natural = 1
    processors: Options = field(default_factory=dict)
    """Options of processors by modality, which override those of model.from."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    mask: dict[str, MaskRates] = field(default_factory=dict)
    """Shares of tokens masked in the denoising passes, by modality."""
    freeze: dict[str, tuple[str, ...]] | tuple[str, ...] = ()
    """Patterns of frozen parameters, or {except: patterns} of those that are trained."""
    lora: LoraConfig | None = None
    """Adapters that are trained instead of the weights; null = none."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    evaluate: EvaluateConfig | None = None
    """Evaluation; null = none."""

    def __post_init__(self) -> None:
        if isinstance(self.run.batch_size, dict):
            if missing := sorted(set(self.data.modalities) - set(self.run.batch_size)):
                raise UserError(f"run.batch_size has no {missing[0]}; it has {', '.join(self.run.batch_size)}")
        if not self.objective:
            raise UserError(f"objective is empty; give at least one term of {', '.join(TERMS)}")
        object.__setattr__(self, "objective", read_terms(self.objective))
        if self.lora is not None and self.freeze and not isinstance(self.freeze, Mapping):
            raise UserError("lora freezes all but its adapters; give freeze: {except: patterns} of others to train")
        self.start  # noqa: B018 (its types are checked)

    @property
    def terms(self) -> tuple[TermOptions, ...]:
        """Options of each loss term."""
        return self.objective

    @property
    def uses_masks(self) -> bool:
        """Whether any loss term needs masked passes."""
        return any(TERMS[options.term].uses_masks for options in self.terms)

    def feeding(self, options: TermOptions) -> list[SourceConfig]:
        """Sources that a term learns from.

        Raises:
            UserError: there is no such source, or the term names one that does not exist.
        """
        known = self.data.modalities
        if unknown := [name for name in options.sources if name not in known]:
            raise UserError(f"{options.where}.sources: no source is named {unknown[0]!r}; {nearest(unknown[0], known)}")
        if unknown := [key for key in options.on if not any(key in keys for keys in known.values())]:
            there = dict.fromkeys(key for keys in known.values() for key in keys)
            raise UserError(f"{options.where}.on: no source has {unknown[0]!r}; {nearest(unknown[0], there)}")
        found = [source for source in self.data.train if options.reads(source.name, source.pair)]
        if not found:
            raise UserError(f"no source of data.train can feed {options.where}; there are {', '.join(known)}")
        return found

    @property
    def start(self) -> StartConfig:
        """Fields of ``model`` about its initial weights."""
        renamed = {"source" if key == "from" else key: value for key, value in self.model.items()}
        known = {one.name for one in fields(StartConfig)}
        return build(StartConfig, {key: value for key, value in renamed.items() if key in known}, "model")

    @property
    def model_fields(self) -> Options:
        """Fields of ``model`` for the model's configuration."""
        start = {"from", *(one.name for one in fields(StartConfig))} - {"source"}
        return {key: value for key, value in self.model.items() if key not in start}

    @property
    def frozen_folder(self) -> Path:
        """Folder of the cached outputs of frozen networks."""
        return Path(os.path.expandvars(self.data.frozen_folder or f"{self.run.out}/frozen"))

    def batch_size(self, name: str) -> int:
        """Items per step for a name of sources, such as "image+text"."""
        sizes = self.run.batch_size
        return sizes[name] if isinstance(sizes, dict) else sizes


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file.

    Args:
        path: YAML file. ``base`` names a file, relative to this one, whose fields this file overrides one by one, lists
            as a whole; null removes an entry of mask, token_dropout, augment, templates or optim.groups.
        overrides: "a.b=value" with YAML values, later ones win; a number in the path is an index into a list. A term of
            the objective is addressed by name, as "objective.denoising/image.weight=2"; null removes it.

    Raises:
        UserError: not YAML, an unknown field (with the nearest known one), or a wrong value.
    """
    content = read_yaml(path)
    base = content.pop("base", None)
    below: Options = {}
    if base is not None:
        below = read_yaml(Path(path).parent / str(base))
        if "base" in below:
            raise UserError(f"{path}: its base {base} has a base itself; one level is the limit")
    content = merge(below, content)
    for override in overrides:
        if isinstance(terms := content.get("objective"), list):
            content["objective"] = [_named(term) for term in terms]
        apply_override(content, override)
    if isinstance(terms := content.get("objective"), list):
        content["objective"] = [term for term in terms if term is not None]
    measured = content["evaluate"] = content.get("evaluate") or None
    if isinstance(measured, dict) and isinstance(measured.get("recipe"), str):
        name = measured["recipe"]
        folders = () if Path(name).exists() else Path(path).resolve().parents
        measured["recipe"] = next((str(folder / name) for folder in folders if (folder / name).exists()), name)
    return build(Recipe, content, str(path))


MAY_CHANGE = frozenset(
    ["evaluate"]
    + [f"data.{name}" for name in ("root", "frozen_folder", "cache_gigabytes")]
    + [f"run.{name}" for name in ("out", "log_every", "eval_every", "save_every", "save_minutes", "keep", "workers")]
    + [f"run.{name}" for name in ("tensorboard", "parallel", "compile", "checkpoint_activations")]
)
"""Fields that do not affect the result of a step, except for rounding."""


def check_same(saved: str, recipe: Recipe, out: Path) -> None:
    """UserError if a run would resume with another recipe, except for fields in MAY_CHANGE and fields that only one of
    two versions of the program has."""
    old, new = _settings(yaml.safe_load(saved)), _settings(to_plain(recipe))
    with suppress(UserError):  # with the defaults of the terms' options
        old["objective"] = to_plain(read_terms(old["objective"]))
    for name, value in new.items():
        if name in old and name not in MAY_CHANGE and old[name] != value:
            raise UserError(
                f"{out} holds a run with another {name}, {old[name]!r:.200} and not {value!r:.200}; "
                "give run.out another folder, or remove this one"
            )


def _settings(content: Mapping[str, Any]) -> Options:
    """Fields of a recipe by name; those of a section are separate, as "optim.lr"."""
    sections = {one.name for one in fields(Recipe) if isinstance(one.type, type) and is_dataclass(one.type)}
    found: Options = {}
    for name, value in content.items():
        found |= {f"{name}.{key}": own for key, own in value.items()} if name in sections else {name: value}
    return found


def _named(term: Any) -> Any:
    """Entry of the objective, with its default name if it has none."""
    if not isinstance(term, dict) or term.get("name"):
        return term
    on, sources = (tuple(str(one) for one in term.get(key) or ()) for key in ("on", "sources"))
    return {**term, "name": TermOptions(term=str(term.get("term")), on=on, sources=sources).name}
