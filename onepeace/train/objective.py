"""Objective: named, weighted loss terms (terms/) over the passes of a step (passes.py)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

from onepeace.data.batch import Batch
from onepeace.model import Trained
from onepeace.train.passes import Passes
from onepeace.train.term import Logged, Term, TermOptions
from onepeace.train.terms.known import TERMS


class Objective(nn.Module):
    """Named losses of a batch.

    A batch larger than memory is computed part by part, and again in the backward pass, with the same loss (gradient
    caching, as in GradCache, arXiv 2101.06983, by ``torch.utils.checkpoint``).

    Args:
        model: the model to train.
        terms: options of the terms, from a recipe.
        prepared: results of ``prepare``, by name of the term.
        grad_cache_chunks: number of parts of a batch; the activations of one part are in memory at a time.
        max_padding: share of padding above which a pass is split into groups of similar length.
        sharded: whether the blocks' parameters are sharded over processes.
    """

    def __init__(
        self,
        model: Trained,
        terms: Sequence[TermOptions],
        prepared: Mapping[str, Any] | None = None,
        grad_cache_chunks: int = 1,
        max_padding: float = 0.1,
        sharded: bool = False,
    ):
        super().__init__()
        self.model = model
        self.grad_cache_chunks, self.max_padding, self.sharded = grad_cache_chunks, max_padding, sharded
        self.terms = nn.ModuleDict()
        for options in terms:
            self.terms[options.name] = TERMS[options.term](options, model, (prepared or {}).get(options.name))

    def at_step(self, step: int) -> None:
        """Set the number of the current step, counted from 1, in all terms."""
        for term in self.terms.values():
            term.step = step  # type: ignore[assignment]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Unweighted losses of the batch and figures of the terms by name, the weighted sum as "loss", and the share of
        padding among the tokens as "padding".

        With several processes, each has a part of the batch; the mean of their losses is the loss of the whole batch.
        """
        present = [key for key in self.model.adapters if key in batch.inputs]
        every: dict[str, Any] = dict(self.terms.items())
        terms = {name: term for name, term in every.items() if term.options.reads(batch.source, present)}
        if self.grad_cache_chunks == 1:
            parts = [self._outputs(terms, batch)]
        else:
            pieces = batch.split(self.grad_cache_chunks, {key: self.model.adapters[key].take for key in present})
            parts = [checkpoint(self._outputs, terms, piece, use_reentrant=False) for piece in pieces]
        outputs, tokens = tree_map(lambda *same: torch.cat(same), *parts) if len(parts) > 1 else parts[0]
        found: dict[str, Tensor] = {}
        total = torch.zeros((), device=tokens.device)
        for term_name, term in terms.items():
            for name, loss in term.loss(outputs[term_name], batch, self.model).items():
                if isinstance(loss, Logged):
                    found[name] = loss.value
                else:
                    found[name] = loss
                    total = total + term.options.weight * loss
        real, computed = tokens.view(-1, 2).sum(0)
        return {"loss": total, **found, "padding": 1 - real / computed}

    def _outputs(self, terms: Mapping[str, Term[Any]], batch: Batch) -> tuple[dict[str, Any], Tensor]:
        """Outputs of the terms for a part of the batch, and the numbers of its real and computed tokens."""
        passes = Passes(self.model, batch, self.max_padding, agree=self.sharded)
        outputs = {name: term.outputs(passes) for name, term in terms.items()}
        device = next(iter(next(iter(batch.inputs.values())).values())).device
        return outputs, torch.tensor([passes.real_tokens, passes.all_tokens], device=device)
