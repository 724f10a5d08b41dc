"""A recipe: one YAML file that says everything about a training run, as typed and frozen dataclasses.

`read_recipe` merges a base file, the file and overrides of the command line, and refuses what it does not know. Paths
of the base are relative to the recipe; shards are relative to ``data.root``. A field is validated here,
fields against each other in start.py.
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
    """The fields of a recipe's ``model`` that say where it starts; all others are the configuration's."""

    architecture: str | None = None
    """A key of ARCHITECTURES; that of ``from``, or onepeace."""
    size: str | None = None
    """A named size of the architecture."""
    source: str | None = None
    """``from`` in YAML: a model folder, a run, "tiny" or a released name."""
    modalities: tuple[str, ...] = ()
    """Modalities of the model; empty = all it has."""
    copy: dict[str, str] = field(default_factory=dict)
    """{new: old}: FFNs and norms of a new modality start from those of another, and where it is read in the same way
    (frames of a video as pictures) its adapter too, with the same options unless the recipe gives others."""
    fresh: tuple[str, ...] = ()
    """Patterns of weights that are not taken over."""
    pretrained: bool = True
    """Whether a stem that names a network starts from its published weights."""


@dataclass(frozen=True)
class TokenizerConfig:
    """Source of the vocabulary; with model.from it is that model's."""

    vocab_size: int = 8000
    """Size of a vocabulary that is trained on the captions of the sources, if no name is given."""
    name: Literal["clip"] | None = None
    """clip, as open_clip ships it."""


@dataclass(frozen=True)
class LoraConfig:
    """Adapters of low rank beside linear layers (lora.py); all else is frozen, but for freeze: {except: patterns}."""

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
    """Settings that are different for some parameters."""

    lr_scale: NotNegative = 1.0
    """Factor of the learning rate, beside that of optim.layer_decay."""
    weight_decay: NotNegative | None = None
    """In place of optim.weight_decay, for those that decay at all; null = the same."""


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its limits; the defaults are the released pretraining's."""

    lr: NotNegative = 5e-4
    """Peak rate."""
    betas: tuple[Share, Share] = (0.9, 0.98)
    eps: NotNegative = 1e-8
    weight_decay: NotNegative = 0.05
    decay_all: bool = False
    """Whether biases, norms and positions decay as well (OFA)."""
    grad_clip: NotNegative | None = 3.0
    """Largest norm of the whole gradient; null = not clipped."""
    layer_decay: NotNegative | None = None
    """Each layer's rate over the next one's, for fine-tuning."""
    groups: dict[str, OptimGroup] = field(default_factory=dict)
    """By pattern of parameter names, as in freeze: {"heads.*": {lr_scale: 0.1}}; the first that matches counts."""


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate over the steps."""

    steps: Count
    """Length of the run, in updates."""
    name: Literal["cosine", "linear"] = "cosine"
    """Course after the warm-up to min_lr: half a cosine, or a line."""
    warmup_steps: Natural | None = None
    warmup_ratio: Probability | None = None
    """The warm-up as a share of the steps, instead of warmup_steps."""
    min_lr: float = 1e-6
    """Rate of the first and the last update."""

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
    """Settings of the loop."""

    out: str
    """Folder of the run: checkpoints, log, the resolved recipe."""
    batch_size: dict[str, Count] | Count = 32
    """Items per step, of every pair or by pair: {image+text: 256, audio+text: 64}."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto, float32 or bfloat16 autocast."""
    workers: Natural = 1
    """Processes that decode; 0 = none, decode between the steps."""
    log_every: Count = 20
    eval_every: Natural = 0
    """Steps between validations; 0 = at the end only."""
    save_every: Natural = 1000
    """Steps between checkpoints; 0 = by time only."""
    save_minutes: NotNegative = 5.0
    """Minutes between checkpoints at most; 0 = by steps only."""
    keep: Count = 2
    """Number of checkpoints that stay."""
    ema: Share | None = None
    """Decay of the averaged weights; null = none."""
    grad_cache_chunks: Count = 1
    """Parts a process computes its batch in, one after another: less memory for the same loss and gradient."""
    checkpoint_activations: bool = False
    """Keep only the input of each block, and compute it again in the backward pass."""
    max_padding: NotNegative = 0.1
    """Share of padding from which items are computed in groups of similar length; 1 = never."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Over several processes: ddp, each holds the whole model; fsdp, each a share of it."""
    compile: bool = False
    """torch.compile each block, where it pays (`onepeace.compiling`)."""
    max_bad_steps: Natural = 3
    """Steps in a row that may have a gradient which is not finite; they are left out and named."""
    tensorboard: bool = False
    """Whether tensorboard gets the log as well."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Sets that the run is measured on."""

    recipe: str
    """An evaluation recipe, as recipes/evaluate/tiny.yaml: a path from the working folder or, where there is none, from
    the nearest folder above this recipe that has it."""
    sets: tuple[str, ...] | None = None
    """Some of its sets; null = all."""


@dataclass(frozen=True)
class Recipe:
    """Everything about a run. `to_yaml` and `read_recipe` are inverse to each other."""

    model: Options
    """The fields of StartConfig, and any field of the model's configuration."""
    data: DataConfig
    objective: tuple[Any, ...]
    """Loss terms (terms/): mappings are read as the options of the term they name; see `terms`."""
    schedule: ScheduleConfig
    run: RunConfig
    seed: Natural = 1
    processors: Options = field(default_factory=dict)
    """By modality: options of its processor, over those of the model it starts from."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    mask: dict[str, MaskRates] = field(default_factory=dict)
    """By modality: share of tokens masked in the denoising passes."""
    freeze: dict[str, tuple[str, ...]] | tuple[str, ...] = ()
    """Patterns of parameters that do not train, or {except: patterns} of those that do."""
    lora: LoraConfig | None = None
    """Adapters that train in place of the weights; null = none."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    evaluate: EvaluateConfig | None = None
    """null = not measured."""

    def __post_init__(self) -> None:
        if isinstance(self.run.batch_size, dict):
            if missing := sorted(set(self.data.modalities) - set(self.run.batch_size)):
                raise UserError(f"run.batch_size has no {missing[0]}; it has {', '.join(self.run.batch_size)}")
        if not self.objective:
            raise UserError(f"objective is empty; give at least one term of {', '.join(TERMS)}")
        object.__setattr__(self, "objective", read_terms(self.objective))
        if self.lora is not None and self.freeze and not isinstance(self.freeze, Mapping):
            raise UserError("lora freezes all but its adapters; give freeze: {except: patterns} of what trains besides")
        self.start  # noqa: B018 (its types are checked)

    @property
    def terms(self) -> tuple[TermOptions, ...]:
        """The options of each loss term."""
        return self.objective

    @property
    def uses_masks(self) -> bool:
        """Whether a loss term needs masked passes."""
        return any(TERMS[options.term].uses_masks for options in self.terms)

    def feeding(self, options: TermOptions) -> list[SourceConfig]:
        """The sources that feed a term.

        Raises:
            UserError: there is none, or the term names one that does not exist.
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
        """Start of the model."""
        renamed = {"source" if key == "from" else key: value for key, value in self.model.items()}
        known = {one.name for one in fields(StartConfig)}
        return build(StartConfig, {key: value for key, value in renamed.items() if key in known}, "model")

    @property
    def model_fields(self) -> Options:
        """The fields of the model's configuration that the recipe sets."""
        start = {"from", *(one.name for one in fields(StartConfig))} - {"source"}
        return {key: value for key, value in self.model.items() if key not in start}

    @property
    def frozen_folder(self) -> Path:
        """Folder of the outputs of frozen networks."""
        return Path(os.path.expandvars(self.data.frozen_folder or f"{self.run.out}/frozen"))

    def batch_size(self, pair: str) -> int:
        """Items per step of the sources of a name, as "image+text"."""
        sizes = self.run.batch_size
        return sizes[pair] if isinstance(sizes, dict) else sizes


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file.

    Args:
        path: YAML. A ``base`` key names a file, relative to this one, whose fields it replaces one by one, lists as a
            whole; null takes out a modality of mask, token_dropout, augment or templates, or one of optim.groups.
        overrides: "a.b=value", later ones win; the value is YAML, a number in the path counts into a list. A term of
            the objective goes by its name, as "objective.denoising/image.weight=2", and null takes it out.

    Raises:
        UserError: not YAML, a field that does not exist (with the nearest that does), or a value that cannot be.
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


def to_yaml(recipe: Recipe) -> str:
    """The recipe with every default filled in, as YAML."""
    return yaml.safe_dump(to_plain(recipe), sort_keys=False, allow_unicode=True, width=120)


MAY_CHANGE = frozenset(
    ["evaluate"]
    + [f"data.{name}" for name in ("root", "frozen_folder", "cache_gigabytes")]
    + [f"run.{name}" for name in ("out", "log_every", "eval_every", "save_every", "save_minutes", "keep", "workers")]
    + [f"run.{name}" for name in ("tensorboard", "parallel", "compile", "checkpoint_activations")]
)
"""Fields that do not change what a step computes, but for rounding."""


def check_same(saved: str, recipe: Recipe, out: Path) -> None:
    """UserError if a run would go on under another recipe than its own, but for the fields in MAY_CHANGE. Fields that
    the version that began the run did not have, or only that had, do not count."""
    old, new = _settings(yaml.safe_load(saved)), _settings(to_plain(recipe))
    with suppress(UserError):  # options of terms too
        old["objective"] = to_plain(read_terms(old["objective"]))
    for name, value in new.items():
        if name in old and name not in MAY_CHANGE and old[name] != value:
            raise UserError(
                f"{out} holds a run with another {name}, {old[name]!r:.200} and not {value!r:.200}; "
                "give run.out another folder, or remove this one"
            )


def _settings(content: Mapping[str, Any]) -> Options:
    """The fields of a recipe by name, those of a section one by one, as "optim.lr"."""
    sections = {one.name for one in fields(Recipe) if isinstance(one.type, type) and is_dataclass(one.type)}
    found: Options = {}
    for name, value in content.items():
        found |= {f"{name}.{key}": own for key, own in value.items()} if name in sections else {name: value}
    return found


def _named(term: Any) -> Any:
    """An entry of the objective under its name."""
    if not isinstance(term, dict) or term.get("name"):
        return term
    on, sources = (tuple(str(one) for one in term.get(key) or ()) for key in ("on", "sources"))
    return {**term, "name": TermOptions(term=str(term.get("term")), on=on, sources=sources).name}
