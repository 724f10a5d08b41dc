"""A training step on a GPU that does not exist: torch's tensors without values, which know their device.

The device is torch's dispatch key for backends of others, PrivateUse1, for which nothing has to be compiled. Operations
on tensors of two devices fail, and so does whatever needs a value: `.item()`, `bool()`, `nonzero()`, an index of flags.
Copies that would wait for the device fail by `NoWaiting`.
"""

import copy

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

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
    move_to_fake_gpu(objective, mode)
    with mode, NoWaiting():
        weights = dict(objective.model.named_parameters())
        average = {name: weights[name].detach().clone() for name in stepper.average}
        optimizer = build_optimizer(recipe, objective)
        fake = Stepper(recipe, objective, optimizer, average, fake_gpu(), bfloat16=False)
        result = fake(1, batches, learning_rate=0.1)
        UnusableSteps(recipe).add(1, batches, result)
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
