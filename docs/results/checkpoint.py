"""How long a training stands still for a checkpoint, and how long it is written; alone or under torchrun.

python docs/results/checkpoint.py --parameters 100e6 FOLDER
torchrun --nproc-per-node 2 docs/results/checkpoint.py --parameters 100e6 --parallel fsdp FOLDER
"""

import argparse
import shutil
import statistics
import time
from pathlib import Path

import torch
from torch import nn

from onepeace.device import choose_device
from onepeace.train import checkpoint, parallel
from onepeace.train.sections import RunConfig

WIDTH = 1024
ROUNDS = 5


class Network(nn.Module):
    """Square matrices, one after the other."""

    def __init__(self, parameters: float) -> None:
        super().__init__()
        depth = max(1, round(parameters / WIDTH**2))
        self.layers = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(depth)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x).square().mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="on the disk to measure; what is written is removed")
    parser.add_argument("--parameters", type=float, default=100e6)
    parser.add_argument("--parallel", choices=("ddp", "fsdp"), default="ddp")
    args = parser.parse_args()
    out = args.folder / "checkpoints"
    with parallel.group(choose_device()) as device:
        measure(out, args.parameters, RunConfig(out=str(out), parallel=args.parallel), device)
        parallel.barrier()
        if parallel.rank() == 0:
            shutil.rmtree(out)


def measure(out: Path, parameters: float, config: RunConfig, device: torch.device) -> None:
    """Print a line for each checkpoint, after the steps before it."""
    torch.manual_seed(0)
    network = Network(parameters)
    parallel.parallelize(network, network.layers, config, device)
    batch = torch.randn(16, WIDTH, device=device)
    parallelized: nn.Module = network
    if config.parallel == "ddp":
        parallelized = parallel.replicate(network)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)

    def step() -> float:
        began = time.perf_counter()
        optimizer.zero_grad()
        parallelized(batch).backward()
        optimizer.step()
        return time.perf_counter() - began

    step()
    average = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    checkpoints = checkpoint.Checkpoints(out, checkpoint.State(network, optimizer, average), keep=2)
    say("| checkpoint | pause, s | writing, s | pause / writing | step, ms | step while it is written, ms |")
    say("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for number in range(1, ROUNDS + 1):
        alone = statistics.median(step() for _ in range(10))
        began = time.perf_counter()
        checkpoints.save(number, "", {})
        pause = time.perf_counter() - began
        steps = []
        while parallel.gather_objects(checkpoints.is_writing())[0] or not steps:
            steps.append(step())
        checkpoints.wait()
        writing = time.perf_counter() - began - pause
        beside = statistics.median(steps)
        share = pause / writing
        say(f"| {number} | {pause:.3f} | {writing:.3f} | {share:.3f} | {alone * 1e3:.0f} | {beside * 1e3:.0f} |")
    size = sum(path.stat().st_size for path in out.glob(f"step-*{ROUNDS}/*"))
    say(f"\n{size / 1e9:.2f} GB in {parallel.world_size()} files, {config.parallel}")


def say(line: str) -> None:
    if parallel.rank() == 0:
        print(line, flush=True)


if __name__ == "__main__":
    main()
