"""A recipe: all options of a training run in one YAML file, as typed and frozen dataclasses.

`read_recipe` merges a base file, the file and overrides from the command line, and refuses unknown fields. The base is
relative to the recipe, shards to ``data.root``. Sections check their own fields (sections.py), check.py how they fit
together.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from onepeace.config import Options, apply_override, build, merge, read_yaml, to_plain
from onepeace.config.reader import Natural
from onepeace.data.config import DataConfig
from onepeace.data.masking import MaskRates, check_unit
from onepeace.errors import UserError
from onepeace.extensions import import_extension, resolve_imports
from onepeace.train.schedule import ScheduleConfig
from onepeace.train.sections import (
    EvaluateConfig,
    LoraConfig,
    OptimConfig,
    RunConfig,
    StartConfig,
    TokenizerConfig,
)
from onepeace.train.term import TermOptions
from onepeace.train.terms import TERMS, read_terms

START_FIELDS = {field.name for field in fields(StartConfig)} - {"source"} | {"from"}
"""Fields of ``model`` that are those of StartConfig, by their names in YAML."""


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
    imports: tuple[str, ...] = ()
    """Python files and modules that are imported first, for your own terms, modalities, stems or architectures. A
    file is relative to the recipe that names it, on the command line to the working folder."""
    processors: dict[str, Options] = field(default_factory=dict)
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
            for name in sorted(self.data.modalities):
                if name not in self.run.batch_size:
                    raise UserError(f"run.batch_size has no {name}; it has {', '.join(self.run.batch_size)}")
        if not self.objective:
            raise UserError(f"objective is empty; give at least one term of {', '.join(TERMS)}")
        object.__setattr__(self, "objective", read_terms(self.objective))
        for key, rates in self.mask.items():
            check_unit(key, rates.unit)
        if self.lora is not None and self.freeze and not isinstance(self.freeze, Mapping):
            raise UserError("lora freezes all but its adapters; give freeze: {except: patterns} of others to train")
        if self.schedule.min_lr > self.optim.lr:
            raise UserError(
                f"schedule.min_lr {self.schedule.min_lr} is above optim.lr {self.optim.lr}, and the rate would rise; "
                "lower it"
            )
        self.start  # noqa: B018 (its types are checked)

    @property
    def terms(self) -> tuple[TermOptions, ...]:
        """Options of each loss term."""
        return self.objective

    @property
    def uses_masks(self) -> bool:
        """Whether any loss term needs masked passes."""
        return any(TERMS[options.term].uses_masks for options in self.terms)

    @property
    def start(self) -> StartConfig:
        """Fields of ``model`` about its initial weights."""
        values = {key: value for key, value in self.model.items() if key in START_FIELDS}
        if "from" in values:
            values["source"] = values.pop("from")
        return build(StartConfig, values, "model")

    @property
    def model_fields(self) -> Options:
        """Fields of ``model`` for the model's configuration."""
        return {key: value for key, value in self.model.items() if key not in START_FIELDS}

    def fetch_start_folder(self) -> Path | None:
        """Folder of ``model.from``, which is downloaded if needed; None without one."""
        from onepeace.hub.download import RELEASED
        from onepeace.hub.resolve import BUNDLED_NAMES, fetch_model

        source = self.start.source
        if source is None:
            return None
        if not Path(source).is_dir() and (source in BUNDLED_NAMES or source in RELEASED):
            return fetch_model(source).folder
        return model_folder(source)

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
    path = Path(path)
    content = _with_base(path)
    for override in overrides:
        if isinstance(content.get("objective"), list):
            content["objective"] = [_named(term) for term in content["objective"]]
        apply_override(content, override)
    if isinstance(content.get("objective"), list):
        content["objective"] = [term for term in content["objective"] if term is not None]
    evaluate = content.get("evaluate") or None
    if isinstance(evaluate, dict) and isinstance(evaluate.get("recipe"), str):
        evaluate["recipe"] = _evaluation_file(evaluate["recipe"], path)
    content["evaluate"] = evaluate
    content["imports"] = resolve_imports(content.get("imports") or [], Path())
    for name in content["imports"]:
        import_extension(str(name))
    return build(Recipe, content, str(path))


def _with_base(path: Path) -> Options:
    """Fields of a recipe file, completed by those of its ``base``; each names its imports relative to itself."""
    content = _with_imports(path)
    base = content.pop("base", None)
    if base is None:
        return content
    below = _with_imports(path.parent / str(base))
    if "base" in below:
        raise UserError(f"its base {base} has a base itself; one level is the limit", where=path)
    return merge(below, content)


def _with_imports(path: Path) -> Options:
    content = read_yaml(path)
    if "imports" in content:
        content["imports"] = resolve_imports(content["imports"], path.parent)
    return content


def _evaluation_file(name: str, recipe: Path) -> str:
    """Path of an evaluation recipe; see `EvaluateConfig`."""
    if Path(name).exists():
        return name
    for folder in recipe.resolve().parents:
        if (folder / name).exists():
            return str(folder / name)
    return name


def _named(term: Any) -> Any:
    """Entry of the objective, with its default name if it has none."""
    if not isinstance(term, dict) or term.get("name"):
        return term
    options = TermOptions(
        term=str(term.get("term")),
        on=tuple(map(str, term.get("on") or ())),
        sources=tuple(map(str, term.get("sources") or ())),
    )
    return {**term, "name": options.name}


MAY_CHANGE = frozenset(
    {
        "evaluate",
        "imports",
        "schedule.steps",
        "data.root",
        "data.frozen_folder",
        "data.cache_gigabytes",
        "run.out",
        "run.log_every",
        "run.eval_every",
        "run.save_every",
        "run.save_minutes",
        "run.keep",
        "run.workers",
        "run.loggers",
        "run.profile",
        "run.parallel",
        "run.shard",
        "run.keep_gathered",
        "run.compile",
        "run.recompute",
    }
)
"""Fields that do not affect the result of a step, except for rounding, and schedule.steps, which affects its rate."""


def check_same(saved: str, recipe: Recipe, out: Path, step: int) -> None:
    """Check that a run may resume with a recipe.

    Args:
        saved: the recipe of the checkpoint, as YAML. Fields in MAY_CHANGE, and fields that only one of two versions of
            the program has, may differ.
        recipe: the recipe to resume with.
        out: folder of the run.
        step: step of the checkpoint.

    Raises:
        UserError: another field differs, or schedule.steps is below the step.
    """
    if recipe.schedule.steps < step:
        raise UserError(
            f"its checkpoint is of step {step}, and schedule.steps is {recipe.schedule.steps}; raise it, or "
            "give run.out another folder",
            where=out,
        )
    old = _settings(yaml.safe_load(saved))
    new = _settings(to_plain(recipe))
    with suppress(UserError):  # with the defaults of the terms' options
        old["objective"] = to_plain(read_terms(old["objective"]))
    for name, value in new.items():
        if name in old and name not in MAY_CHANGE and old[name] != value:
            raise UserError(
                f"{out} holds a run with another {name}: {old[name]!r:.200}, not {value!r:.200}; "
                "give run.out another folder, or remove this one"
            )


def _settings(content: Mapping[str, Any]) -> Options:
    """Fields of a recipe by name; those of a section are separate, as "optim.lr"."""
    sections = set()
    for entry in fields(Recipe):
        if isinstance(entry.type, type) and is_dataclass(entry.type):
            sections.add(entry.name)
    settings: Options = {}
    for name, value in content.items():
        if name not in sections:
            settings[name] = value
            continue
        for field_name, field_value in value.items():
            settings[f"{name}.{field_name}"] = field_value
    return settings


def model_folder(name: str) -> Path:
    """Folder of a model, given this folder or that of a finished run."""
    folder = Path(name)
    model = folder / "model"
    if not (folder / "config.yaml").exists() and model.is_dir():
        return model
    return folder
