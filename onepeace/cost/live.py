"""Bytes that are alive while something runs, counted from storages: the same number every time, on every machine."""

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """Follows the storages that operations make until they are freed; `peak` is the most bytes alive at once.

    Work space inside a kernel is not seen.

    Args:
        known: tensors that do not count, such as weights and inputs. Nor do their views.
    """

    def __init__(self, known: Iterable[Any]) -> None:
        super().__init__()
        self.peak = 0
        self._now = 0
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
