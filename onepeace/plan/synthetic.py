"""Batches of random items of a given size, and the objective of a recipe for them, for plans and benchmarks."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from onepeace.config import Config
from onepeace.data.batch import Batch, Inputs
from onepeace.data.masking import draw_masks
from onepeace.errors import UserError
from onepeace.model import Trained
from onepeace.special_ids import EOS
from onepeace.train.objective import Objective
from onepeace.train.recipe import Recipe
from onepeace.train.setup import build_objective
from onepeace.train.teachers import TeacherOptions, TeacherTable
from onepeace.train.term import TermOptions, TrainingData
from onepeace.train.terms.heads import Supervised

SAMPLE_RATE = 16000
FIRST_WORD_ID = 4
UNITS = {"text": "tokens", "image": "px", "audio": "s", "video": "px"}
"""Units of an item's size: text tokens with eos, the side of a picture or of a clip's frames, seconds of sound."""
NAME_TOKENS = 8
"""Tokens of a name of a class."""
TEACHER_OUTPUTS = {"features": 1024, "scores": 1000}
"""Widths of what teachers compute."""


def item_batch(config: Config, key: str, size: int, count: int = 1) -> Inputs:
    """Model input with `count` random items of modality `key`, all of one `size` (see `UNITS`)."""
    generator = torch.Generator().manual_seed(0)
    options = config.model.adapters[key]
    if key == "text":
        ids = torch.randint(FIRST_WORD_ID, int(options.get("vocab_size", 256)), (count, size), generator=generator)
        ids[:, -1] = EOS
        return {"ids": ids}
    if key == "audio":
        return {"waveform": torch.randn(count, size * SAMPLE_RATE, generator=generator)}
    frames = [int(options.get("frames", 16))] if key == "video" else []
    return {"pixels": torch.randn(count, *frames, 3, size, size, generator=generator)}


def picture_size(config: Config, key: str = "image") -> int:
    """Side of a model's input pictures in pixels; the longer one if they are not square."""
    size = config.processors.get(key, {}).get("size")
    if size is None:
        options = config.model.adapters[key]
        return int(options.get("patch_size", 16)) * int(options.get("bias_grid", 16))
    return max(size) if isinstance(size, list) else int(size)


def largest_items(config: Config, modalities: Sequence[str], count: int) -> dict[str, Inputs]:
    """`count` items, each of the maximum size that the processors allow, by modality.

    Raises:
        UserError: a modality whose sizes have no unit.
    """
    items = {}
    for key in modalities:
        options = config.processors.get(key, {})
        if key == "text":
            size = (options.get("max_tokens") or 70) + 1
        elif key == "audio":
            size = ceil(options.get("max_seconds") or 15)
        elif key in UNITS:
            size = picture_size(config, key)
        else:
            raise UserError(f"the size of an item of {key} is not known; a plan supports {', '.join(UNITS)}")
        items[key] = item_batch(config, key, size, count)
    return items


def synthetic_batch(recipe: Recipe, source: str, model: Trained, inputs: Mapping[str, Inputs], rows: int = 1) -> Batch:
    """Batch of a source of a recipe with these inputs by modality, ``rows`` of which make an item; without targets.

    Each token of a text is taken for a word.
    """
    count = len(next(iter(next(iter(inputs.values())).values())))
    keys = [f"item{number}" for number in range(count // rows)]
    batch = Batch(inputs=inputs, keys=keys, captions=keys, names=[[key] for key in keys], rows=rows, source=source)
    batch = batch.measured(model.adapters)
    generators = [np.random.default_rng(row) for row in range(count)]
    masks = {}
    for key in inputs:
        lengths = batch.lengths[key] - 1
        words = torch.ones(count, int(lengths.max()), dtype=torch.bool) if key == "text" else None
        dropout = recipe.data.token_dropout.get(key, 0.0)
        masks[key] = draw_masks(recipe.mask.get(key), dropout, lengths, generators, words)
    return replace(batch, masks=masks)


class SyntheticData(TrainingData):
    """Stand-in for training data that returns tensors of the right size."""

    def __init__(self, recipe: Recipe, keys: Sequence[str]) -> None:
        super().__init__(recipe.data, (), {}, recipe.frozen_folder, None)
        self.keys = [*keys, "another"]  # a single row has no standard deviation

    @property
    def tokenizer(self) -> Any:
        raise UserError("a term makes its inputs of the words of the data, so the run cannot be planned")

    def samples(self, options: TermOptions) -> Any:
        return self.tokenizer

    def texts(self, texts: Sequence[str]) -> Inputs:
        return {"ids": torch.full((len(texts), NAME_TOKENS), FIRST_WORD_ID, device="cpu")}

    def features(self, teacher: TeacherOptions, modality: str, output: str = "features") -> TeacherTable:
        rows = {key: row for row, key in enumerate(self.keys)}
        return TeacherTable(rows, torch.zeros(len(rows), TEACHER_OUTPUTS[output], device="cpu"))


def synthetic_objective(recipe: Recipe, model: Trained, keys: Sequence[str]) -> Objective:
    """The objective of a recipe for items with these keys; a head's loss is replaced by the sum of its outputs."""
    objective = build_objective(recipe, model, SyntheticData(recipe, keys))
    for term in objective.terms.values():
        if isinstance(term, Supervised):
            term.loss = sum_of_outputs  # type: ignore[method-assign]
    return objective


def sum_of_outputs(outputs: Any, batch: Batch, model: Trained) -> dict[str, Tensor]:
    """Loss that needs no targets."""
    return {"loss": torch.stack([leaf.float().sum() for leaf in tree_leaves(outputs)]).sum()}
