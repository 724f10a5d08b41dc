"""Time of a step on cards that are not here: compute, links and reader, of which the slowest counts.

Compute is that of the products, and then of all other kernels, which are limited by the bytes that they read and write.

Computation, collectives and reading overlap (FSDP gathers the next unit while one computes, DDP reduces buckets during
the backward pass, workers build batches ahead), so that a step takes at least as long as the slowest of them.
"""

from typing import TYPE_CHECKING, NamedTuple

import torch

from onepeace.cards import Card
from onepeace.plan.step import StepCost

if TYPE_CHECKING:
    from onepeace.train.recipe import Recipe

UTILISATION = 2 / 3
"""Share of a card's peak that products are assumed to reach; a choice, not a measurement, as no GPU was there: with it
the step of image_text_4b takes about as long as its products and its other kernels take by a separate count."""
READER_ITEMS = 365
"""Items that one worker of the reader builds per second, photographs with a caption (docs/results/data.md)."""
RING = {"allgather": 1, "allgather_base": 1, "reduce_scatter_base": 1, "broadcast": 1, "allreduce": 2}
"""Times that each byte goes over a link of every process, but for a share of 1 / processes (NCCL's ring)."""


class StepTime(NamedTuple):
    """Seconds of a step by what takes them."""

    compute: float
    links: float
    """Collectives within a machine."""
    network: float
    """Collectives between machines."""
    reader: float

    @property
    def limit(self) -> str:
        """What limits the step."""
        return max(self._fields, key=lambda name: getattr(self, name))


def step_time(cost: StepCost, recipe: "Recipe", processes: int, card: Card) -> StepTime:
    """Estimated time of a step."""
    compute = cost.moved / card.bandwidth
    for (_, dtype), flops in cost.flops.items():
        peak = card.float32 if dtype == torch.float32 else card.bfloat16
        compute += flops / (UTILISATION * peak)
    links = 0.0
    network = 0.0
    for (operation, group), size in cost.traffic.items():
        sent = RING[operation] * size * (group.size - 1) / group.size
        if group.size == group.on_machine:
            links += sent / card.link
        else:  # all adapters of the group's processes on a machine carry its traffic
            network += sent / (card.network * group.on_machine)
    items = sum(recipe.batch_size(source) for source in recipe.data.modalities) / processes
    reader = items / (READER_ITEMS * max(recipe.run.workers, 1))
    return StepTime(compute, links, network, reader)
