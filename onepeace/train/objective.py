"""Objective: named, weighted loss terms (terms/) over the passes of a step (passes.py).

A batch that is larger than memory is computed in parts (``run.grad_cache_chunks`` of a recipe). Each term runs passes
of the model over a part. A pass whose items differ much in length is split into groups of similar length.
"""

from collections import Counter
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
from onepeace.train.terms import TERMS


class Objective(nn.Module):
    """Named losses of a batch.

    The loss of a batch in parts is that of the whole batch: the terms keep only their outputs of each part, the loss is
    computed from those of all parts, and each part is computed once more in the backward pass (gradient caching, as in
    GradCache, arXiv 2101.06983, by ``torch.utils.checkpoint``).

    Args:
        model: the model to train.
        terms: options of the terms, from a recipe.
        prepared: results of ``prepare``, by name of the term.
        max_padding: share of padding above which a pass is split into groups of similar length.
        sharded: whether the blocks' parameters are sharded over processes.
    """

    def __init__(
        self,
        model: Trained,
        terms: Sequence[TermOptions],
        prepared: Mapping[str, Any] | None = None,
        max_padding: float = 0.1,
        sharded: bool = False,
    ):
        super().__init__()
        self.model = model
        self.max_padding = max_padding
        self.sharded = sharded
        self.terms = nn.ModuleDict()
        for options in terms:
            term_class = TERMS[options.term]
            prepared_of_term = (prepared or {}).get(options.name)
            self.terms[options.name] = term_class(options, model, prepared_of_term)

    def at_step(self, step: int) -> None:
        """Set the number of the current step, counted from 1, in all terms."""
        for term in self.terms.values():
            term.step = step  # type: ignore[assignment]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Unweighted losses of the batch and figures of the terms by name, and the weighted sum as "loss".

        "padding" is the share of padding among the tokens, on the CPU. With several processes, each has a part of the
        batch; the mean of their losses is the loss of the whole batch.
        """
        batch = batch.measured(self.model.adapters)  # the passes need the number of tokens of each item
        terms = self._terms_of(batch)
        outputs, counts = self._outputs_of_parts(terms, batch)
        losses: dict[str, Tensor] = {}
        weighted: list[Tensor] = []
        for term_name, term in terms.items():
            term_losses = self.loss_of(term, outputs[term_name], batch)
            for name, loss in term_losses.items():
                if isinstance(loss, Logged):
                    losses[name] = loss.value
                else:
                    losses[name] = loss
                    weighted.append(term.options.weight * loss)
        total = sum(weighted[1:], weighted[0])
        padding = 1 - counts["real"] / counts["computed"]
        return {"loss": total, **losses, "padding": torch.tensor(padding)}

    def loss_of(self, term: Term[Any], outputs: Any, batch: Batch) -> Mapping[str, Tensor | Logged]:
        """Losses of a term by name; a plan, whose batches have no targets, replaces those of heads."""
        return term.loss(outputs, batch, self.model)

    def _terms_of(self, batch: Batch) -> dict[str, Term[Any]]:
        """The terms that learn from a batch, by name."""
        present = [key for key in self.model.adapters if key in batch.inputs]
        terms: dict[str, Any] = dict(self.terms.items())  # a ModuleDict does not know that its modules are terms
        return {name: term for name, term in terms.items() if term.options.reads(batch.source, present)}

    def _outputs_of_parts(self, terms: Mapping[str, Term[Any]], batch: Batch) -> tuple[dict[str, Any], Counter[str]]:
        """Outputs of the terms for the whole batch, and the number of its tokens; see `_outputs`."""
        if not batch.parts:
            return self._outputs(terms, batch)
        outputs = []
        counts: Counter[str] = Counter()
        for part in batch.parts:
            part_outputs, part_counts = checkpoint(self._outputs, terms, part, use_reentrant=False)
            outputs.append(part_outputs)
            counts += part_counts
        return _joined(outputs), counts

    def _outputs(self, terms: Mapping[str, Term[Any]], batch: Batch) -> tuple[dict[str, Any], Counter[str]]:
        """Outputs of the terms for a part of the batch, and the tokens that the blocks computed: "real" ones, and all
        that were "computed", with padding."""
        passes = Passes(self.model, batch, self.max_padding, self.sharded)
        outputs = {name: term.outputs(passes) for name, term in terms.items()}
        return outputs, Counter(real=passes.real_tokens, computed=passes.all_tokens)


def _joined(outputs: Sequence[Any]) -> Any:
    """Outputs of several parts as those of one batch; items or tokens are their first axis (`Term.outputs`)."""
    return tree_map(lambda *tensors_of_parts: torch.cat(tensors_of_parts), *outputs)
