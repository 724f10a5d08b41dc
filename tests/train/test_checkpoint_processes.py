"""Checkpoints of several processes: whatever wrote them restores all of the state, to the bit, in any other."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from support.checkpoints import read_checkpoint
from support.processes import in_turn, start
from support.training import assert_same_tensors
from torch import nn

from onepeace.errors import UserError
from onepeace.train import checkpoint, parallel
from onepeace.train.checkpoint import folder_of, folders
from onepeace.train.checkpoint_storage import Planner
from onepeace.train.sections import RunConfig

LAYOUTS = {
    "ddp": RunConfig(out="", parallel="ddp"),
    "fsdp": RunConfig(out="", parallel="fsdp", shard=4),
    "mesh": RunConfig(out="", parallel="fsdp", shard=2),
}
CPU = torch.device("cpu")


class Network(nn.Module):
    """Rows that four processes share evenly, unevenly, and not at all; a scalar, and whole numbers."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.second = nn.Linear(8, 5)
        self.third = nn.Linear(5, 1)
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("count", torch.tensor([3, 5]))

    def forward(self, x):
        x = self.third(self.second(self.first(x)))
        return (x * self.scale).mean()


def checkpoints_of(out, layout, seed):
    """Checkpoints of a network after a step, in this process's layout."""
    torch.manual_seed(seed)
    network = Network()
    network.count += seed
    parallel.parallelize(network, [network.first], LAYOUTS[layout], CPU)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1, fused=True)
    network(torch.randn(16, 4)).backward()  # in all processes the same
    optimizer.step()
    average = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    return checkpoint.Checkpoints(out, checkpoint.State(network, optimizer, average), keep=2)


def save(checkpoints, step):
    checkpoints.save(step, "seed: 1\n", {})
    checkpoints.wait()


def whole_state(checkpoints):
    """Tensors by name, which this process may have a shard of."""
    whole = {}
    for name, tensor in checkpoints.state.tensors().items():
        whole[name] = tensor.full_tensor() if parallel.is_sharded(tensor) else tensor.clone()
    return whole


def assert_restored(folder, layout, expected):
    """A process of this layout that had another state restores the expected one."""
    reader = checkpoints_of(folder / "unused", layout, seed=9)
    reader.restore(checkpoint.newest(folder))
    assert_same_tensors(whole_state(reader), expected)


def save_and_restore_in_each_layout(out):
    expected = {}
    for seed, layout in enumerate(LAYOUTS):
        writer = checkpoints_of(out / layout, layout, seed)
        expected[layout] = whole_state(writer)
        save(writer, 1)
        if parallel.rank() == 0:
            torch.save(expected[layout], out / f"{layout}.pt")
    for written, state in expected.items():
        for layout in LAYOUTS:
            assert_restored(out / written, layout, state)


def plan_in_each_layout():
    """What processes offer to write is all that there is, and nothing twice; under ddp each offers as many tensors."""
    for layout in LAYOUTS:
        planner = type(layout, (Planner,), {})()  # torch keeps the plans of a class
        tensors = checkpoints_of(Path(), layout, seed=1).state.tensors()
        planner.set_up_planner(tensors)
        own = []
        for item in planner.create_local_plan().items:
            if item.tensor_data.chunk.sizes.numel():  # a process may have no row
                own.append((item.index.fqn, item.index.offset))
        plans = parallel.gather_objects(own)
        offered = [index for plan in plans for index in plan]
        assert len(set(offered)) == len(offered)
        assert {name for name, _ in offered} == tensors.keys()
        if layout == "ddp":
            assert max(map(len, plans)) - min(map(len, plans)) <= 1


def look_for_newest(out):
    """After the part of one process was damaged, which another compares with its digest."""
    checkpoints = checkpoints_of(out, "fsdp", seed=1)
    for step in (1, 2):
        save(checkpoints, step)
    if parallel.rank() == 0:
        part = folder_of(out, 2) / "part-00002.safetensors"
        part.write_bytes(part.read_bytes()[:-1] + b"x")
    parallel.barrier()
    (out / f"newest-{parallel.rank()}").write_text(str(checkpoint.newest(out)))


def full_disk(*args):
    raise OSError(28, "No space left on device")


def fail_in_one_process(out):
    checkpoints = checkpoints_of(out, "fsdp", seed=1)
    save(checkpoints, 1)
    if parallel.rank() == 2:
        safetensors.torch.save_file = full_disk
    with pytest.raises(UserError) as error:
        save(checkpoints, 2)
    (out / f"error-{parallel.rank()}").write_text(str(error.value))


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """What four processes have written."""
    out = tmp_path_factory.mktemp("out")
    calls = [
        (save_and_restore_in_each_layout, out),
        (look_for_newest, out / "damaged"),
        (fail_in_one_process, out / "full"),
        (plan_in_each_layout,),
    ]
    start(4, in_turn, calls)
    return out


def test_checkpoint_is_restored_in_any_layout(out):
    for layout in LAYOUTS:
        expected = torch.load(out / f"{layout}.pt")
        assert_restored(out / layout, layout, expected)  # in this process alone
        (folder,) = folders(out / layout)
        assert len(list(folder.glob("*.safetensors"))) == 4
        assert torch.equal(read_checkpoint(folder).model["second.weight"], expected["model.second.weight"])


def test_unwritable_checkpoint_fails_in_all_processes(out):
    folder = out / "full"
    messages = [path.read_text() for path in folder.glob("error-*")]
    assert len(messages) == 4
    (message,) = set(messages)
    assert "step 2" in message
    assert "No space left" in message
    assert folders(folder) == [folder_of(folder, 1)]
    assert not list(folder.glob(".*.tmp"))


def test_processes_agree_on_newest_checkpoint(out):
    folder = out / "damaged"
    answers = [path.read_text() for path in folder.glob("newest-*")]
    assert answers == 4 * [str(folder_of(folder, 1))]
