"""FLOPs, kernels and memory of passes over tensors without values (torch's fake tensors), as on a GPU."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode  # the path that torch's documentation gives
from torch.autograd.graph import get_gradient_edge
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode  # the path of "Extending PyTorch"
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from onepeace.data.batch import Batch
from onepeace.train.objective import Objective


def tensors_in(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class Meter(TorchDispatchMode):
    """Counts FLOPs, kernels, and the bytes of the tensors that are made and not yet freed.

    Args:
        shards: number of processes that share the gradients.
    """

    def __init__(self, shards: int) -> None:
        super().__init__()
        self.shards = shards
        self.flops = 0
        """FLOPs of products and convolutions, by torch's formulas."""
        self.kernels = 0
        """Operations that compute, each of which the host launches."""
        self.peak = 0
        """Highest sum of bytes."""
        self._bytes = 0
        self._reduced: set[Tensor] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name() == "aten::_local_scalar_dense" and args[0].dtype == torch.bool:
            return False  # transformers asks whether no token of a batch is padding
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        flops_of = flop_registry.get(func.overloadpacket)
        if flops_of is not None:
            self.flops += flops_of(*args, **kwargs, out_val=result)
        given = {tensor.untyped_storage() for tensor in tensors_in((args, kwargs))}
        made = {tensor.untyped_storage() for tensor in tensors_in(result)} - given
        self.kernels += func._schema.is_mutable or bool(made and "empty" not in func.name())
        for storage in made:
            self._count(storage.nbytes())
            weakref.finalize(storage, self._count, -storage.nbytes())
        return result

    def _count(self, size: int) -> None:
        self._bytes += size
        self.peak = max(self.peak, self._bytes)

    def keep_gradient(self, parameter: Tensor) -> None:
        """Count what stays of a complete gradient, in float32: all of it, or a shard."""
        parameter.grad = None
        if parameter not in self._reduced:
            self._reduced.add(parameter)
            self._count(4 * parameter.numel() // self.shards)

    def take_passes(self, objective: Objective, batch: Batch, bfloat16: bool) -> None:
        """Count the forward and the backward pass of a batch, within `as_on_a_gpu`."""
        with self:
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                loss = objective(batch.map(lambda tensor: torch.empty_like(tensor, device="cpu")))["loss"]
            loss.backward()


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Context of fake tensors, of which layers on the CPU save what they would on a GPU."""
    with FakeTensorMode(allow_non_fake_inputs=True), KernelsOfCuda(), sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
        yield


class KernelsOfCuda(TorchFunctionMode):
    """Mode in which two functions compute in the types of CUDA, and by its kernels."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.backward:  # within a function the mode is off, and layers that are recomputed need it
            with self:
                return torch.autograd.backward(get_gradient_edge(args[0]))
        if func is F.scaled_dot_product_attention:
            return efficient_attention(*args, **kwargs)
        if func is F.layer_norm and torch.is_autocast_enabled("cpu"):  # which casts its arguments on a GPU only
            args, kwargs = tree_map_only(Tensor, Tensor.float, (args, kwargs))
        return func(*args, **kwargs)


def efficient_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, scale: float | None = None, **_: Any
) -> Tensor:
    """The kernel that CUDA has for attention with a bias, whose rows torch pads to a multiple of 8."""
    if attn_mask is not None:
        length = attn_mask.shape[-1]
        padded = F.pad(attn_mask.to(query.dtype), (0, -length % 8))[..., :length]
        attn_mask = padded.expand(*query.shape[:3], length)
    attend = torch.ops.aten._scaled_dot_product_efficient_attention
    return attend(query, key, value, attn_mask, torch.is_grad_enabled(), scale=scale)[0]
