"""The vocabulary and the processors of a run."""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from onepeace.config import Config
from onepeace.data.sample import Sample
from onepeace.errors import UserError
from onepeace.files.atomic import write_atomic
from onepeace.processors import PROCESSORS, TextProcessor
from onepeace.processors.processor import Processor
from onepeace.train import checkpoint
from onepeace.train.folder import model_folder
from onepeace.train.recipe import Recipe
from onepeace.train.training_data import captions_of

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
