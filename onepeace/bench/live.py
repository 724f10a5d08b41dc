"""How much is alive while something runs, told from the storages that operations make: the same number every time."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """Follows what operations make until it is freed; its `peak` is the most that was alive at once.

    Work space inside a kernel is not seen.

    Args:
        known: tensors that do not count: weights, inputs. Nor do their views.
        numbers: count numbers instead of bytes.
    """

    def __init__(self, known: Iterable[Any], numbers: bool = False) -> None:
        super().__init__()
        self.peak = 0
        self._now = 0
        self._numbers = numbers
        tensors = (leaf for leaf in tree_leaves(list(known)) if isinstance(leaf, Tensor))
        self._seen = weakref.WeakSet(tensor.untyped_storage() for tensor in tensors)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage not in self._seen:
                    self._seen.add(storage)
                    size = storage.nbytes() // (tensor.itemsize if self._numbers else 1)
                    self._now += size
                    weakref.finalize(storage, self._forget, size)
        self.peak = max(self.peak, self._now)
        return result

    def _forget(self, size: int) -> None:
        self._now -= size
