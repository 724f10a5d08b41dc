"""The tokenizer and the processors of a run: what turns texts and files into the model's input."""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from onepeace.config import Config
from onepeace.data.sample import Sample
from onepeace.errors import UserError
from onepeace.files.atomic import write_atomic
from onepeace.processors import TextProcessor, tokenizer
from onepeace.processors.processor import Processor
from onepeace.processors.registry import processor_class
from onepeace.train.recipe import Recipe
from onepeace.train.training_data import captions_of

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
        if options.name is not None:
            raise UserError(f"tokenizer: leave out name, the stem {text['name']} has a vocabulary of its own")
        return tokenizer.from_transformers(text["name"])
    start_folder = recipe.start_folder
    if start_folder is not None and (start_folder / "tokenizer.json").exists():
        return tokenizer.read_tokenizer(start_folder / "tokenizer.json")
    if options.name == "clip":
        return tokenizer.from_open_clip()
    captions: set[str] = set()
    for source in sources:
        captions.update(captions_of(recipe.data, islice(source, FIRST)))
    return tokenizer.train_bpe(sorted(captions), options.vocab_size)


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
            f"{rows}; raise that, or lower tokenizer.vocab_size"
        )
    return processors
