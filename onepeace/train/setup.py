"""Parts of a run that are made before its first step: tokenizer, processors, what terms prepare, features, batches."""

from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from onepeace.config import Config, read_yaml, write_config
from onepeace.data.builder import BatchBuilder
from onepeace.data.frozen_cache import StemFeatures
from onepeace.data.reader import Cursor, Source
from onepeace.data.sample import Sample
from onepeace.data.steps import Steps
from onepeace.device import bfloat16_is_fast
from onepeace.errors import UserError
from onepeace.files.atomic import write_atomic
from onepeace.generative.tasks import FILE as TASKS
from onepeace.generative.tasks import Task
from onepeace.hub.architectures import build_module
from onepeace.processors import PROCESSORS, TextProcessor
from onepeace.processors.processor import Processor
from onepeace.train import checkpoint, parallel
from onepeace.train.folder import model_folder
from onepeace.train.recipe import Recipe
from onepeace.train.stem_features import StemViews
from onepeace.train.terms.known import TERMS
from onepeace.train.training_data import TrainingData, captions_of

FIRST = 200_000
"""Samples of each source whose captions make the vocabulary."""


def make_tokenizer(recipe: Recipe, sources: Iterable[Iterable[Sample]], path: Path) -> None:
    """Write the run's tokenizer.json: that of the recipe's stem, the starting model's, CLIP's, or one trained on the
    captions.

    Once there is a checkpoint it stays. Before, it may be of another recipe, and is made again.
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
    with write_atomic(path) as temporary:  # half a vocabulary would be taken for the run's
        made.save(str(temporary))


def make_processors(config: Config, folder: Path) -> dict[str, Processor]:
    """A processor for each modality; ``folder`` holds the tokenizer."""
    processors = {key: PROCESSORS[key].from_config(config.processors[key], folder) for key in config.model.adapters}
    if isinstance(text := processors.get("text"), TextProcessor):
        size, rows = text.vocab_size, config.model.adapters["text"].get("vocab_size")
        if rows is not None and size > rows:
            raise UserError(
                f"{folder / 'tokenizer.json'} has {size} entries, more than model.adapters.text.vocab_size {rows}; "
                "raise that, or lower tokenizer.vocab_size"
            )
    return processors


def prepare_terms(data: TrainingData) -> dict[str, Any]:
    """Results of the terms' ``prepare``, by their names."""
    return {options.name: TERMS[options.term].prepare(options, data) for options in data.recipe.terms}


def keep_tasks(recipe: Recipe, trained: Mapping[str, Task], out: Path) -> None:
    """Write what the terms ask a generative model, and what the starting one was asked, to the run's tasks.yaml."""
    source = recipe.start.source
    before = model_folder(source) / TASKS if source is not None else None
    known = read_yaml(before) if before is not None and before.exists() else {}
    if known or trained:
        write_config({**known, **trained}, out / TASKS)


def make_stem_features(
    recipe: Recipe, sources: list[Source], processors: Mapping[str, Processor], model: Any, device: torch.device
) -> dict[str, StemFeatures]:
    """Features of the sources' items by the frozen stems of data.stem_views; the first process makes them."""
    found = {}
    for key, views in recipe.data.stem_views.items():
        samples = [sample for source in sources for sample in source.samples if key in sample.inputs]
        augment, made = recipe.data.augment.get(key, {}), ""
        if parallel.rank() == 0:
            arguments = (key, model.adapters[key], processors[key], augment, samples, views)
            made = str(StemViews(*arguments, device, use_bfloat16_of(recipe, device)).keep(recipe.frozen_folder))
        found[key] = StemFeatures(Path(parallel.gather_objects(made)[0]), samples)
    return found


def use_bfloat16_of(recipe: Recipe, device: torch.device) -> bool:
    """Whether passes run under autocast to bfloat16."""
    return {"float32": False, "bfloat16": True}.get(recipe.run.precision, bfloat16_is_fast(device))


def make_steps(
    recipe: Recipe,
    sources: list[Source],
    processors: Mapping[str, Any],
    config: Config,
    cursors: Mapping[str, Cursor],
    features: Mapping[str, StemFeatures] | None = None,
) -> Steps:
    """This process's batches, from ``cursors`` on."""
    # Of a model without values: workers that are spawned get these functions pickled, and no embedding table with them.
    with torch.device("meta"):
        num_tokens = {key: adapter.token_lengths for key, adapter in build_module(config).adapters.items()}
    builder = BatchBuilder(recipe.data, processors, num_tokens, recipe.mask if recipe.uses_masks else {}, features)
    sizes = {name: recipe.batch_size(name) for name in recipe.data.modalities}
    return Steps(builder, sources, recipe.seed, sizes, cursors, parallel.rank(), parallel.world_size())
