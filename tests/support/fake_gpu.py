"""A training step on a GPU that does not exist: torch's tensors without values, which know their device and type.

The device is torch's dispatch key for backends of others, PrivateUse1, for which nothing has to be compiled. Operations
on tensors of two devices or types fail, and so does whatever needs a value: `.item()`, `bool()`, `nonzero()`, an index
of flags. Copies that would wait for the device fail by `NoWaiting`. The step is in bfloat16, by the autocast of CUDA.
"""

import copy
import re
from functools import cache
from pathlib import Path
from unittest.mock import patch

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.checkpoint import DefaultDeviceType

from onepeace.generative.asking import Asking
from onepeace.train.logging import Averages
from onepeace.train.setup import build_optimizer
from onepeace.train.step import Stepper, UnusableSteps

NAME = "fakegpu"
COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}

INDEXING = {torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_}


class StepChecked(Exception):
    """Ends a run after the check of its first step."""


class Backend(backend_registration._DummyBackendModule):
    """Module of the device, which other code does not find: it has no device to offer."""

    def is_available(self):
        return False

    def device_count(self):
        return 0

    def get_amp_supported_dtype(self):
        return [torch.bfloat16]


class Hook(backend_registration._DummyPrivateUse1Hook):
    def is_available(self):
        return False

    def has_primary_context(self, device_index):
        return False


def fake_gpu():
    """The device."""
    if not hasattr(torch, NAME):
        backend_registration._setup_privateuseone_for_python_backend(NAME, Backend(), Hook())
    return torch.device(NAME, 0)


HEADER = Path(torch.__file__).parent / "include/ATen/autocast_mode.h"
HALF_OR_FLOAT = {torch.bfloat16, torch.float32}
AUTOCAST = torch._C.DispatchKey.AutocastPrivateUse1


def operations(group):
    """Operations of CUDA's autocast in a group of its lists, from torch's own header; some exist in C++ only."""
    listed = HEADER.read_text().partition(f"#define AT_FORALL_{group}(_)")[2].partition("\n\n")[0]
    for name, overload in re.findall(r"_\((\w+)(?:, (\w+))?\)", listed):
        operation = getattr(getattr(torch.ops.aten, name), overload or "default", None)
        if operation is not None:
            yield operation


def casting(operation, choose):
    """The operation on inputs in the type that ``choose`` returns for theirs."""

    def compute(*args, **kwargs):
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        chosen = choose({tensor.dtype for tensor in tensors if tensor.is_floating_point()})

        def cast(leaf):
            is_cast = isinstance(leaf, torch.Tensor) and leaf.dtype in HALF_OR_FLOAT and leaf.device.type == NAME
            return leaf.to(chosen) if is_cast else leaf

        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(AUTOCAST)):
            args, kwargs = tree_map(cast, (args, kwargs))
            return operation(*args, **kwargs)

    return compute


def widest(dtypes):
    return torch.bfloat16 if dtypes == {torch.bfloat16} else torch.float32


CHOICES = {
    "LOWER_PRECISION_FP": lambda _: torch.bfloat16,
    "FP32": lambda _: torch.float32,
    "FP32_SET_OPT_DTYPE": lambda _: torch.float32,
    "PROMOTE": widest,
}


@cache
def autocast_as_cuda():
    """Give the device the autocast of CUDA; the registrations last as long as what is returned."""
    library = torch.library.Library("aten", "IMPL", AUTOCAST.name)
    for group, choose in CHOICES.items():
        for operation in operations(group):
            library.impl(operation.name(), casting(operation, choose))
    others = torch.library.Library("_", "IMPL", AUTOCAST.name)
    others.fallback(torch.library.fallthrough_kernel)
    return library, others


fake_gpu()  # when tests are collected: the first backward pass of the process counts the kinds of devices once for all


class NoWaiting(TorchDispatchMode):
    """Raises RuntimeError for copies that wait for a GPU: to the CPU, to the GPU unless ``non_blocking``, and those
    of an index on the CPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in COPIES:
            source = args[1] if func is torch.ops.aten.copy_.default else args[0]
            devices = source.device.type, result.device.type
            non_blocking = kwargs.get("non_blocking") or True in args[2:]
            if devices == (NAME, "cpu"):
                raise RuntimeError(f"a copy of {tuple(source.shape)} to the CPU waits for the GPU")
            if devices == ("cpu", NAME) and not non_blocking:
                raise RuntimeError(f"a copy of {tuple(source.shape)} to the GPU waits: use onepeace.device.upload")
        if func.overloadpacket in INDEXING and args[0].device.type == NAME:
            if any(index is not None and index.device.type == "cpu" for index in args[1]):
                raise RuntimeError("an index on the CPU is copied to the GPU, which waits: use onepeace.device.upload")
        return result


def move_to_fake_gpu(module, mode):
    """Replace all parameters and buffers by tensors without values."""

    def as_fake(tensor):
        return FakeTensor(mode, tensor.detach().to("meta"), fake_gpu())

    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(as_fake(parameter), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = as_fake(buffer)


def check_step(stepper, batches):
    """Take a step of a copy of the stepper's objective on the fake GPU.

    Raises:
        FakeTensorDeviceMismatchError, DataDependentOutputException, DynamicOutputShapeException, RuntimeError: a part
            of the step mixes devices, or waits.
    """
    recipe = stepper.recipe
    objective = copy.deepcopy(stepper.objective)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    autocast_as_cuda()
    move_to_fake_gpu(objective, mode)
    recomputing = patch.object(DefaultDeviceType, "_default_device_type", NAME)  # of passes without tensors as inputs
    with mode, NoWaiting(), recomputing:
        weights = dict(objective.model.named_parameters())
        average = {name: weights[name].detach().clone() for name in stepper.average}
        optimizer = build_optimizer(recipe, objective)
        fake = Stepper(recipe, objective, optimizer, average, fake_gpu(), bfloat16=True)
        result = fake(1, batches, learning_rate=0.1)
        UnusableSteps(recipe.run.out).add(1, batches, result)
        Averages().add_step(result.losses, grad_norm=result.grad_norm)


def check_first_step(monkeypatch, *, then_stop=False):
    """Make every run check its first step on the fake GPU; with ``then_stop`` it ends with `StepChecked`.

    Returns:
        The recipes whose step was checked, a list that grows.
    """
    take_step = Stepper.__call__
    ask = Asking.__call__
    checked = []

    def take_checked_step(stepper, step, batches, learning_rate):
        if step == 1 and stepper.device.type != NAME:
            check_step(stepper, batches)
            checked.append(stepper.recipe)
            if then_stop:
                raise StepChecked
        return take_step(stepper, step, batches, learning_rate)

    def ask_with_values(asking, batch, trie=None):
        """Sentences are made on the CPU, before anything of them is copied to the device."""
        with unset_fake_temporarily():
            return ask(asking, batch, trie)

    monkeypatch.setattr(Stepper, "__call__", take_checked_step)
    monkeypatch.setattr(Asking, "__call__", ask_with_values)
    return checked
