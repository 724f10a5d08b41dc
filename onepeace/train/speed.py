"""How fast a run is on its card: the shares of the peak that its products reach, and a trace of some steps."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import profile, schedule
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from onepeace.cards import Card, card_called
from onepeace.device import card_name
from onepeace.train import parallel
from onepeace.train.sections import RunConfig

TRACE = "trace.json.gz"


class ProductCounter(TorchDispatchMode):
    """Seconds that the matrix products and convolutions of a step would take at the peak of a card.

    Args:
        card: the card, whose peak depends on the type of the numbers.

    Attributes:
        seconds: those of the forward and backward passes.
        recomputed: those of what the backward pass computes once more, as it was not stored.
    """

    def __init__(self, card: Card) -> None:
        super().__init__()
        self.card = card
        self.seconds = 0.0
        self.recomputed = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        flops_of = flop_registry.get(func.overloadpacket)
        if flops_of is not None:
            peak = self.card.bfloat16 if args[0].dtype == torch.bfloat16 else self.card.float32
            seconds = flops_of(*args, **kwargs, out_val=result) / peak
            # Within a backward pass, gradients are recorded only of what is computed once more.
            if torch._C._current_graph_task_id() != -1 and torch.is_grad_enabled():
                self.recomputed += seconds
            else:
                self.seconds += seconds
        return result


class Utilisation:
    """Shares of the peak of this process's card that the products of its steps reach.

    They are counted in one step; others have as many for each token. Nothing is counted on a card that is not known.

    Attributes:
        is_wanted: whether a step has to be counted, which is the same in all processes.
    """

    def __init__(self, device: torch.device) -> None:
        self.card = card_called(card_name(device))
        self.is_wanted = parallel.first_decides(self.card is not None)
        self._useful = 0.0
        """Seconds at the peak for each token."""
        self._recomputed = 0.0

    @contextmanager
    def counting(self, tokens: int) -> Iterator[None]:
        """Context of a step over some tokens of this process, in which nothing may be compiled."""
        if not self.is_wanted or self.card is None:
            yield
            return
        with ProductCounter(self.card) as counter:
            yield
        self._useful = counter.seconds / tokens
        self._recomputed = counter.recomputed / tokens
        self.is_wanted = False

    def shares(self, tokens_per_second: float) -> dict[str, float]:
        """Shares of the peak: "mfu" (model FLOPs utilisation), and "hfu" (hardware FLOPs utilisation), in which what
        is recomputed counts too; empty if they are not known."""
        if not self._useful:
            return {}
        mfu = self._useful * tokens_per_second
        hfu = mfu + self._recomputed * tokens_per_second
        return {"mfu": round(mfu, 4), "hfu": round(hfu, 4)}


@contextmanager
def traced(options: RunConfig, start: int) -> Iterator[Callable[[], None]]:
    """Context in which torch's profiler records the steps of ``run.profile`` in the first process; yields what has to
    be called after each step, of which ``start`` are done."""
    first, last = options.profile or (0, 0)
    if first <= start or parallel.rank() > 0:
        yield lambda: None
        return
    before = first - start - 1
    warmup = min(before, 1)
    steps = schedule(wait=before - warmup, warmup=warmup, active=last - first + 1, repeat=1)
    path = str(Path(options.out) / TRACE)
    with profile(schedule=steps, on_trace_ready=lambda profiler: profiler.export_chrome_trace(path)) as profiler:
        yield profiler.step
