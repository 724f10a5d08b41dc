"""Bytes alive and FLOPs of what runs: of real code, on fake tensors too, which have a shape and dtype but no values.

Nothing of torch is replaced: its own modes see every operation. FLOPs are counted by the functions of its
FlopCounterMode, but not in it: that follows modules, and fails where they run both with and without gradient.
"""

import weakref
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from onepeace.config import Config
from onepeace.data.batch import Batch
from onepeace.hub.architectures import build_encoder

aten = torch.ops.aten


class Cost(NamedTuple):
    """Cost of a pass or of a training step."""

    flops: int
    """FLOPs of matrix products and convolutions, a multiplication and an addition counting as two."""
    peak_bytes: int
    """Alive at the peak beside weights, gradients and inputs. Kernels need work space that is not seen here."""
    tokens: int = 0
    """Tokens of an item in the blocks, CLS included."""


def pass_cost(config: Config, key: str, batch: Mapping[str, Tensor]) -> Cost:
    """Cost of the unit vectors (of a model without projections: the features) of a batch of modality `key` in float32;
    only the sizes of its numbers matter, not their values."""
    with torch.device("meta"):
        model = build_encoder(config).eval()
    inputs = fake_inputs(batch, without_values(model))
    with torch.no_grad(), Live([*model.parameters(), inputs]) as live:
        features = model.encode(model.stems({key: inputs}))[key]
        if key in model.config.projections:
            model.embed(key, features)
    return Cost(live.flops, live.peak, features.tokens.shape[1])


def step_cost(objective: nn.Module, batch: Batch, bfloat16: bool) -> Cost:
    """One step, forward and backward, of an objective on the meta device."""
    fakes = without_values(objective)
    with fakes:
        for parameter in objective.parameters():
            parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
    gradients = [parameter.grad for parameter in objective.parameters()]
    batch = replace(batch, inputs={key: fake_inputs(inputs, fakes) for key, inputs in batch.inputs.items()})
    # Attention in the fused kernel, whatever its length.
    with Live([*objective.parameters(), gradients, batch.inputs]) as live, sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = objective(batch)["loss"]
        loss.backward()
    return Cost(live.flops, live.peak)


def without_values(module: nn.Module) -> FakeTensorMode:
    """Give a module from the meta device fake parameters that pass for the CPU's, so that autocast knows them."""
    fakes = FakeTensorMode(allow_non_fake_inputs=True)
    with fakes:
        module.to_empty(device="cpu")
    return fakes


def fake_inputs(batch: Mapping[str, Tensor], fakes: FakeTensorMode) -> dict[str, Tensor]:
    """A modality's input with fake numbers. Ids, lengths and masks stay real: code may look at their values."""
    return {name: fakes.from_tensor(t) if t.is_floating_point() else t for name, t in batch.items()}


class Live(TorchDispatchMode):
    """Follows the storages that operations make until they are freed, and counts FLOPs.

    ``peak`` is the most bytes alive at once; work space inside a kernel is not seen. Of fake tensors, whether a number
    is true ("is something padded?") is answered "no".

    Args:
        known: tensors that do not count, such as weights and inputs. Nor do their views.
    """

    def __init__(self, known: Iterable[Any]) -> None:
        super().__init__()
        self.peak = self.flops = self._now = 0
        tensors = (leaf for leaf in tree_leaves(list(known)) if isinstance(leaf, Tensor))
        self._seen = weakref.WeakSet(tensor.untyped_storage() for tensor in tensors)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:
            return args[0].fake_device
        if func in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
            args = (args[0], _positions(args[1]), *args[2:])
        if func is aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return False
        result = func(*args, **kwargs)
        if (count := FLOPS.get(func._overloadpacket)) is not None:
            self.flops += count(*args, **kwargs, out_val=result)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self._seen:
                self._seen.add(storage)
                self._now += storage.nbytes()
                weakref.finalize(storage, self._forget, storage.nbytes())
        self.peak = max(self.peak, self._now)
        return result

    def _forget(self, size: int) -> None:
        self._now -= size


def _positions(index: Iterable[Tensor | None]) -> list[Tensor | None]:
    """Masks as positions: how many are True could not be told of a fake."""
    found: list[Tensor | None] = []
    for one in index:
        mask = one is not None and one.dtype == torch.bool and not isinstance(one, FakeTensor)
        found += one.nonzero().unbind(1) if mask and one is not None else [one]
    return found


def _attention(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> int:
    """Two products of all queries with all keys, (B, H, L, head_dim)."""
    return 4 * q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] * q.shape[3]


def _attention_backward(grad: Tensor, *inputs: Any, **_: Any) -> int:
    """Four products; the scores, which the kernel computes again, are not counted."""
    return 2 * _attention(*inputs)


FLOPS = {
    **flop_registry,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""Counts of FLOPs by operation."""
