"""Plans of the largest recipes on 8, 64 and 512 GPUs: the tables of plan.md, on stdout, and its graph, plan.svg.

python docs/results/plan.py    # from the root of a checkout; about half an hour on one core
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from dry_run import DryRun, run_step

from onepeace.cards import CARDS, Card
from onepeace.files.table import markdown_table
from onepeace.train.recipe import read_recipe

RECIPES = {"image_text_4b": 64, "audio_text_4b": 32, "large_image_text": 128, "large_audio_text": 32}
"""Items of a process for weak scaling, by recipe."""
PROCESSES = (8, 64, 512)
KINDS = ("parameters", "optimizer", "gradients", "gathered weights", "activations", "other")
COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728")
WIDTH, HEIGHT, MARGIN = 640, 400, 60
UTILISATION = 2 / 3
"""Share of a card's peak that products are assumed to reach; a choice, not a measurement, as no GPU was there: with it
the step of image_text_4b takes about as long as its products and its other kernels take by a separate count."""
READER_ITEMS = 365
"""Items that one worker of the reader builds per second, photographs with a caption (data.md)."""
RING = {"allgather": 1, "allgather_base": 1, "reduce_scatter_base": 1, "broadcast": 1, "allreduce": 2}
"""Times that each byte goes over a link of every process, but for a share of 1 / processes (NCCL's ring)."""


class StepTime(NamedTuple):
    """Seconds of a step by what takes them, without those in which the host launches kernels.

    Computation, collectives and reading overlap (FSDP gathers the next unit while one computes, DDP reduces buckets
    during the backward pass, workers build batches ahead), so that a step takes at least as long as the slowest.
    """

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


def step_time(run: DryRun, card: Card) -> StepTime:
    """Estimated time of a step."""
    compute = run.step.moved / card.bandwidth
    for (_, dtype), flops in run.step.flops.items():
        peak = card.float32 if dtype == torch.float32 else card.bfloat16
        compute += flops / (UTILISATION * peak)
    links = 0.0
    network = 0.0
    for (operation, group), size in run.step.traffic.items():
        sent = RING[operation] * size * (group.size - 1) / group.size
        if group.size == group.on_machine:
            links += sent / card.link
        else:  # all adapters of the group's processes on a machine carry its traffic
            network += sent / (card.network * group.on_machine)
    items = sum(run.recipe.batch_size(source) for source in run.recipe.data.modalities) / run.processes
    reader = items / (READER_ITEMS * max(run.recipe.run.workers, 1))
    return StepTime(compute, links, network, reader)


def plans() -> Iterator[tuple[str, str, DryRun]]:
    """Name of the recipe, "strong" (its own batch) or "weak" (equally many items for each process), and the plan."""
    for name, items in RECIPES.items():
        batch = read_recipe(f"recipes/pretrain/{name}.yaml").run.batch_size
        for processes in PROCESSES:
            for scaling, size in {"strong": batch, "weak": items * processes}.items():
                if size % processes == 0:
                    print(f"{name}, {processes} processes, batch {size} ...", file=sys.stderr)
                    recipe = read_recipe(f"recipes/pretrain/{name}.yaml", [f"run.batch_size={size}"])
                    yield name, scaling, run_step(recipe, processes)


def traffic(plan: DryRun, *, in_machine: bool, operation: str = "") -> float:
    """GB that collectives of a step gather, reduce or scatter."""
    size = 0
    for (name, group), count in plan.step.traffic.items():
        if (group.size == group.on_machine) == in_machine and name.startswith(operation):
            size += count
    return size / 1e9


def time_of(plan: DryRun, card: str = "h100") -> StepTime:
    return step_time(plan, CARDS[card])


def memory_row(name: str, plan: DryRun) -> list[str]:
    memory = plan.step.memory
    return [
        f"`{name}`",
        str(plan.processes),
        str(plan.recipe.run.batch_size // plan.processes),
        *(f"{memory[kind] / 1e9:.1f}" for kind in KINDS),
        f"{memory.total() / 1e9:.1f}",
        f"{plan.step.checkpoint / 1e9:.1f}",
    ]


def time_row(name: str, plan: DryRun) -> list[str]:
    (flops,) = plan.flops_per_item.values()
    row = [
        f"`{name}`",
        str(plan.processes),
        str(plan.recipe.run.batch_size // plan.processes),
        f"{flops / 1e12:.2f}",
        f"{traffic(plan, in_machine=True, operation='allgather'):.1f}",
        f"{traffic(plan, in_machine=True):.1f}",
        f"{traffic(plan, in_machine=False):.1f}",
    ]
    for card in CARDS:
        time = time_of(plan, card)
        row.append(f"{max(time):.3g} ({time.limit})")
    return row


def scaling_row(name: str, plan: DryRun, smallest: DryRun) -> list[str]:
    """Seconds by what takes them on an H100, and items per second of a GPU beside those of the smallest job."""
    time = time_of(plan)
    seconds = max(time)
    rate = plan.recipe.run.batch_size / plan.processes / seconds
    smallest_rate = smallest.recipe.run.batch_size / smallest.processes / max(time_of(smallest))
    return [f"`{name}`", str(plan.processes), *(f"{part:.3g}" for part in time), f"{rate / smallest_rate:.0%}"]


def print_table(title: str, heads: list[str], rows: list[list[str]]) -> None:
    print(f"## {title}\n\n{markdown_table(heads, rows)}\n")


def graph(points: dict[str, list[tuple[int, float]]]) -> str:
    """SVG of seconds a step by processes, both logarithmic, with lines of perfect scaling."""
    largest = max(seconds for line in points.values() for _, seconds in line)
    smallest = min(seconds for line in points.values() for _, seconds in line)

    def place(processes: int, seconds: float) -> tuple[float, float]:
        across = (processes.bit_length() - 4) / (PROCESSES[-1].bit_length() - 4)
        up = log_share(seconds, smallest / 2, largest * 2)
        return MARGIN + across * (WIDTH - 2 * MARGIN), HEIGHT - MARGIN - up * (HEIGHT - 2 * MARGIN)

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">']
    parts.append(f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>')
    for processes in PROCESSES:
        x, _ = place(processes, smallest)
        parts.append(text(x, HEIGHT - MARGIN + 20, f"{processes} GPUs"))
    for power in range(-3, 4):
        if smallest / 2 <= 10**power <= largest * 2:
            _, y = place(PROCESSES[0], 10**power)
            parts.append(line([(MARGIN, y), (WIDTH - MARGIN, y)], "#dddddd"))
            parts.append(text(MARGIN - 25, y + 4, f"{10.0**power:g} s"))
    for colour, (name, pairs) in zip(COLOURS, points.items(), strict=True):
        first_processes, first_seconds = pairs[0]
        ideal = [(processes, first_seconds * first_processes / processes) for processes, _ in pairs]
        parts.append(line([place(*pair) for pair in ideal], colour, dashed=True))
        parts.append(line([place(*pair) for pair in pairs], colour))
        x, y = place(*pairs[-1])
        parts.append(text(x - 10, y - 8, name, colour))
    parts.append(text(WIDTH / 2, 24, "Seconds of a step on H100, by the plan; dashed: perfect scaling"))
    return "\n".join([*parts, "</svg>\n"])


def log_share(value: float, low: float, high: float) -> float:
    from math import log

    return (log(value) - log(low)) / (log(high) - log(low))


def line(pairs: list[tuple[float, float]], colour: str, dashed: bool = False) -> str:
    corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in pairs)
    dashes = ' stroke-dasharray="4 4"' if dashed else ""
    return f'<polyline points="{corners}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>'


def text(x: float, y: float, words: str, colour: str = "black") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="13" text-anchor="middle" fill="{colour}">{words}</text>'


def main() -> None:
    made: dict[str, dict[str, list[DryRun]]] = {"strong": {}, "weak": {}}
    for name, scaling, plan in plans():
        made[scaling].setdefault(name, []).append(plan)
    named = {
        scaling: [(name, plan) for name, own in by_name.items() for plan in own] for scaling, by_name in made.items()
    }
    print_table(
        "Memory of a process, GB",
        ["recipe", "GPUs", "items each", *KINDS, "all", "checkpoint"],
        [memory_row(*pair) for pair in named["strong"]],
    )
    print_table(
        "Bytes and time of a step",
        ["recipe", "GPUs", "items each", "TFLOP an item", "gathers, GB", "in a machine, GB", "between machines, GB",
         *(f"s on {card.name}" for card in CARDS.values())],
        [time_row(*pair) for pair in named["strong"]],
    )  # fmt: skip
    for scaling, by_name in made.items():
        print_table(
            f"{scaling.capitalize()} scaling on H100",
            ["recipe", "GPUs", *(f"{part}, s" for part in StepTime._fields), "speed of a GPU, share"],
            [scaling_row(name, plan, own[0]) for name, own in by_name.items() for plan in own],
        )
    points = {name: [(plan.processes, max(time_of(plan))) for plan in own] for name, own in made["strong"].items()}
    Path(__file__).with_suffix(".svg").write_text(graph(points))


if __name__ == "__main__":
    main()
