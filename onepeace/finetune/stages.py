"""Stages of a fine-tuning that load a model: train, average the weights, and measure."""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from onepeace.device import choose_device
from onepeace.embed.embedder import load
from onepeace.errors import UserError
from onepeace.finetune.answers import answers, score, write_answers
from onepeace.finetune.average import AVERAGE, DEFAULT_SHARE, Average, choose, mixed, write_average
from onepeace.finetune.split import CHOOSE, VAL, SplitSummary
from onepeace.hub import weights
from onepeace.hub.contents import expected
from onepeace.hub.folder import CARD, CONFIG, TASKS, TOKENIZER, read_config
from onepeace.train.initial_weights import start_weights
from onepeace.train.recipe import Recipe
from onepeace.train.trainer import train

TUNED = "tuned"
"""Folder of the trained model before the averaging."""


def is_trained(folder: Path) -> bool:
    """Whether the model in the folder of a training method is trained, or further."""
    signs = (folder / AVERAGE, folder / TUNED, folder / "model" / CONFIG)
    return any(path.exists() for path in signs)


def trained_model(recipe: Recipe, say: Callable[[str], None]) -> Path:
    """Folder of the trained model before the averaging; trains it first if necessary.

    Raises:
        UserError: stopped by SIGTERM.
    """
    out = Path(recipe.run.out)
    tuned = out / TUNED
    model = out / "model"
    if tuned.exists():
        return tuned
    if not (model / CONFIG).exists():
        say(f"training {recipe.schedule.steps} steps")
        result = train(recipe)
        if not (result / CONFIG).exists():
            raise UserError("stopped; run the same command again to resume", where=out)
    os.replace(model, tuned)
    return tuned


def average_weights(
    tuned: Path,
    recipe: Recipe,
    data: Path,
    summary: SplitSummary,
    heads: Mapping[str, str],
) -> None:
    """Average the trained with the initial weights, write the model and average.json, and remove ``tuned``.

    Args:
        tuned: folder of the trained model.
        data: folder of the shards.
        heads: names of heads by modality.
    """
    config = read_config(tuned)
    start = start_weights(recipe, config, expected(config))
    new = weights.read_state(tuned)
    combinations = summary.combinations(CHOOSE)
    if combinations:
        model = load(tuned, device=str(choose_device()))

        def score_of_current() -> float:
            return score(answers(model, data, combinations, summary.labels, heads, CHOOSE))

        average = choose(model.encoder, start, new, score_of_current, summary.count(CHOOSE))
    else:
        average = Average(share=1.0 if heads else DEFAULT_SHARE)
    state = {}
    for name, tensor in new.items():
        state[name] = mixed(start.get(name), tensor, average.share)
    card = (tuned / CARD).read_text(encoding="utf-8")
    weights.save(
        tuned.parent / "model",
        state,
        config,
        tokenizer=_if_exists(tuned / TOKENIZER),
        tasks=_if_exists(tuned / TASKS),
        card=f"{card}\nWeights {average.described()}.\n",
    )
    write_average(tuned.parent, average)
    shutil.rmtree(tuned)


def _if_exists(path: Path) -> Path | None:
    return path if path.exists() else None


def measure(
    model: Path,
    data: Path,
    summary: SplitSummary,
    heads: Mapping[str, str],
    path: Path,
) -> None:
    """Write the answers of a model to the held-out part.

    Args:
        data: folder of the shards.
        heads: names of heads by modality.
        path: file of the answers.
    """
    embedder = load(model, device=str(choose_device()))
    write_answers(path, answers(embedder, data, summary.combinations(VAL), summary.labels, heads))
