"""Activation checkpointing of whole blocks and of cheap operations."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import checkpoint as torch_checkpoint


class Recomputed(nn.Module):
    """Base class of blocks with activation checkpointing; a subclass implements ``compute``, its forward pass.

    It is switched on by ``set_grad_checkpointing`` (as in timm and open_clip), by transformers' own method, and by
    ``run.checkpoint_activations`` of a recipe (`onepeace.model.interface.Trained`).
    """

    gradient_checkpointing = False
    """Whether the backward pass recomputes everything from the input (transformers' name)."""

    def compute(self, *args: Any) -> Tensor:
        raise NotImplementedError

    def forward(self, *args: Any) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return torch_checkpoint.checkpoint(self.compute, *args, use_reentrant=False)
        return self.compute(*args)


def checkpoint(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Compute ``function(*inputs)``; training stores only the inputs and recomputes the rest in the backward pass.

    For cheap operations that end in one matrix product: the product is not repeated, because its backward pass needs
    only its input, where recomputation stops (torch's early stop). This saves a quarter of a step's activations (base
    size). The random state is restored, so that dropout inside (LoRA adds one) draws the same mask; that costs 10 us.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():  # the compiler decides what to recompute
        return function(*inputs)
    return torch_checkpoint.checkpoint(function, *inputs, use_reentrant=False, determinism_check="none")
