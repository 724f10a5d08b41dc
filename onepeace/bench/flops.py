"""What one forward pass of an item takes, told from the sizes of a model alone."""

import copy
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from onepeace.config import ModelConfig
from onepeace.model import OnePeace


class Cost(NamedTuple):
    """Of one pass over a batch, as far as its unit vectors (of a model without projections: its features)."""

    tokens: int
    """Tokens of an item in the blocks, CLS included."""
    flops: int
    """Of matrix products and convolutions, a multiplication and an addition counting as two."""
    numbers: int
    """Numbers alive at the peak, weights not counted. An estimate: kernels need room that is not seen here, or less
    than their plain form."""


def pass_cost(config: ModelConfig, key: str, batch: Mapping[str, Tensor]) -> Cost:
    """Cost of encoding `batch` of modality `key`; its values do not matter, only their sizes.

    The blocks run on the meta device. A stem looks at its input's values (lengths, padding), so it runs for real, on
    weights of zero; it is a small part of any model.
    """
    with torch.device("meta"):
        model = OnePeace(config).eval().requires_grad_(False)
    adapter = copy.deepcopy(model.adapters[key]).to_empty(device="cpu")
    for parameter in adapter.parameters():
        parameter.zero_()
    weights = [*adapter.parameters(), *model.parameters()]
    with FlopCounterMode(display=False) as counter, _LiveNumbers(weights) as live:
        stem = adapter.stem_tokens(dict(batch))
        features = model.encode({key: stem._replace(tokens=stem.tokens.to("meta"))})[key]
        if key in model.heads:
            model.embed(key, features)
    return Cost(features.tokens.shape[1], counter.get_total_flops(), live.peak)


def module_flops(module: nn.Module, *inputs: Tensor) -> int:
    """FLOPs of one call of any module whose computation does not look at values; it is left as it is."""
    dry = copy.deepcopy(module).to("meta").requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        dry(*(tensor.to("meta") for tensor in inputs))
    return counter.get_total_flops()


class _LiveNumbers(TorchDispatchMode):
    """Follows how many numbers are alive among those that operations make; views of `weights` are none."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__()
        self.peak = 0
        self._now = 0
        self._seen = weakref.WeakSet(tensor.untyped_storage() for tensor in weights)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage not in self._seen:
                    self._seen.add(storage)
                    count = storage.nbytes() // tensor.itemsize
                    self._now += count
                    weakref.finalize(storage, self._forget, count)
        self.peak = max(self.peak, self._now)
        return result

    def _forget(self, count: int) -> None:
        self._now -= count
