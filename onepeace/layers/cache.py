"""Cache for small tensors that depend only on sizes."""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode


def cached(maxsize: int) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """``lru_cache`` for a function that returns a tensor.

    Nothing is cached while a graph is traced, as sizes are then symbolic, nor in a dispatch mode, as its tensors may
    have no values. Cached tensors also work in training.
    """

    def decorate(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        kept = lru_cache(maxsize)(torch.inference_mode(False)(function))

        @wraps(function)
        def call(*args: Any) -> Tensor:
            if torch.compiler.is_compiling() or is_in_torch_dispatch_mode():
                return function(*args)
            return kept(*args)

        return call

    return decorate
