"""From a recipe to what the loop needs: the configuration, the vocabulary, the model and its first weights."""

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onepeace.config import Config, Options, build, merge, to_plain
from onepeace.data.batches import Lengths
from onepeace.data.sample import Sample
from onepeace.data.shards import Source, expand, read_source
from onepeace.data.steps import DataState, StepDataset, Streams
from onepeace.data.streams import first_samples
from onepeace.errors import UserError
from onepeace.hub.architectures import architecture, build_module
from onepeace.hub.folder import read_config
from onepeace.model import OnePeace
from onepeace.processors import PROCESSORS
from onepeace.train import checkpoint, parallel
from onepeace.train.check import check
from onepeace.train.recipe import Recipe, split_term
from onepeace.train.teachers import cached_features

log = logging.getLogger(__name__)

FIRST = 20_000
"""Samples of each stream whose captions make the vocabulary."""

# Fields of a recipe's ``model`` that are not the network's.
_START = ("architecture", "size", "from", "modalities", "copy", "fresh")


def model_folder(name: str) -> Path:
    """A model folder, the model that the run in a folder has written, or that of a name: "tiny" or a released one."""
    folder = Path(name)
    if not folder.is_dir():
        from onepeace.hub import registry
        from onepeace.hub.resolve import resolve

        if name == "tiny" or registry.find(name):
            return resolve(name)
    return folder / "model" if not (folder / "config.yaml").exists() and (folder / "model").is_dir() else folder


def make_config(recipe: Recipe) -> Config:
    """The model and media a recipe describes: a size or a starting point, with the recipe's fields in their place.

    The whole recipe is checked against them (check.py).
    """
    wanted = recipe.model
    fields = {key: value for key, value in wanted.items() if key not in _START}
    processors: Options = {}
    started = read_config(model_folder(wanted["from"])) if "from" in wanted else None
    name = wanted.get("architecture", started.architecture if started else "onepeace")
    network = architecture(name, "the recipe's model")
    if started is not None:
        base, processors = to_plain(started.model), started.processors
    elif wanted.get("size") in network.sizes:
        base = {**network.sizes[wanted["size"]]}
    else:
        known = f"{', '.join(network.sizes)}, or model.from FOLDER"
        raise UserError(f"model.size {wanted.get('size')!r} is not known; known: {known}")
    keys = wanted.get("modalities") or list(merge(base, fields)["adapters"])
    content = merge(base, fields)
    unknown = [key for key in keys if key not in content["adapters"]]
    if unknown:
        raise UserError(f"model.modalities names {unknown[0]!r}; give its options in model.adapters.{unknown[0]}")
    content["adapters"] = {key: content["adapters"][key] for key in keys}
    content["projections"] = [key for key in content["projections"] if key in keys]
    if not any(split_term(term)[0] == "denoising" for term in recipe.objective):
        content.pop("decoder", None)
    elif not content.get("decoder"):
        raise UserError("the objective has denoising terms: give model.decoder {dim, depth, num_heads, ffn_dim}")
    else:
        options = content["decoder"].get("options", {})
        content["decoder"] = {**content["decoder"], "options": {k: v for k, v in options.items() if k in keys}}
    settings = merge(processors, recipe.processors)
    model: Any = build(network.config, content, "the recipe's model")
    config = Config(model, {key: settings.get(key, {}) for key in keys}, name)
    check(recipe, config)
    return config


class Data:
    """What a recipe reads: sources in memory, or none of them where it streams."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        config = recipe.data
        options: dict[str, Any] = {"allow_pipe": config.allow_pipe, "broken_limit": config.broken_limit}
        sources = () if config.stream else config.train
        self.sources = [read_source(source.shards, source.pair, config.root, **options) for source in sources]

    def captions(self) -> set[str]:
        """Every caption the sources can give; of streams, those of the first samples of each."""
        if not self.recipe.data.stream:
            return {text for source in self.sources for text in source_captions(self.recipe, source.samples)}
        found: set[str] = set()
        for source in self.recipe.data.train:
            shards = expand(source.shards, self.recipe.data.root, self.recipe.data.allow_pipe)
            samples = first_samples(shards, source.pair, FIRST, self.recipe.data.broken_limit)
            found.update(source_captions(self.recipe, samples))
        return found

    def steps(
        self,
        processors: Mapping[str, Any],
        lengths: Mapping[str, Lengths],
        places: Mapping[str, Any] | None,
        first: int,
    ) -> tuple[StepDataset | Streams, DataState | None]:
        """This process's batches from step ``first`` on, and where its streams stand: at ``places``, if given."""
        at = parallel.rank(), parallel.world_size()
        if not self.recipe.data.stream:
            return StepDataset(self.recipe, self.sources, processors, lengths, *at), None
        streams = Streams(self.recipe, processors, lengths, *at, DataState.read(places) if places else None, first)
        return streams, streams.places


def make_tokenizer(recipe: Recipe, captions: Callable[[], set[str]], path: Path) -> None:
    """Write the run's tokenizer.json: the starting model's, a file's, or trained on the captions.

    Once there is a checkpoint it stays. Before, it may be of another recipe, and is made again.
    """
    from onepeace.processors import tokenizer

    if path.exists() and checkpoint.files(path.parent):
        return
    wanted = recipe.tokenizer
    start = model_folder(recipe.model["from"]) / "tokenizer.json" if "from" in recipe.model else None
    if start is not None and start.exists():
        made = tokenizer.read_tokenizer(start)
    elif wanted.file is not None:
        made = tokenizer.read_tokenizer(Path(wanted.file))
    elif wanted.name == "clip":
        made = tokenizer.from_open_clip()
    else:
        made = tokenizer.train_bpe(sorted(captions()), wanted.vocab_size)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    made.save(str(temporary))
    os.replace(temporary, path)  # half a vocabulary would be taken for the run's


def source_captions(recipe: Recipe, samples: Iterable[Sample]) -> list[str]:
    """Every caption the samples can give, class templates filled in; they are read once, one at a time."""
    templates = [template for group in recipe.data.templates.values() for template in group]
    texts: list[str] = []
    labels: set[str] = set()
    for sample in samples:
        texts += sample.captions
        labels |= {sample.label} if sample.label else set()
    return texts + [template.format(label) for label in sorted(labels) for template in templates]


def make_processors(config: Config, folder: Path) -> dict[str, Any]:
    """A decoder of files and values for each modality; ``folder`` holds the tokenizer."""
    processors: dict[str, Any] = {
        key: PROCESSORS[key].from_config(config.processors[key], folder) for key in config.model.adapters
    }
    if "text" in processors:
        size, rows = processors["text"].vocab_size, config.model.adapters["text"]["vocab_size"]
        if size > rows:
            raise UserError(
                f"{folder / 'tokenizer.json'} has {size} entries, more than model.adapters.text.vocab_size {rows}; "
                "raise that, or lower tokenizer.vocab_size"
            )
    return processors


def make_model(recipe: Recipe, config: Config, empty: bool = False) -> OnePeace:
    """A model with fresh weights, or those of ``model.from`` where it has them; if ``empty``, one without values.

    ``model.copy`` {new: old} starts a new modality's FFNs and norms from another's: spectrograms profit from what was
    learned on pictures. ``model.fresh`` lists patterns of weights that are not taken over. Whatever else is new starts
    fresh and is logged; a weight of another shape is an error.
    """
    torch.manual_seed(recipe.seed)
    with torch.device("meta" if empty else "cpu"):
        model = build_module(config)
    if empty or "from" not in recipe.model:
        return model
    from onepeace.hub.weights import read_state

    folder = model_folder(recipe.model["from"])
    given = read_state(folder)
    for pattern in recipe.model.get("fresh", ()):
        found = [name for name in given if fnmatchcase(name, pattern)]
        if not found:
            raise UserError(f"model.fresh: the pattern {pattern!r} matches no weight of {folder}")
        given = {name: tensor for name, tensor in given.items() if name not in found}
    own = model.state_dict()
    for new, old in recipe.model.get("copy", {}).items():
        for name in own:
            # Not the adapters: what they read has nothing in common.
            if name not in given and f".{new}." in name and not name.startswith("adapters."):
                twin = name.replace(f".{new}.", f".{old}.")
                given.update({name: given[twin]} if twin in given else {})
    wrong = [name for name in own if name in given and own[name].shape != given[name].shape]
    if wrong:
        shapes = f"{tuple(given[wrong[0]].shape)} there, {tuple(own[wrong[0]].shape)} here"
        raise UserError(
            f"{folder}: {len(wrong)} weights do not have the shape the recipe asks for ({wrong[0]}: {shapes})"
        )
    fresh = [name for name in own if name not in given]
    if fresh:
        log.warning("%d of %d weights start fresh: not in %s (%s, ...)", len(fresh), len(own), folder, fresh[0])
    model.load_state_dict({name: given[name] for name in own if name in given}, strict=False)
    return model


def make_teachers(
    recipe: Recipe, sources: Sequence[Source], processors: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Features of the outside teachers the objective names; ``cache`` says where they are kept, the run by default."""
    tables = {}
    for term, options in recipe.objective.items():
        kind, listed = split_term(term)
        if kind != "distillation":
            continue
        if recipe.data.stream:
            raise UserError(f"objective.{term} asks its teacher once, of items in memory; set data.stream=false")
        key = "text" if options.get("by") == "captions" else listed[0]
        own = f"{recipe.run.out}/{options['teacher']}-{key}.safetensors"
        path = Path(os.path.expandvars(options.get("cache") or own))
        if key == "text":
            captions = {text for source in sources for text in source_captions(recipe, source.samples)}
            # Like lengths joint: the teacher pads to the longest of a batch.
            items: dict[str, Any] = {text: text for text in sorted(captions, key=lambda text: (len(text), text))}
        else:
            items = {s.key: s.inputs[key] for source in sources for s in source.samples if key in s.inputs}
        load = getattr(processors[key], "load", lambda item: item)
        tables[term] = cached_features(options["teacher"], list(items), lambda name: load(items[name]), path)  # noqa: B023
    return tables


def average_into(average: dict[str, Tensor], model: OnePeace, decay: float) -> None:
    """One step of the exponential moving average of the weights."""
    with torch.no_grad():
        own = dict(model.named_parameters())
        torch._foreach_lerp_(list(average.values()), [own[name] for name in average], 1 - decay)


def model_of(config: Config, full: Mapping[str, Tensor]) -> OnePeace:
    """A model of these weights for other uses than training."""
    with torch.device("meta"):
        model = build_module(config)
    model.load_state_dict(full, assign=True)
    return model.eval()


def scores_of(
    evaluate: Callable[[OnePeace, dict[str, Any]], dict[str, float]],
    config: Config,
    full: Mapping[str, Tensor],
    processors: dict[str, Any],
) -> dict[str, float]:
    """Scores of these weights; torch's generator is as it was after."""
    generator = torch.get_rng_state()
    try:
        return evaluate(model_of(config, full), processors)
    finally:
        torch.set_rng_state(generator)
