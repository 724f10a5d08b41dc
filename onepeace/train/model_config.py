"""The configuration of a recipe's model: that of a named size or of ``model.from``, with the recipe's own fields."""

import inspect
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from onepeace.config import Config, MaskedDecoderConfig, Options, build, merge, to_plain
from onepeace.config.reader import nearest, read_arguments
from onepeace.data.sample import LABELS
from onepeace.data.source import Source
from onepeace.errors import UserError, need
from onepeace.evaluate.protocols.classes import read_class_names
from onepeace.hub.architectures import architecture
from onepeace.hub.folder import read_config
from onepeace.model import ADAPTERS
from onepeace.model.stems import network_options
from onepeace.processors.registry import PROCESSORS, processor_class
from onepeace.train.logging import LOGGERS
from onepeace.train.recipe import Recipe
from onepeace.train.term import TermContext, sources_of
from onepeace.train.terms import TERMS
from onepeace.train.terms.heads import Supervised, SupervisedOptions


class Start(NamedTuple):
    """What a recipe's fields are added to, as plain values."""

    architecture: str
    model: Options
    """Fields of the model's configuration."""
    processors: Options
    """Options of processors by modality."""


def make_config(recipe: Recipe) -> Config:
    """Configuration of a recipe's model and processors, checked against the whole recipe.

    Raises:
        UserError: a field is unknown or does not fit the others.
    """
    start = _start_of(recipe)
    config_class = architecture(start.architecture).config
    names = {field.name for field in fields(config_class)}
    content = read_arguments(config_class, merge(start.model, recipe.model_fields), "", "model")
    if "adapters" in names:
        adapters = content.get("adapters", {})
        content["adapters"] = _adapters(recipe, adapters, start.model.get("adapters", {}))
    elif recipe.start.modalities:
        raise UserError(
            f"model.modalities: models of architecture {start.architecture} have no choice of them; leave it out"
        )
    if "projections" in content:
        content["projections"] = [key for key in content["projections"] if key in content["adapters"]]
    if "decoder" in names:
        content["decoder"] = _decoder(recipe, content.get("decoder"), content["adapters"])
    elif recipe.uses_masks:
        raise UserError(f"the objective has masked passes: models of architecture {start.architecture} have none")
    if "heads" in content:
        heads = {}
        for name, head in content["heads"].items():
            heads[name] = head_options(name, head, recipe)
        content["heads"] = heads
    model: Any = build(config_class, content, "", "model")
    settings = merge(start.processors, recipe.processors)
    processors = {key: settings.get(key, {}) for key in model.adapters}
    config = Config(model=model, processors=processors, architecture=start.architecture)
    check(recipe, config)
    return config


def _start_of(recipe: Recipe) -> Start:
    """Configuration that the recipe changes: of ``model.from``, or of a named size."""
    start = recipe.start
    folder = recipe.fetch_start_folder()
    if folder is not None:
        config = read_config(folder)
        if start.architecture not in (None, config.architecture):
            raise UserError(
                f"model.architecture is {start.architecture}, and {start.source} is a model of {config.architecture}"
            )
        return Start(config.architecture, to_plain(config.model), config.processors)
    name = start.architecture or "onepeace"
    sizes = architecture(name, "the recipe").sizes
    if start.size is None and not sizes:
        return Start(name, {}, {})
    if start.size is None or start.size not in sizes:
        raise UserError(f"model.size {start.size!r} is not known; known: {', '.join(sizes)}, or model.from FOLDER")
    return Start(name, dict(sizes[start.size]), {})


def _adapters(recipe: Recipe, options: dict[str, Options], start: dict[str, Options]) -> dict[str, Options]:
    """Options of the adapters of ``model.modalities``.

    Args:
        options: options of the starting model, overridden by the recipe.
        start: those of the starting model alone.
    """
    options = dict(options)
    for new, old in recipe.start.copy.items():
        if old not in start:
            raise UserError(f"model.copy: there is no modality {old!r} to copy; {nearest(old, start)}")
        if is_read_like(new, old):
            options[new] = {**_accepted(new, start[old]), **options.get(new, {})}
    modalities = recipe.start.modalities or tuple(options)
    for new in recipe.start.copy:
        if new not in modalities:
            raise UserError(f"model.copy: the model has no modality {new!r}; {nearest(new, modalities)}")
    for key in modalities:
        if key not in options:
            raise UserError(f"model.modalities names {key!r}; give its options in model.adapters.{key}")
    return {key: _with_network(key, options[key]) for key in modalities}


def _accepted(key: str, options: Options) -> Options:
    """Those options that the adapter class of a modality has: a subclass may have fewer than its base."""
    parameters = inspect.signature(ADAPTERS[key]).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return options
    return {name: value for name, value in options.items() if name in parameters}


def is_read_like(new: str, old: str) -> bool:
    """Whether the adapter class of ``new`` is that of ``old`` or a subclass of it."""
    return new in ADAPTERS and old in ADAPTERS and issubclass(ADAPTERS[new], ADAPTERS[old])


def _with_network(key: str, options: Options) -> Options:
    """Options of an adapter, with the configuration of a named network, as a model folder must contain it."""
    if options.get("stem") != "transformers" or "network" in options:
        return options
    if "name" not in options:
        raise UserError("model.adapters: the stem transformers needs a name, such as name: facebook/wav2vec2-base")
    network = network_options(options["name"])
    if is_read_like(key, "text"):
        return {**options, "network": network, "vocab_size": network.get("vocab_size", 0)}
    return {**options, "network": network}


def _decoder(
    recipe: Recipe, decoder: MaskedDecoderConfig | None, modalities: Collection[str]
) -> MaskedDecoderConfig | None:
    """The masked decoder for these modalities; None for a recipe without masked passes."""
    if not recipe.uses_masks:
        return None
    if decoder is None:
        raise UserError("the objective has masked passes: give model.decoder {dim, depth, num_heads, ffn_dim}")
    return replace(decoder, options={key: value for key, value in decoder.options.items() if key in modalities})


AUTO = "auto"
"""Value of a head's ``labels`` that stands for all labels in the training data."""


def head_options(name: str, options: Options, recipe: Recipe) -> Options:
    """Options of a head, completed by its labels and by the task and the number of outputs of the term that trains it.

    For ``labels: auto`` they have two empty labels until the data is read (`label_heads`).
    """
    completed = dict(options)
    for term_options, term in _supervised(recipe):
        if term_options.head == name:
            completed.setdefault("task", term.task)
            if term.num_outputs is not None:
                completed.setdefault("num_classes", term.num_outputs)
    labels = completed.get("labels")
    if labels == AUTO:
        completed["labels"] = ["", ""]
    elif isinstance(labels, str):
        completed["labels"] = _labels_of_file(name, labels, recipe.data.root)
    if labels is not None:
        completed["num_classes"] = len(completed["labels"])
    return completed


def _labels_of_file(head: str, file: str, root: str) -> list[str]:
    path = Path(os.path.expandvars(root), file)
    if not path.exists():
        raise UserError(
            f"model.heads.{head}.labels: {path} is not there; give data.root=FOLDER (it is {root}), or list the labels"
        )
    return read_class_names(path)


def _supervised(recipe: Recipe) -> Iterator[tuple[SupervisedOptions, type[Supervised[Any]]]]:
    """Options and class of each term that trains a head."""
    for options in recipe.terms:
        term = TERMS[options.term]
        if issubclass(term, Supervised) and isinstance(options, SupervisedOptions):
            yield options, term


def label_heads(config: Config, recipe: Recipe, sources: Sequence[Source]) -> Config:
    """The configuration; heads with ``labels: auto`` get the labels in the targets of the samples.

    Raises:
        UserError: the samples have fewer than two labels.
    """
    heads = dict(config.model.heads)
    for options, term in _supervised(recipe):
        name = options.head
        if recipe.model.get("heads", {}).get(name, {}).get("labels") != AUTO:
            continue
        labels = _labels_of_data(term.target, sources)
        if len(labels) < 2:
            raise UserError(
                f"model.heads.{name}: the target {term.target} has one label ({labels[0] if labels else 'none'}); it "
                "needs two or more"
            )
        heads[name] = {**heads[name], "labels": labels, "num_classes": len(labels)}
    if not heads:
        return config
    return replace(config, model=replace(config.model, heads=heads))


def _labels_of_data(target: str, sources: Sequence[Source]) -> list[str]:
    """All labels in a target of the samples, sorted."""
    labels_in = LABELS.get(target, lambda value: [value])
    labels: set[str] = set()
    for source in sources:
        for sample in source.samples:
            if target in sample.targets:
                labels.update(labels_in(sample.targets[target]))
    return sorted(labels)


def check(recipe: Recipe, config: Config) -> None:
    """UserError for options that would fail later or have no effect."""
    if recipe.lora is not None:
        need("peft", "lora")
    for name in recipe.run.loggers:
        if name not in LOGGERS:
            raise UserError(f"run.loggers: {name!r} is not known; {nearest(name, LOGGERS)}")
        LOGGERS[name].check()
    _check_modalities(recipe, config)
    _check_terms(recipe, config)


def _check_modalities(recipe: Recipe, config: Config) -> None:
    """Data has only the model's modalities, and options are of modalities that the data has."""
    for key in config.model.adapters:
        processor_class(key)
    for key in recipe.processors:
        if key not in PROCESSORS:
            raise UserError(f"processors.{key}: no such modality; there are {', '.join(PROCESSORS)}")
    modalities_by_source = recipe.data.modalities
    present: set[str] = set()
    for name, modalities in modalities_by_source.items():
        present.update(modalities)
        for key in modalities:
            if key not in config.model.adapters:
                hint = nearest(key, config.model.adapters)
                raise UserError(f"data.train: {name} has {key!r}, the model does not; {hint}")
    if recipe.data.stem_views and recipe.run.parallel == "fsdp":
        raise UserError("data.stem_views needs whole stems in every process; set run.parallel=ddp, or leave it out")
    options_by_section: dict[str, Mapping[str, Any]] = {"mask": recipe.mask}
    for section in ("token_dropout", "augment", "templates", "stem_views"):
        options_by_section[f"data.{section}"] = getattr(recipe.data, section)
    for section, options in options_by_section.items():
        for key in options:
            if key not in present:
                sources = ", ".join(modalities_by_source)
                raise UserError(f"{section}.{key}: no source of data.train has {key}; there are {sources}")


def _check_terms(recipe: Recipe, config: Config) -> None:
    """Each source feeds a term, each term has a source, and its options fit them."""
    read = {source.name for options in recipe.terms for source in sources_of(options, recipe.data)}
    for name in recipe.data.modalities:
        if name not in read:
            raise UserError(f"data.train: no term of the objective reads {name}; add one, or take its sources out")
    for options in recipe.terms:
        term = TERMS[options.term]
        if term.needs_whole_model and recipe.run.parallel == "fsdp":
            raise UserError(f"{options.where} needs the whole model; set run.parallel=ddp")
        context = TermContext(
            config=config,
            data=recipe.data,
            sources=sources_of(options, recipe.data),
            mask=recipe.mask,
            start_folder=recipe.fetch_start_folder(),
            optim=recipe.optim,
            run=recipe.run,
        )
        term.check(options, context)
