"""Start of a run: the model's configuration, tokenizer, processors and initial weights."""

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from onepeace.config import Config, Options, build, merge, to_plain
from onepeace.config.reader import nearest
from onepeace.data.masking import Unit
from onepeace.data.sample import Sample
from onepeace.errors import UserError, need
from onepeace.files.atomic import write_atomic
from onepeace.hub.architectures import architecture, build_module
from onepeace.hub.folder import read_config
from onepeace.model import ADAPTERS, Trained
from onepeace.model.stems import PretrainedStem, network_options
from onepeace.processors import PROCESSORS, TextProcessor
from onepeace.processors.processor import Processor
from onepeace.train import checkpoint
from onepeace.train.folder import model_folder
from onepeace.train.labels import head_options
from onepeace.train.optim import matching
from onepeace.train.recipe import Recipe
from onepeace.train.terms.known import TERMS
from onepeace.train.training_data import captions_of

log = logging.getLogger(__name__)

FIRST = 200_000
"""Number of samples of each source that the vocabulary is trained on."""


def make_config(recipe: Recipe) -> Config:
    """Configuration of a recipe's model and processors: a size or a starting model, overridden by the recipe's fields.

    It is checked against the whole recipe; sections check themselves, and terms check what they need.
    """
    start = recipe.start
    processors: Options = {}
    if start.source is not None:
        started = read_config(model_folder(start.source))
        name, base, processors = started.architecture, to_plain(started.model), started.processors
        if start.architecture not in (None, name):
            raise UserError(f"model.architecture is {start.architecture}, and {start.source} is a model of {name}")
    else:
        name = start.architecture or "onepeace"
        sizes = architecture(name, "the recipe").sizes
        if start.size not in sizes and (start.size is not None or sizes):
            raise UserError(f"model.size {start.size!r} is not known; known: {', '.join(sizes)}, or model.from FOLDER")
        base = sizes[start.size] if start.size is not None else {}
    kind = architecture(name).config
    content = merge(base, recipe.model_fields)
    for new, old in start.copy.items():
        if _is_read_like(new, old) and old in base.get("adapters", {}):
            options = {**base["adapters"][old], **content["adapters"].get(new, {})}
            content["adapters"] = {**content["adapters"], new: options}
    names = {field.name for field in fields(kind)}
    keys = start.modalities or list(content.get("adapters", {}))
    if "adapters" in names:
        if unknown := [key for key in keys if key not in content.get("adapters", {})]:
            raise UserError(f"model.modalities names {unknown[0]!r}; give its options in model.adapters.{unknown[0]}")
        content["adapters"] = {key: _with_network(key, content["adapters"][key]) for key in keys}
    elif start.modalities:
        raise UserError(f"model.modalities: models of architecture {name} have no choice of them; leave it out")
    if "projections" in content:
        content["projections"] = [key for key in content["projections"] if key in keys]
    if recipe.uses_masks:
        if not content.get("decoder"):
            remedy = "give model.decoder {dim, depth, num_heads, ffn_dim}"
            remedy = remedy if "decoder" in names else f"models of architecture {name} have no masked decoder"
            raise UserError(f"the objective has masked passes: {remedy}")
        options = content["decoder"].get("options", {})
        options = {key: own for key, own in options.items() if key in keys}
        content["decoder"] = {**content["decoder"], "options": options}
    elif "decoder" in names:
        content["decoder"] = None
    if "heads" in content:
        content["heads"] = {key: head_options(key, head, recipe) for key, head in content["heads"].items()}
    settings = merge(processors, recipe.processors)
    model: Any = build(kind, content, "the recipe's model")
    config = Config(model, {key: settings.get(key, {}) for key in model.adapters}, name)
    check(recipe, config)
    return config


def check(recipe: Recipe, config: Config) -> None:
    """UserError for options that would fail later or have no effect."""
    if recipe.lora is not None:
        need("peft", "lora")
    if unknown := [key for key in recipe.processors if key not in PROCESSORS]:
        raise UserError(f"processors.{unknown[0]}: no such modality; there are {', '.join(PROCESSORS)}")
    pairs = recipe.data.modalities
    for name, pair in pairs.items():
        if unknown := [key for key in pair if key not in config.model.adapters]:
            there = nearest(unknown[0], config.model.adapters)
            raise UserError(f"data.train: {name} has {unknown[0]!r}, the model does not; {there}")
    sections = ("token_dropout", "augment", "templates", "stem_views")
    by_modality = {"mask": recipe.mask, **{f"data.{name}": getattr(recipe.data, name) for name in sections}}
    for place, options in by_modality.items():
        if unused := [key for key in options if not any(key in pair for pair in pairs.values())]:
            raise UserError(f"{place}.{unused[0]}: no pair of data.train has {unused[0]}; there are {', '.join(pairs)}")
    for key, rates in recipe.mask.items():
        fitting = [unit for unit in get_args(Unit) if (unit == "word") == (key == "text")]
        if rates.unit not in fitting:
            raise UserError(f"mask.{key}.unit {rates.unit!r} is not for {key}; known: {', '.join(fitting)}")
    fed = {source.name for options in recipe.terms for source in recipe.feeding(options)}
    if idle := [name for name in pairs if name not in fed]:
        raise UserError(f"data.train: no term of the objective reads {idle[0]}; add one, or take its sources out")
    for options in recipe.terms:
        TERMS[options.term].check(options, recipe, config)


def _is_read_like(new: str, old: str) -> bool:
    """Whether the adapter class of ``new`` is that of ``old`` or a subclass of it."""
    return new in ADAPTERS and old in ADAPTERS and issubclass(ADAPTERS[new], ADAPTERS[old])


def _with_network(key: str, options: Options) -> Options:
    """Options of an adapter, with the configuration of a named network, as a model folder must contain it."""
    if options.get("stem") != "transformers" or "network" in options:
        return options
    if "name" not in options:
        raise UserError("model.adapters: the stem transformers needs a name, as name: facebook/wav2vec2-base")
    full = {**options, "network": network_options(options["name"])}
    if _is_read_like(key, "text"):
        full["vocab_size"] = full["network"].get("vocab_size", 0)
    return full


def make_tokenizer(recipe: Recipe, sources: Iterable[Iterable[Sample]], path: Path) -> None:
    """Write the run's tokenizer.json: that of the text stem, the starting model or CLIP, or one trained on captions.

    It is kept once there is a checkpoint; an older file may belong to another recipe and is replaced.
    """
    from onepeace.processors import tokenizer

    if path.exists() and checkpoint.files(path.parent):
        return
    wanted, source = recipe.tokenizer, recipe.start.source
    start = model_folder(source) / "tokenizer.json" if source is not None else None
    reads = recipe.model_fields.get("adapters", {}).get("text", {})
    if reads.get("stem") == "transformers":
        if wanted.name is not None:
            raise UserError(f"tokenizer: leave out name, the stem {reads['name']} has a vocabulary of its own")
        made = tokenizer.from_transformers(reads["name"])
    elif start is not None and start.exists():
        made = tokenizer.read_tokenizer(start)
    elif wanted.name == "clip":
        made = tokenizer.from_open_clip()
    else:
        captions = {text for source in sources for text in captions_of(recipe.data, islice(source, FIRST))}
        made = tokenizer.train_bpe(sorted(captions), wanted.vocab_size)
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_atomic(path) as temporary:  # an incomplete file must not get the name
        made.save(str(temporary))


def make_processors(config: Config, folder: Path) -> dict[str, Processor]:
    """Processors by modality; ``folder`` holds the tokenizer."""
    processors = {key: PROCESSORS[key].from_config(config.processors[key], folder) for key in config.model.adapters}
    if isinstance(text := processors.get("text"), TextProcessor):
        size, rows = text.vocab_size, config.model.adapters["text"].get("vocab_size")
        if rows is not None and size > rows:
            raise UserError(
                f"{folder / 'tokenizer.json'} has {size} entries, more than model.adapters.text.vocab_size {rows}; "
                "raise that, or lower tokenizer.vocab_size"
            )
    return processors


def make_model(recipe: Recipe, config: Config, empty: bool = False) -> Trained:
    """Model with the weights of ``model.from``, if it is given, and random ones; on the meta device if ``empty``.

    ``model.copy`` {new: old} initialises a new modality from another one, ``model.fresh`` lists patterns of weights to
    leave random. Other weights that ``model.from`` lacks are random too and are logged.
    """
    torch.manual_seed(recipe.seed)
    with torch.device("meta" if empty else "cpu"):
        model = build_module(config)
    start = recipe.start
    if start.source is None and (start.copy or start.fresh):
        raise UserError("model.copy and model.fresh need the weights of model.from; give it, or leave them out")
    if empty:
        return model
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {} if start.source is None else start_weights(recipe, config, own)
    fresh = [name for name in own if name not in given]
    unexpected = [name for name in fresh if not name.startswith("heads.")]  # the recipe names its heads
    if start.source is not None and unexpected:
        names = ", ".join(unexpected[:3]) + ", ..." * (len(unexpected) > 3)
        log.info("initialised at random: %s (%s has no such weights)", names, start.source)
    model.load_state_dict(given, strict=False)
    for key, adapter in model.adapters.items():
        stem = getattr(adapter, "stem", None)
        is_new = any(name.startswith(f"adapters.{key}.stem.") for name in fresh)
        if start.pretrained and is_new and isinstance(stem, PretrainedStem):
            stem.load_pretrained()
    return model


def start_weights(recipe: Recipe, config: Config, own: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Weights from ``model.from`` for a model whose weights have these names and shapes.

    Raises:
        UserError: a weight has another shape; ``model.fresh`` or ``model.copy`` matches nothing.
    """
    from onepeace.hub.weights import read_state

    start = recipe.start
    folder = model_folder(str(start.source))
    given = read_state(folder)
    for pattern in start.fresh:
        left_out = matching(pattern, list(given), f"model.fresh: {folder}")
        given = {name: tensor for name, tensor in given.items() if name not in left_out}
    for new, old in start.copy.items():
        # Adapters are copied only between modalities with related adapter classes.
        fitting = [name for name in own if not name.startswith("adapters.") or _is_read_like(new, old)]
        twins = {name: name.replace(f".{new}.", f".{old}.") for name in fitting if f".{new}." in name}
        copied = {name: given[twin] for name, twin in twins.items() if twin in given}
        if not copied:
            raise UserError(f"model.copy: {folder} has no weights of {old!r} that fit {new!r}")
        given = {**copied, **given}
    given = _fitted(given, own, config)
    taken = {name: given[name] for name in own if name in given}
    wrong = [name for name, tensor in taken.items() if own[name] != tensor.shape]
    if wrong:
        shapes = f"{tuple(taken[wrong[0]].shape)} there, {own[wrong[0]]} here"
        raise UserError(
            f"{folder}: {len(wrong)} weights do not have the shape the recipe asks for ({wrong[0]}: {shapes})"
        )
    return taken


def _fitted(given: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], config: Config) -> dict[str, Tensor]:
    """The weights, with a shared bias table copied for each block and resampled for another picture size, as the
    released code does when fine-tuning starts."""
    found = dict(given)
    for name in shapes:
        shared = re.sub(r"(\.bias_tables)\.\d+$", r"\1.0", name)
        if name not in found and shared != name and shared in given:
            found[name] = given[shared].clone()
    resize = architecture(config.architecture).resize
    for name, tensor in found.items():
        if ".bias_tables." in name and name in shapes and tensor.shape != shapes[name] and resize is not None:
            found[name] = resize(tensor, shapes[name])
    return found
