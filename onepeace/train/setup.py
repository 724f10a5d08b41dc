"""From a recipe to everything that its first step needs, in the order in which it is made; read from top to bottom.

Nothing is trained here; trainer.py takes the steps, and a checkpoint is loaded into these parts afterwards.
"""

import io
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from onepeace.compiling import compile_always, compile_sharded, pays_off
from onepeace.config import Config
from onepeace.data.builder import BatchBuilder
from onepeace.data.reader import Cursor
from onepeace.data.sample import Sample
from onepeace.data.source import Source, open_sources
from onepeace.data.steps import Steps
from onepeace.device import bfloat16_is_fast
from onepeace.errors import UserError
from onepeace.files.atomic import write_atomic
from onepeace.files.picture import open_picture
from onepeace.files.source import scheme
from onepeace.hub.architectures import build_module
from onepeace.hub.folder import TERMS_FILE
from onepeace.layers.recompute import set_recompute
from onepeace.model import Trained
from onepeace.processors import ImageProcessor, TextProcessor, tokenizer
from onepeace.processors.processor import Processor
from onepeace.processors.registry import processor_class
from onepeace.train import parallel
from onepeace.train.frozen import FrozenCache, make_stem_features
from onepeace.train.initial_weights import make_model
from onepeace.train.lora import add_lora_and_freeze
from onepeace.train.model_config import label_heads, make_config
from onepeace.train.objective import Objective
from onepeace.train.optim import make_optimizer
from onepeace.train.recipe import Recipe
from onepeace.train.term import TrainingData, captions_of
from onepeace.train.terms import TERMS

log = logging.getLogger(__name__)

LOOKED_AT = 8
"""Pictures of a source that are looked at before the first step."""
TOKENIZER = "tokenizer.json"
"""File in the run's folder."""


@dataclass(frozen=True)
class Parts:
    """Everything that a step needs."""

    config: Config
    """Configuration of the model and its processors."""
    sources: Sequence[Source]
    processors: dict[str, Processor]
    tasks: Mapping[str, Any]
    """Tasks of a generative model that are stored with its weights, by name."""
    objective: Objective
    """The model and the terms, with all trainable parameters."""
    features: Mapping[str, FrozenCache]
    """Features of frozen stems by modality."""
    optimizer: torch.optim.Optimizer
    use_bfloat16: bool
    """Whether forward passes run under autocast to bfloat16."""


def build(recipe: Recipe, device: torch.device, is_resumed: bool) -> Parts:
    """Everything that a step of this process needs.

    Args:
        recipe: the recipe.
        device: device of this process.
        is_resumed: whether the run has a checkpoint, so that its tokenizer is kept.

    Raises:
        UserError: parts of the recipe, its data and its starting model do not fit together.
    """
    sources = open_sources(recipe.data)
    config = label_heads(make_config(recipe), recipe, sources)
    processors = build_processors(recipe, config, sources, is_resumed)
    if parallel.rank() == 0:
        warn_of_small_pictures(sources, processors)
    is_sharded = parallel.world_size() > 1 and recipe.run.parallel == "fsdp"
    model = make_model(recipe, config, empty=is_sharded and parallel.rank() > 0)  # the first process shares its weights
    data = TrainingData(
        config=recipe.data,
        sources=sources,
        processors=processors,
        frozen_folder=recipe.frozen_folder,
        start_folder=recipe.fetch_start_folder(),
    )
    objective = build_objective(recipe, model, data)
    start_terms(objective, recipe.fetch_start_folder())
    add_lora_and_freeze(model, recipe)
    use_bfloat16 = computes_in_bfloat16(recipe, device)
    features = make_stem_features(
        config=recipe.data,
        folder=recipe.frozen_folder,
        sources=sources,
        processors=processors,
        model=model,
        device=device,
        use_bfloat16=use_bfloat16,
    )
    parallelize(recipe, objective, device, use_bfloat16)
    return Parts(
        config=config,
        sources=sources,
        processors=processors,
        tasks=data.tasks,
        objective=objective,
        features=features,
        optimizer=build_optimizer(recipe, objective),
        use_bfloat16=use_bfloat16,
    )


def build_processors(
    recipe: Recipe, config: Config, sources: Sequence[Source], is_resumed: bool
) -> dict[str, Processor]:
    """Processors by modality, and the run's tokenizer.json, which the first process writes.

    A resumed run keeps its tokenizer; another file may belong to another recipe and is replaced.
    """
    folder = Path(recipe.run.out)
    is_kept = is_resumed and (folder / TOKENIZER).exists()
    if "text" in config.model.adapters and parallel.rank() == 0 and not is_kept:
        write_tokenizer(recipe, sources, folder / TOKENIZER)
    parallel.barrier()
    return make_processors(config, folder)


def warn_of_small_pictures(sources: Sequence[Source], processors: Mapping[str, Processor]) -> None:
    """Log sources whose first pictures have less pixels than the model reads, as they would be enlarged.

    Only shards on this machine are looked at: others are fetched by the processes that need them.
    """
    for source in sources:
        for key in source.config.modalities:
            processor = processors.get(key)
            if not isinstance(processor, ImageProcessor) or scheme(source.shards[0]):
                continue
            sides = [min(size) for size in islice(_picture_sizes(source, key), LOOKED_AT)]
            wanted = min(processor.height, processor.width)
            if sides and max(sides) < wanted:
                log.warning(
                    "%s: its first pictures have up to %d pixels a side, and the model reads %d; "
                    "larger ones would be sharper (onepeace shards ... size=%d keeps them)",
                    source.config.shards,
                    max(sides),
                    wanted,
                    wanted,
                )


def _picture_sizes(source: Source, key: str) -> Iterator[tuple[int, int]]:
    """Width and height of the pictures of a source that can be read."""
    for sample in source:
        pictures = sample.read(key)
        for picture in pictures if isinstance(pictures, list) else [pictures]:
            with suppress(UserError, OSError):  # it is named when it is drawn
                with open_picture(io.BytesIO(picture), sample.key) as opened:  # its pixels are not read
                    yield opened.size


def build_objective(
    recipe: Recipe, model: Trained, data: TrainingData, objective_class: type[Objective] = Objective
) -> Objective:
    """The objective, with what its terms compute once from the data."""
    # Building a teacher draws random numbers, reading its cache does not; the initial weights must be the same.
    with torch.random.fork_rng(devices=[]):
        prepared = {options.name: TERMS[options.term].prepare(options, data) for options in recipe.terms}
    return objective_class(
        model=model,
        terms=recipe.terms,
        prepared=prepared,
        max_padding=recipe.run.max_padding,
        sharded=parallel.world_size() > 1 and recipe.run.parallel == "fsdp",
    )


def start_terms(objective: Objective, folder: Path | None) -> None:
    """Start the parameters of terms from those that trained ``model.from``, where names and shapes are the same."""
    path = None if folder is None else folder / TERMS_FILE
    if path is None or not path.is_file():
        return
    saved = load_file(path)
    for name, parameter in objective.terms.named_parameters():
        if name in saved and saved[name].shape == parameter.shape:
            parameter.data.copy_(saved[name])


def computes_in_bfloat16(recipe: Recipe, device: torch.device) -> bool:
    """Whether forward passes run under autocast to bfloat16."""
    if recipe.run.precision == "auto":
        return parallel.first_decides(bfloat16_is_fast(device))
    return recipe.run.precision == "bfloat16"


def parallelize(recipe: Recipe, objective: Objective, device: torch.device, use_bfloat16: bool) -> None:
    """Move the objective to its device, compiled and sharded as the recipe says."""
    model = objective.model
    set_recompute(model, recipe.run.recompute)
    if recipe.run.compile and parallel.first_decides(pays_off(model, device)):
        compile_blocks = compile_sharded if objective.sharded else compile_always
        compile_blocks(model)
    parallel.parallelize(
        objective=objective,
        units=model.sharding_units(),
        config=recipe.run,
        device=device,
        bfloat16=use_bfloat16,
    )


def build_optimizer(recipe: Recipe, objective: Objective) -> torch.optim.Optimizer:
    """The optimizer of the model's trainable parameters, and of those of the terms, which do not decay."""
    return make_optimizer(objective.model, recipe.optim, others=objective.terms.named_parameters())


def build_steps(
    recipe: Recipe,
    sources: Sequence[Source],
    processors: Mapping[str, Any],
    config: Config,
    cursors: Mapping[str, Cursor],
    features: Mapping[str, FrozenCache] | None = None,
) -> Steps:
    """Steps of this process, from ``cursors`` on."""
    # On the meta device: spawned workers get the adapters pickled, without their weights.
    with torch.device("meta"):
        adapters = build_module(config).adapters
    builder = BatchBuilder(
        config=recipe.data,
        processors=processors,
        adapters=adapters,
        masks=recipe.mask if recipe.uses_masks else {},
        features=features,
        parts=recipe.run.grad_cache_chunks,
    )
    return Steps(
        builder=builder,
        sources=sources,
        seed=recipe.seed,
        batch_size={name: recipe.batch_size(name) for name in recipe.data.modalities},
        cursors=cursors,
        rank=parallel.rank(),
        world_size=parallel.world_size(),
    )


FIRST = 200_000
"""Number of samples of each source that the vocabulary is trained on."""


def write_tokenizer(recipe: Recipe, sources: Iterable[Iterable[Sample]], path: Path) -> None:
    """Write the run's tokenizer.json: that of the text stem, the starting model or CLIP, or one trained on captions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = _make_tokenizer(recipe, sources)
    with write_atomic(path) as temporary:  # an incomplete file must not get the name
        temporary.write_text(tokenizer.to_str(pretty=True), encoding="utf-8")  # its own save raises a bare Exception


def _make_tokenizer(recipe: Recipe, sources: Iterable[Iterable[Sample]]) -> Any:
    options = recipe.tokenizer
    text = recipe.model_fields.get("adapters", {}).get("text", {})
    if text.get("stem") == "transformers":
        if options.name is not None or options.file is not None:
            raise UserError(f"tokenizer: leave out name and file, the stem {text['name']} has a vocabulary of its own")
        return tokenizer.from_transformers(text["name"])
    if options.file is not None:
        path = Path(os.path.expandvars(options.file))
        return tokenizer.read_tokenizer(path / TOKENIZER if path.is_dir() else path)
    start_folder = recipe.fetch_start_folder()
    if start_folder is not None and (start_folder / "tokenizer.json").exists():
        start = tokenizer.read_tokenizer(start_folder / "tokenizer.json")
        return tokenizer.extend_bpe(start, _captions(recipe, sources), options.vocab_size) if options.extend else start
    if options.name == "clip":
        return tokenizer.from_open_clip()
    return tokenizer.train_bpe(_captions(recipe, sources), options.vocab_size)


def _captions(recipe: Recipe, sources: Iterable[Iterable[Sample]]) -> list[str]:
    """The different captions that the vocabulary is trained on."""
    captions: set[str] = set()
    for source in sources:
        captions.update(captions_of(recipe.data, islice(source, FIRST)))
    return sorted(captions)


def make_processors(config: Config, folder: Path) -> dict[str, Processor]:
    """Processors by modality; ``folder`` holds the tokenizer.

    Raises:
        UserError: the vocabulary is larger than the model's.
    """
    processors = {
        key: processor_class(key).from_config(config.processors[key], folder) for key in config.model.adapters
    }
    text = processors.get("text")
    if not isinstance(text, TextProcessor):
        return processors
    rows = config.model.adapters["text"].get("vocab_size")
    if rows is not None and text.vocab_size > rows:
        raise UserError(
            f"{folder / 'tokenizer.json'} has {text.vocab_size} entries, more than model.adapters.text.vocab_size "
            f"{rows}; raise that, or take a tokenizer of fewer (its vocab_size, where a recipe trains one)"
        )
    return processors
