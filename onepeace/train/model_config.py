"""The configuration of a recipe's model: that of a named size or of ``model.from``, with the recipe's own fields."""

from collections.abc import Collection
from dataclasses import fields
from typing import Any, NamedTuple

from onepeace.config import Config, Options, build, merge, to_plain
from onepeace.config.reader import nearest
from onepeace.errors import UserError
from onepeace.hub.architectures import architecture
from onepeace.hub.folder import read_config
from onepeace.model import ADAPTERS
from onepeace.model.stems import network_options
from onepeace.train.check import check
from onepeace.train.labels import head_options
from onepeace.train.recipe import Recipe


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
    content = merge(start.model, recipe.model_fields)
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
    model: Any = build(config_class, content, "the recipe's model")
    settings = merge(start.processors, recipe.processors)
    processors = {key: settings.get(key, {}) for key in model.adapters}
    config = Config(model=model, processors=processors, architecture=start.architecture)
    check(recipe, config)
    return config


def _start_of(recipe: Recipe) -> Start:
    """Configuration that the recipe changes: of ``model.from``, or of a named size."""
    start = recipe.start
    if recipe.start_folder is not None:
        config = read_config(recipe.start_folder)
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
            options[new] = {**start[old], **options.get(new, {})}
    modalities = recipe.start.modalities or tuple(options)
    for new in recipe.start.copy:
        if new not in modalities:
            raise UserError(f"model.copy: the model has no modality {new!r}; {nearest(new, modalities)}")
    for key in modalities:
        if key not in options:
            raise UserError(f"model.modalities names {key!r}; give its options in model.adapters.{key}")
    return {key: _with_network(key, options[key]) for key in modalities}


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


def _decoder(recipe: Recipe, decoder: Options | None, modalities: Collection[str]) -> Options | None:
    """The masked decoder for these modalities; None for a recipe without masked passes."""
    if not recipe.uses_masks:
        return None
    if not decoder:
        raise UserError("the objective has masked passes: give model.decoder {dim, depth, num_heads, ffn_dim}")
    options = {}
    for key, value in decoder.get("options", {}).items():
        if key in modalities:
            options[key] = value
    return {**decoder, "options": options}
