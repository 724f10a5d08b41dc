"""Compiled parts of blocks under fsdp: one graph each, without a break, and the losses of the plain step."""

import json

import torch
from support.processes import TERMS, loss_and_gradients, make_objective, share_of_this_process, start, whole_batch
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

from onepeace import compiling
from onepeace.train import parallel
from onepeace.train.sections import RunConfig

CPU = torch.device("cpu")
FEW_TERMS = {name: TERMS[name] for name in ("contrastive", "denoising/text+audio")}
"""Passes of one modality and of both."""


def compiled_step(folder):
    """A step before and after the parts are compiled, by a backend that counts graphs."""
    counter = CompileCounter()
    compile_with = torch.compile
    torch.compile = lambda function, **options: compile_with(function, backend=counter, **options)
    losses = []
    with parallel.group(CPU):
        for is_compiled in (False, True):
            torch.manual_seed(0)
            objective = make_objective(FEW_TERMS, sharded=True).eval()
            if is_compiled:
                compiling.compile_sharded(objective.model)
            batch = share_of_this_process(whole_batch(), objective.model.adapters, 1)
            run = RunConfig(out="", parallel="fsdp")
            parallel.parallelize(objective, objective.model.sharding_units(), run, CPU)
            step_losses, _ = loss_and_gradients(objective, batch)
            losses.append(parallel.mean(step_losses["loss"]).item())
        if parallel.rank() == 0:
            result = {"losses": losses, "graphs": counter.frame_count, "breaks": sum(counters["graph_break"].values())}
            (folder / "result.json").write_text(json.dumps(result))


def test_parts_of_sharded_blocks_are_whole_graphs(tmp_path):
    start(2, compiled_step, tmp_path)

    result = json.loads((tmp_path / "result.json").read_text())
    assert result["breaks"] == 0
    assert result["graphs"] > 0
    plain, compiled = result["losses"]
    assert abs(plain - compiled) < 1e-5
