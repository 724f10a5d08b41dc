"""Live bytes and FLOPs of running code, also on tensors that have a shape and dtype but no values.

FLOPs are counted by the formulas of FlopCounterMode but not by that mode, which tracks modules and fails if they run
both with and without gradient. Tensors without values are not torch's FakeTensor, which takes 1.7 times as long.
"""

import weakref
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only
from torch.utils.flop_counter import flop_registry

from onepeace.data.batch import Batch
from onepeace.layers.attention import SelfAttention

aten = torch.ops.aten


class Cost(NamedTuple):
    """Cost of a training step."""

    flops: float
    """FLOPs of matrix products and convolutions, a multiplication and an addition counting as two."""
    peak_bytes: float
    """Peak memory in addition to weights, gradients and inputs, without the work space of kernels."""


def step_cost(objective: nn.Module, batch: Batch, bfloat16: bool) -> Cost:
    """Cost of one step, forward and backward, of an objective on the meta device, which cannot be used afterwards."""
    keep_as_on_a_gpu(objective)
    objective._apply(ShapeTensor.of)
    for parameter in objective.parameters():
        parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
    # Ids, lengths and masks stay real: code may depend on their values.
    inputs = {
        key: {name: ShapeTensor.of(t) if t.is_floating_point() else t for name, t in own.items()}
        for key, own in batch.inputs.items()
    }
    gradients = [parameter.grad for parameter in objective.parameters()]
    # Use the fused attention kernel for every length, if there is one.
    kernels = sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])
    with Live([*objective.parameters(), gradients, inputs]) as live, kernels:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = objective(replace(batch, inputs=inputs))["loss"]
        loss.backward()
    return Cost(live.flops, live.peak)


def keep_as_on_a_gpu(model: nn.Module) -> None:
    """Make layers save the same tensors on this CPU as on a GPU; otherwise up to a quarter of the memory is missing."""
    for name, parameter in model.named_parameters():
        # On a GPU, attention never saves its scores; on a CPU it does if its bias is trained.
        parameter.requires_grad_(parameter.requires_grad and ".bias_tables." not in name)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):  # runs in float32 under autocast
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
        elif isinstance(module, SelfAttention):
            # The kernel needs row lengths that are multiples of 8; torch pads others, with a copy for each block.
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0], _padded(inputs[1])))


def _padded(bias: Tensor | None) -> Tensor | None:
    if bias is None or bias.shape[-1] % 8 == 0:
        return bias
    bias = bias.to(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else bias
    return F.pad(bias, (0, -bias.shape[-1] % 8))[..., : bias.shape[-1]]


class ShapeTensor(Tensor):
    """Tensor without values, on the CPU, for which autocast works; operations run on a meta tensor of the same shape.

    Tensors with values are accepted beside it. Conditions on its values ("is anything padded?") are False.
    """

    meta: Tensor

    @staticmethod
    def of(tensor: Tensor) -> "ShapeTensor":
        """The shape and dtype of a tensor."""
        meta = tensor.detach().to("meta")
        made = Tensor._make_wrapper_subclass(
            ShapeTensor, meta.shape, meta.stride(), meta.storage_offset(), dtype=meta.dtype, device=torch.device("cpu")
        )
        made.meta = meta
        return made

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.meta.untyped_storage()

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is aten._local_scalar_dense.default:
            return False
        if func in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
            args = (args[0], _positions(args[1]), *args[2:])
        own: dict[int, ShapeTensor] = {}

        def as_meta(value: Any) -> Any:
            if isinstance(value, ShapeTensor):
                own[id(value.meta)] = value
                return value.meta
            if isinstance(value, Tensor):
                return value.to("meta")
            return torch.device("meta") if isinstance(value, torch.device) else value

        result = func(*tree_map(as_meta, args), **tree_map(as_meta, kwargs or {}))
        # The result of an operation in place is its argument.
        return tree_map_only(Tensor, lambda t: own[id(t)] if id(t) in own else cls.of(t), result)


def _positions(index: Iterable[Tensor | None]) -> list[Tensor | None]:
    """Convert boolean masks to indices, as the number of True entries would be unknown."""
    found: list[Tensor | None] = []
    for one in index:
        mask = one is not None and one.dtype == torch.bool and not isinstance(one, ShapeTensor)
        found += one.nonzero().unbind(1) if mask and one is not None else [one]
    return found


class Live(TorchDispatchMode):
    """Tracks storages until they are freed, and counts FLOPs.

    ``peak`` is the maximum of live bytes, without the work space of kernels.

    Args:
        known: tensors that are not counted, such as weights and inputs; nor are their views.
    """

    def __init__(self, known: Iterable[Any] = ()) -> None:
        super().__init__()
        self.peak = self.flops = self._now = 0
        tensors = (leaf for leaf in tree_leaves(list(known)) if isinstance(leaf, Tensor))
        self._seen = weakref.WeakSet(tensor.untyped_storage() for tensor in tensors)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # True imports torch's compiler, for seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if (count := FLOPS.get(func._overloadpacket)) is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=result)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self._seen:
                self._seen.add(storage)
                self._now += storage.nbytes()
                weakref.finalize(storage, self._forget, storage.nbytes())
        self.peak = max(self.peak, self._now)
        return result

    def _forget(self, size: int) -> None:
        self._now -= size


def _attention(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> int:
    """FLOPs of two products of all queries with all keys, (B, H, L, head_dim)."""
    return 4 * q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] * q.shape[3]


FLOPS = {
    **flop_registry,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    # Four products; the kernel's recomputation of the scores is not counted.
    aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda _, *inputs, **__: 2 * _attention(*inputs),
}
"""Counts of FLOPs by operation."""
