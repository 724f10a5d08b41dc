"""Activation checkpointing, of whole blocks and of cheap operations."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import checkpoint as torch_checkpoint


class Recomputed(nn.Module):
    """A block that can keep only its input for the backward pass; a subclass gives ``compute``, which is its forward.

    One switch for all who turn it: ``set_grad_checkpointing`` of timm and open_clip, transformers' method, and
    ``run.checkpoint_activations`` of a recipe (`onepeace.model.interface.Trained`).
    """

    gradient_checkpointing = False
    """Whether everything but the input is computed again in the backward pass (transformers' name)."""

    def compute(self, *args: Any) -> Tensor:
        raise NotImplementedError

    def forward(self, *args: Any) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return torch_checkpoint.checkpoint(self.compute, *args, use_reentrant=False)
        return self.compute(*args)


def checkpoint(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """``function(*inputs)``, of which training keeps the inputs only and computes the rest again in the backward pass.

    For cheap operations that end in one matrix product: the product is not repeated, because all it needs is its input
    and recomputation stops there (torch's early stop). It saves a quarter of a step's activations (base size). The
    random state is restored for it, so dropout inside (LoRA adds one) draws the same mask twice; that costs 10 us.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():  # a compiler decides what it recomputes
        return function(*inputs)
    return torch_checkpoint.checkpoint(function, *inputs, use_reentrant=False, determinism_check="none")
