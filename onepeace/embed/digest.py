"""Digest of a model that has no name: of its weights, and of the settings of its processors."""

import hashlib
import inspect
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from onepeace.processors.processor import Processor

DIGEST_BYTES = 8


def digest(module: nn.Module, processors: Mapping[str, Processor]) -> str:
    """Hash (16 hexadecimal digits) of all parameters and buffers of a model, and of its processors.

    A processor counts with its class and the attributes named like the arguments of its class; an argument that is
    neither a number, a text, a tensor nor a collection of these, such as a tokenizer, counts with its class alone.
    """
    state = hashlib.blake2b(digest_size=DIGEST_BYTES)
    tensors: dict[str, Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name in sorted(tensors):
        state.update(f"{name} ".encode())
        _update(state, tensors[name])
    for modality in sorted(processors):
        settings = _settings(processors[modality])
        state.update(f"{modality} {json.dumps(settings, sort_keys=True)}".encode())
    return state.hexdigest()


def _update(state: Any, tensor: Tensor) -> None:
    state.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
    content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    state.update(content.numpy())


def _settings(processor: Processor) -> dict[str, Any]:
    settings = {"class": _class_of(processor)}
    for name in inspect.signature(type(processor)).parameters:
        for attribute in (name, f"_{name}"):
            if hasattr(processor, attribute):
                settings[name] = _as_json(getattr(processor, attribute))
    return settings


def _as_json(value: Any) -> Any:
    """A value of JSON that is equal for equal values of a setting, in every process."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _as_json(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(entry) for entry in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    if isinstance(value, Tensor):
        state = hashlib.blake2b(digest_size=DIGEST_BYTES)
        _update(state, value)
        return state.hexdigest()
    return _class_of(value)


def _class_of(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
