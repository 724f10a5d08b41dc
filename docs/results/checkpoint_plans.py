"""How long the first process plans a checkpoint of many processes: the first of a run, and the next.

``python docs/results/checkpoint_plans.py RECIPE PROCESSES`` makes the plans for a recipe's weights and both moments of
Adam, sharded over the 8 processes of a machine, without values, and with a process group that answers at once. It takes
a quarter of an hour for 512 processes.
"""

import pickle
import sys
import time

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from onepeace.plan.plan import planned_config, planned_model
from onepeace.train.checkpoint_storage import Planner
from onepeace.train.recipe import read_recipe

PER_MACHINE = 8
KINDS = ("model", "exp_avg", "exp_avg_sq")


def main(recipe_path: str, processes: int) -> None:
    recipe = read_recipe(recipe_path)
    weights = planned_model(recipe, planned_config(recipe)).state_dict()
    for title in ("first", "again"):
        planners = []
        sent = []
        for rank in range(processes):
            planner = planner_of(rank, tensors_of(weights, rank, processes))
            planners.append(planner)
            sent.append(pickle.dumps(planner.create_local_plan()))
        size = sum(map(len, sent))

        start = time.perf_counter()
        plans = [pickle.loads(plan) for plan in sent]  # noqa: S301
        read = time.perf_counter()
        answers, _ = planners[0].create_global_plan(plans)
        joined = time.perf_counter()
        for planner, answer in zip(planners, answers, strict=True):
            planner.finish_plan(answer)
        print(f"{title}: {size / 1e6:.3f} MB of plans, read in {read - start:.2f} s, joined in {joined - read:.2f} s")


def tensors_of(weights: dict[str, torch.Tensor], rank: int, processes: int) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint in one process: rows of each, as fsdp shares them out in a machine."""
    if dist.is_initialized():
        dist.destroy_process_group()
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=processes)
    mesh = init_device_mesh("cpu", (processes // PER_MACHINE, PER_MACHINE))
    tensors = {}
    for name, weight in weights.items():
        tensor = weight
        if weight.ndim:
            size = -(-len(weight) // PER_MACHINE)
            place = rank % PER_MACHINE
            local = weight[place * size : (place + 1) * size]
            placements = [Replicate(), Shard(0)]
            tensor = DTensor.from_local(
                local, mesh, placements, run_check=False, shape=weight.shape, stride=weight.stride()
            )
        tensors |= {f"{kind}.{name}": tensor for kind in KINDS}
    return tensors


def planner_of(rank: int, tensors: dict[str, torch.Tensor]) -> Planner:
    """The planner of a process.

    Each process has a class of its own, as torch keeps the plans of one process by the name of the class.
    """
    planner = type(f"PlannerOf{rank}", (Planner,), {})()
    planner.set_up_planner(tensors, is_coordinator=rank == 0)
    return planner


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
