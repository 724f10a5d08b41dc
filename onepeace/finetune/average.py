"""Average of the trained and the initial weights (WiSE-FT, arXiv 2109.01903), so that the model forgets less.

    weight = start + share x (new - start)

Shares are compared on items that are in neither the training nor the held-out part. Weights that the initial model
lacks, such as those of a new head, are kept as trained.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from onepeace.device import choose_device
from onepeace.embed.embedder import load
from onepeace.files.atomic import write_text_atomic
from onepeace.finetune.answers import answers, score
from onepeace.finetune.split import CHOOSE, SplitSummary
from onepeace.hub import weights
from onepeace.hub.folder import CARD, TASKS, TOKENIZER, read_config
from onepeace.hub.tensors import expected
from onepeace.train.initial_weights import start_weights
from onepeace.train.recipe import Recipe

AVERAGE = "average.json"
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
DEFAULT_SHARE = 0.5
"""Share used if there are too few items to choose one by (recommended in the paper)."""


@dataclass(frozen=True)
class Average:
    """The chosen share of the new weights, and the scores of all shares."""

    share: float
    items: int = 0
    """Number of items that the share was chosen on; 0 = not chosen, but `DEFAULT_SHARE`, or 1 with a new head."""
    scores: dict[str, float] = field(default_factory=dict)
    """Score by share: the mean of the mean reciprocal ranks of all directions and sets."""

    def described(self) -> str:
        """The choice, in words."""
        mix = f"{self.share:.0%} of the new weights and {1 - self.share:.0%} of the initial ones"
        if not self.items:
            return f"averaged: {mix}; too few items to choose the shares by"
        scores = ", ".join(f"{float(share):.0%} {score:.3f}" for share, score in self.scores.items())
        by = f"{self.items} files set apart (mean reciprocal rank by share of the new weights: {scores})"
        if not self.share:
            return f"kept as they were, as no share of the new ones did better on {by}"
        return f"averaged: {mix}, chosen on {by}"


def read_average(folder: Path) -> Average:
    """Read average.json."""
    return Average(**json.loads((folder / AVERAGE).read_text(encoding="utf-8")))


def choose(
    module: nn.Module,
    start: Mapping[str, Tensor],
    new: Mapping[str, Tensor],
    score: Callable[[], float],
    items: int,
) -> Average:
    """Try all shares; ties go to the smallest.

    Args:
        module: is set to the weights of each share in turn.
        start, new: weights by name; `new` has all weights of the module.
        score: returns the score of the module's current weights; higher is better.
        items: number of items that the score is computed on.
    """
    scores = {}
    for share in SHARES:
        with torch.no_grad():
            for name, tensor in module.state_dict().items():
                tensor.copy_(mixed(start.get(name), new[name], share))
        scores[share] = score()
    best = max(SHARES, key=lambda share: (scores[share], -share))
    return Average(
        share=best,
        items=items,
        scores={str(share): value for share, value in scores.items()},
    )


def mixed(
    start: Tensor | None,
    new: Tensor,
    share: float,
) -> Tensor:
    """A weight at a share, in float32; the new one if the initial model lacks it, or if it is an integer counter."""
    if start is None or not new.is_floating_point():
        return new
    return torch.lerp(start.float(), new.float(), share)


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
        tokenizer=tuned / TOKENIZER if (tuned / TOKENIZER).exists() else None,
        tasks=tuned / TASKS if (tuned / TASKS).exists() else None,
        card=f"{card}\nWeights {average.described()}.\n",
    )
    write_text_atomic(tuned.parent / AVERAGE, json.dumps(asdict(average), indent=1) + "\n")
    shutil.rmtree(tuned)
