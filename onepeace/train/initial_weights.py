"""The model of a recipe with its initial weights: those of ``model.from``, of pretrained stems, and random ones."""

import logging
import re
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from onepeace.config import Config
from onepeace.errors import UserError
from onepeace.hub.architectures import architecture, build_module
from onepeace.model import Trained
from onepeace.model.stems import PretrainedStem
from onepeace.processors.tokenizer import read_tokenizer
from onepeace.train import parallel
from onepeace.train.model_config import is_read_like
from onepeace.train.optim import matching
from onepeace.train.recipe import Recipe

log = logging.getLogger(__name__)

EMBEDDING = "adapters.text.token_embed.weight"

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of a model's weights by name."""


def make_model(recipe: Recipe, config: Config, empty: bool = False) -> Trained:
    """Model with the weights of ``model.from``, if it is given, and random ones; on the meta device if ``empty``.

    ``model.copy`` {new: old} initialises a new modality from another one, ``model.fresh`` lists patterns of weights to
    leave random. Other weights that ``model.from`` lacks are random too and are logged.
    """
    start = recipe.start
    if start.source is None and (start.copy or start.fresh):
        raise UserError("model.copy and model.fresh need the weights of model.from; give it, or leave them out")
    torch.manual_seed(recipe.seed)
    with torch.device("meta" if empty else "cpu"):
        model = build_module(config)
    if not empty:
        _load_weights(model, recipe, config)
    return model


def _load_weights(model: Trained, recipe: Recipe, config: Config) -> None:
    """Load the weights of ``model.from`` and of pretrained stems."""
    source = recipe.start.source
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    weights = start_weights(recipe, config, shapes)
    fresh = [name for name in shapes if name not in weights]
    if source is not None and parallel.rank() == 0:
        _log_fresh(fresh, source)
    model.load_state_dict(weights, strict=False)
    if recipe.start.pretrained:
        _load_pretrained(model, fresh)


def _log_fresh(names: Collection[str], source: str) -> None:
    """Log weights that the starting model lacks, except those of heads, which the recipe names."""
    unexpected = [name for name in names if not name.startswith("heads.")]
    if not unexpected:
        return
    listed = ", ".join(unexpected[:3])
    if len(unexpected) > 3:
        listed += ", ..."
    log.info("initialised at random: %s (%s has no such weights)", listed, source)


def _load_pretrained(model: Trained, fresh: Collection[str]) -> None:
    """Load the published weights of stems that were initialised at random."""
    for key, adapter in model.adapters.items():
        stem = getattr(adapter, "stem", None)
        is_fresh = any(name.startswith(f"adapters.{key}.stem.") for name in fresh)
        if is_fresh and isinstance(stem, PretrainedStem):
            stem.load_pretrained()


def start_weights(recipe: Recipe, config: Config, shapes: Shapes) -> dict[str, Tensor]:
    """Weights from ``model.from`` for a model whose weights have these names and shapes.

    Raises:
        UserError: a weight has another shape; ``model.fresh`` or ``model.copy`` matches nothing.
    """
    from onepeace.hub.weights import read_state

    folder = recipe.fetch_start_folder()
    if folder is None:
        return {}
    weights = read_state(folder)
    for pattern in recipe.start.fresh:
        for name in matching(pattern, list(weights), f"model.fresh: {folder}"):
            del weights[name]
    for new, old in recipe.start.copy.items():
        copied = _copied(weights, shapes, new, old)
        if not copied:
            raise UserError(f"model.copy: {folder} has no weights of {old!r} that fit {new!r}")
        if parallel.rank() == 0:
            log.info("model.copy: %s starts with %d weights of %s", new, len(copied), old)
        weights = {**copied, **weights}
    if recipe.tokenizer.extend and EMBEDDING in weights:
        weights[EMBEDDING] = _extended(weights[EMBEDDING], shapes[EMBEDDING][0], folder, Path(recipe.run.out))
    fitted = _fitted(weights, shapes, config)
    used = {name: fitted[name] for name in shapes if name in fitted}
    _check_shapes(used, shapes, folder)
    return used


def _extended(table: Tensor, num_rows: int, old_folder: Path, new_folder: Path) -> Tensor:
    """The token embedding with rows for the pieces of an extended vocabulary, each the mean of its old pieces."""
    old = read_tokenizer(old_folder / "tokenizer.json")
    new = read_tokenizer(new_folder / "tokenizer.json")
    extended = table.new_zeros(num_rows, table.shape[1])
    extended[: len(table)] = table
    for index in range(len(table), min(new.get_vocab_size(), num_rows)):
        parts = [token.id for token in old.model.tokenize(new.id_to_token(index))]
        extended[index] = table[parts].float().mean(0)
    return extended


def _copied(weights: Mapping[str, Tensor], shapes: Shapes, new: str, old: str) -> dict[str, Tensor]:
    """Weights of a modality under the names of a new one; of adapters only if their classes are related."""
    copied = {}
    for name in shapes:
        is_adapter = name.startswith("adapters.")
        if f".{new}." not in name or (is_adapter and not is_read_like(new, old)):
            continue
        original = name.replace(f".{new}.", f".{old}.")
        if original in weights:
            copied[name] = _in_one_channel(weights[original], shapes[name])
    return copied


def _in_one_channel(weight: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A convolution of colours, if one channel is asked for, with the same output for a grey picture; others as they
    are."""
    if weight.ndim == 4 and weight.shape[1] == 3 and shape[1] == 1:
        return weight.sum(1, keepdim=True)
    return weight


def _fitted(weights: Mapping[str, Tensor], shapes: Shapes, config: Config) -> dict[str, Tensor]:
    """The weights, with a shared bias table copied for each block and resampled for another picture size, as the
    released code does when fine-tuning starts."""
    fitted = dict(weights)
    resize = architecture(config.architecture).resize
    for name, shape in shapes.items():
        if ".bias_tables." not in name:
            continue
        shared = re.sub(r"(\.bias_tables)\.\d+$", r"\1.0", name)
        if name not in fitted and shared in weights:
            fitted[name] = weights[shared].clone()
        if resize is not None and name in fitted and fitted[name].shape != shape:
            fitted[name] = resize(fitted[name], shape)
    return fitted


def _check_shapes(weights: Mapping[str, Tensor], shapes: Shapes, folder: Path) -> None:
    wrong = [name for name, tensor in weights.items() if shapes[name] != tensor.shape]
    if wrong:
        first = wrong[0]
        raise UserError(
            f"{len(wrong)} weights do not have the shape the recipe asks for ({first}: "
            f"{tuple(weights[first].shape)} there, {shapes[first]} here)",
            where=folder,
        )
