"""How fast a run is on its card: the share of the peak that its products reach, and a trace of some steps."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import profile, schedule
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from onepeace.cards import card_called
from onepeace.device import card_name
from onepeace.train import parallel
from onepeace.train.sections import RunConfig

TRACE = "trace.json.gz"


class ProductCounter(TorchDispatchMode):
    """Counts the FLOPs of matrix products and convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        flops_of = flop_registry.get(func.overloadpacket)
        if flops_of is not None:
            self.flops += flops_of(*args, **kwargs, out_val=result)
        return result


class Utilisation:
    """Share of the peak of this process's card that the products of its steps reach (MFU).

    They are counted in the first step, recomputed ones too; later steps have as many for each token. Nothing is counted
    on a card that is not known, nor of compiled blocks, which the counter would keep from being compiled.
    """

    def __init__(self, device: torch.device, bfloat16: bool, is_compiled: bool) -> None:
        card = None if is_compiled else card_called(card_name(device))
        self.peak = 0.0
        """FLOPs per second; 0 if they are not known."""
        if card is not None:
            self.peak = card.bfloat16 if bfloat16 else card.float32
        self.flops_per_token = 0.0

    @contextmanager
    def counting(self, tokens: int) -> Iterator[None]:
        """Context of a step over some tokens of this process."""
        if not self.peak or self.flops_per_token:
            yield
            return
        with ProductCounter() as counter:
            yield
        self.flops_per_token = counter.flops / tokens

    def share(self, tokens_per_second: float) -> dict[str, float]:
        """The share of the peak as "mfu", if it is known."""
        if not self.peak:
            return {}
        return {"mfu": round(self.flops_per_token * tokens_per_second / self.peak, 4)}


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
