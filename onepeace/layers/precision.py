"""Dtypes under autocast."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def cast_once(x: Tensor) -> Tensor:
    """Cast ``x`` as autocast would for matrix products, so that several products share one copy."""
    device_type = x.device.type
    if not (torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)):
        return x
    return x.to(torch.get_autocast_dtype(device_type))


def without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Context that disables autocast; also works on devices without autocast, such as meta."""
    return torch.autocast(device_type, enabled=False) if torch.amp.is_autocast_available(device_type) else nullcontext()
