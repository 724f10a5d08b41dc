"""Checks of a recipe across its sections, before any data is read; fields of one section are checked in sections.py."""

from collections.abc import Mapping
from typing import Any

from onepeace.config import Config
from onepeace.config.reader import nearest
from onepeace.errors import UserError, need
from onepeace.generative.config import OFAConfig
from onepeace.hub.architectures import architecture
from onepeace.processors.registry import PROCESSORS, processor_class
from onepeace.train.loggers import LOGGERS
from onepeace.train.recipe import Recipe
from onepeace.train.term_options import TermContext, sources_of
from onepeace.train.terms.registry import TERMS


def check(recipe: Recipe, config: Config) -> None:
    """UserError for options that would fail later or have no effect."""
    if recipe.lora is not None:
        need("peft", "lora")
    for name in recipe.run.loggers:
        LOGGERS[name].check()
    _check_modalities(recipe, config)
    _check_terms(recipe, config)
    if architecture(config.architecture).generates:
        _check_writer(recipe, config)


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
            start_folder=recipe.start_folder,
        )
        term.check(options, context)


def _check_writer(recipe: Recipe, config: Config) -> None:
    """Options that models which write do not support."""
    updates_statistics = isinstance(config.model, OFAConfig) and not config.model.freeze_stem_norms
    if updates_statistics and recipe.run.grad_cache_chunks > 1:
        raise UserError(
            "model.freeze_stem_norms: false needs run.grad_cache_chunks=1: parts are computed twice, and would count "
            "twice in the statistics"
        )
    if recipe.optim.layer_decay is not None:
        raise UserError("optim.layer_decay: the blocks of a generative model are not one stack; leave it out")
    for section in ("token_dropout", "stem_views"):
        if getattr(recipe.data, section):
            raise UserError(f"data.{section} is not for generative models; take it out")
    for source in recipe.data.train:
        if source.candidates is not None:
            raise UserError(f"a generative model reads one text of an item; take candidates from {source.shards}")
