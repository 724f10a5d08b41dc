"""Recomputation in the backward pass of what the forward pass does not store (activation checkpointing)."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Recompute = Literal["none", "ffn", "blocks"]
"""What is recomputed: nothing; the cheap end of FFNs and attention; or whole blocks, from their inputs alone."""


def set_recompute(model: nn.Module, what: Recompute) -> None:
    """Choose for all blocks and layers of a model what the backward pass recomputes."""
    for module in model.modules():
        if isinstance(module, RecomputedBlock):
            module.gradient_checkpointing = what == "blocks"
        elif isinstance(module, RecomputedEnd):
            module.recomputes_end = what != "none"


class RecomputedBlock(nn.Module):
    """Base class of blocks; a subclass implements ``compute``, its forward pass."""

    gradient_checkpointing = False
    """Whether the backward pass recomputes everything from the input (transformers' name, whose methods set it)."""

    def compute(self, *args: Any) -> Tensor:
        raise NotImplementedError

    def forward(self, *args: Any) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(self.compute, *args, use_reentrant=False)
        return self.compute(*args)


class RecomputedEnd(nn.Module):
    """Base class of layers that end with cheap operations and one matrix product.

    The product is not repeated, because its backward pass needs only its input, where recomputation stops (torch's
    early stop). This saves a quarter of a step's activations (base size).
    """

    recomputes_end = True
    """Whether the backward pass recomputes the cheap operations."""

    def compute_end(self, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """``function(*inputs)``; training stores only the inputs, unless ``recomputes_end`` is off.

        The random state is restored, so that dropout inside (LoRA adds one) draws the same mask; that costs 10 us.
        """
        is_stored = not self.recomputes_end or not torch.is_grad_enabled()
        if is_stored or torch.compiler.is_compiling():  # the compiler decides what to recompute
            return function(*inputs)
        return checkpoint(function, *inputs, use_reentrant=False, determinism_check="none")
