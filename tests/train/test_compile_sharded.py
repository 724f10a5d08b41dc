"""Compiled parts of blocks under fsdp: one graph each, without a break, and the losses of the plain step."""

import json

import pytest
import torch
from support.processes import TERMS, loss_and_gradients, make_objective, share_of_this_process, start, whole_batch
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

from onepeace import compiling
from onepeace.train import parallel
from onepeace.train.sections import RunConfig

CPU = torch.device("cpu")


def compiled_step(folder, names):
    """A step before and after the parts are compiled, by a backend that counts graphs."""
    counter = CompileCounter()
    compile_with = torch.compile
    torch.compile = lambda function, **options: compile_with(function, backend=counter, **options)
    losses = []
    with parallel.group(CPU):
        for is_compiled in (False, True):
            torch.manual_seed(0)
            objective = make_objective({name: TERMS[name] for name in names}, sharded=True).eval()
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


@pytest.mark.parametrize(
    "names",
    [
        ["contrastive"],
        pytest.param(["contrastive", "denoising/text+audio"], marks=pytest.mark.slow),  # a joint pass and the decoder
    ],
)
def test_parts_of_sharded_blocks_are_whole_graphs(tmp_path, names):
    start(2, compiled_step, tmp_path, names)

    result = json.loads((tmp_path / "result.json").read_text())
    assert result["breaks"] == 0
    assert result["graphs"] > 0
    plain, compiled = result["losses"]
    assert abs(plain - compiled) < 1e-5
