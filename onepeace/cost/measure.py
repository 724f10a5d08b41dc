"""Bytes alive and FLOPs of what runs: of real code, on fake tensors too, which have a shape and dtype but no values.

Nothing of torch is replaced: its own modes see every operation. FLOPs are counted by the functions of its
FlopCounterMode, but not in it: that follows modules, and fails where they run both with and without gradient.
"""

import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from onepeace.config import Config
from onepeace.data.batch import Batch
from onepeace.errors import expect
from onepeace.generative.model import Writer
from onepeace.hub.architectures import build_encoder, build_module
from onepeace.layers.attention import SelfAttention

aten = torch.ops.aten


class Cost(NamedTuple):
    """Cost of one pass over a batch, as far as its unit vectors (of a model without projections: its features)."""

    tokens: int
    """Tokens of an item in the blocks, CLS included."""
    flops: int
    """FLOPs of matrix products and convolutions, a multiplication and an addition counting as two."""
    peak_bytes: int
    """Bytes alive at the peak in float32, weights not counted. Kernels need work space that is not seen here."""


class Run(NamedTuple):
    """Cost of a training step."""

    flops: int
    peak: int
    """Bytes alive at once beside weights, gradients and inputs."""


def pass_cost(config: Config, key: str, batch: Mapping[str, Tensor]) -> Cost:
    """Cost of encoding `batch` of modality `key`; only the sizes of its numbers matter, not their values."""
    with torch.device("meta"):
        model = build_encoder(config).eval()
    inputs = fake_inputs(batch, without_values(model))
    with torch.no_grad(), DryRun([*model.parameters(), inputs]) as run:
        features = model.encode(model.stems({key: inputs}))[key]
        if key in model.config.projections:
            model.embed(key, features)
    return Cost(features.tokens.shape[1], run.flops, run.peak)


def reading_cost(config: Config, inputs: Mapping[str, Tensor]) -> Cost:
    """Cost of what a generative model's encoder does, before anything is written; `inputs` as its `encode` takes it."""
    with torch.device("meta"):
        model = expect(build_module(config), Writer).eval()
    fakes = fake_inputs(inputs, without_values(model))
    with torch.no_grad(), DryRun([*model.parameters(), fakes]) as run:
        encoded = model.encode(**fakes)
    return Cost(encoded.tokens.shape[1], run.flops, run.peak)


def step_cost(objective: nn.Module, batch: Batch, bfloat16: bool, on_gpu: bool = False) -> Run:
    """One step, forward and backward, of an objective on the meta device.

    Args:
        on_gpu: with the kernels of a GPU; else with those of this CPU.
    """
    fakes = without_values(objective)
    with fakes:
        for parameter in objective.parameters():
            parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
    gradients = [parameter.grad for parameter in objective.parameters()]
    batch = replace(batch, inputs={key: fake_inputs(inputs, fakes) for key, inputs in batch.inputs.items()})
    if on_gpu:
        _recompute_as_on_a_gpu(objective)
    with DryRun([*objective.parameters(), gradients, batch.inputs]) as run, gpu_kernels(on_gpu):
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = objective(batch)["loss"]
        torch.autograd.backward(loss)  # Tensor.backward would leave the modes of functions
    return Run(run.flops, run.peak)


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
    """Follows the storages that operations make until they are freed; `peak` is the most bytes alive at once.

    Work space inside a kernel is not seen.

    Args:
        known: tensors that do not count, such as weights and inputs. Nor do their views.
    """

    def __init__(self, known: Iterable[Any]) -> None:
        super().__init__()
        self.peak = self._now = 0
        tensors = (leaf for leaf in tree_leaves(list(known)) if isinstance(leaf, Tensor))
        self._seen = weakref.WeakSet(tensor.untyped_storage() for tensor in tensors)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = self.call(func, args, kwargs or {})
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self._seen:
                self._seen.add(storage)
                self._now += storage.nbytes()
                weakref.finalize(storage, self._forget, storage.nbytes())
        self.peak = max(self.peak, self._now)
        return result

    def call(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """One operation."""
        return func(*args, **kwargs)

    def _forget(self, size: int) -> None:
        self._now -= size


class DryRun(Live):
    """The same where tensors are fake. Whether a fake number is true ("is something padded?") is answered "no"."""

    def __init__(self, known: Iterable[Any]) -> None:
        super().__init__(known)
        self.flops = 0

    def call(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if func is torch.ops.prim.device.default:
            return args[0].fake_device
        if func in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
            args = (args[0], _positions(args[1]), *args[2:])
        if func is aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return False
        result = func(*args, **kwargs)
        if (count := FLOPS.get(func._overloadpacket)) is not None:
            self.flops += count(*args, **kwargs, out_val=result)
        return result


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
    aten._scaled_dot_product_efficient_attention_backward: _attention_backward,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""Counts of FLOPs by operation."""


@contextmanager
def gpu_kernels(wanted: bool = True) -> Iterator[None]:
    """Within it attention is torch's memory-efficient kernel and autocast takes norms to float32, as on a GPU.

    Fake tensors of a GPU would do so by themselves, but autograd refuses them where torch was built without CUDA.
    """
    if not wanted:
        yield
        return
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION), _GpuForms():
        yield


def _recompute_as_on_a_gpu(objective: nn.Module) -> None:
    """Make attention enter the mode by itself: recomputation in the backward pass runs outside of the outer one."""
    entered: list[_GpuForms] = []

    def enter(*_: Any) -> None:
        entered.append(_GpuForms())
        entered[-1].__enter__()

    def leave(*_: Any) -> None:
        entered.pop().__exit__(None, None, None)

    for module in objective.modules():
        if isinstance(module, SelfAttention):
            module.register_forward_pre_hook(enter)
            module.register_forward_hook(leave, always_call=True)  # recomputation stops in the middle


class _GpuForms(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return _fused_attention(*args, **(kwargs or {}))
        if func is F.layer_norm and torch.is_autocast_enabled("cpu"):
            args = (args[0].float(), *args[1:])
        return func(*args, **(kwargs or {}))


def _fused_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if attn_mask is not None:
        # The kernel reads rows of a multiple of 8; torch pads others, a copy for each block.
        length = attn_mask.shape[-1]
        padded = F.pad(attn_mask, (0, -length % 8))[..., :length] if length % 8 else attn_mask
        attn_mask = padded.expand(*q.shape[:3], length)
    efficient = aten._scaled_dot_product_efficient_attention
    return efficient(q, k, v, attn_mask, True, dropout_p, is_causal, scale=scale)[0]
