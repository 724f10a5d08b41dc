"""Checkpoints of several processes: whatever wrote them restores all of the state, to the bit, in any other."""

import safetensors.torch
import torch
from support.checkpoints import read_checkpoint
from support.processes import start
from torch import nn

from onepeace.errors import UserError
from onepeace.train import checkpoint, parallel
from onepeace.train.checkpoint_files import folder_of, folders
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
        return (self.third(self.second(self.first(x))) * self.scale).mean()


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


def whole_state(state):
    whole = {}
    for part, tensors in state.tensors().items():
        for name, tensor in tensors.items():
            whole[f"{part}.{name}"] = tensor.full_tensor() if parallel.is_sharded(tensor) else tensor.clone()
    return whole


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


def save_and_restore_in_each_layout(folder):
    with parallel.group(CPU):
        expected = {}
        for seed, layout in enumerate(LAYOUTS):
            writer = checkpoints_of(folder / layout, layout, seed)
            writer.save(1, "seed: 1\n", {})
            expected[layout] = whole_state(writer.state)
            writer.wait()
            if parallel.rank() == 0:
                torch.save(expected[layout], folder / f"{layout}.pt")
        for layout in LAYOUTS:
            for written in LAYOUTS:
                reader = checkpoints_of(folder / "none", layout, seed=9)
                reader.restore(checkpoint.newest(folder / written))
                assert_equal(whole_state(reader.state), expected[written])


def test_checkpoint_of_any_layout_is_restored_in_any_other(tmp_path):
    start(4, save_and_restore_in_each_layout, tmp_path)
    for layout in LAYOUTS:
        (folder,) = folders(tmp_path / layout)
        expected = torch.load(tmp_path / f"{layout}.pt")
        assert len(list(folder.glob("*.safetensors"))) == 4
        alone = checkpoints_of(tmp_path / "none", layout, seed=9)
        alone.restore(checkpoint.newest(tmp_path / layout))
        assert_equal(whole_state(alone.state), expected)
        assert torch.equal(read_checkpoint(folder).model["second.weight"], expected["model.second.weight"])


def fail_in_one_process(out):
    with parallel.group(CPU):
        checkpoints = checkpoints_of(out, "fsdp", seed=1)
        checkpoints.save(1, "seed: 1\n", {})
        checkpoints.wait()
        if parallel.rank() == 2:
            safetensors.torch.save_file = full_disk
        checkpoints.save(2, "seed: 1\n", {})
        try:
            checkpoints.wait()
        except UserError as error:
            (out / f"error-{parallel.rank()}").write_text(str(error))


def full_disk(*args):
    raise OSError(28, "No space left on device")


def test_checkpoint_that_one_process_cannot_write_fails_in_all(tmp_path):
    start(4, fail_in_one_process, tmp_path)
    messages = {path.read_text() for path in tmp_path.glob("error-*")}
    assert len(list(tmp_path.glob("error-*"))) == 4
    (message,) = messages
    assert "the checkpoint of step 2 cannot be written" in message
    assert "No space left" in message
    assert checkpoint.newest(tmp_path) == folder_of(tmp_path, 1)
    assert not list(tmp_path.glob(".*.tmp"))


def look_for_the_newest(out):
    """After the part of one process was damaged, which another compares with its digest."""
    with parallel.group(CPU):
        checkpoints = checkpoints_of(out, "fsdp", seed=1)
        for step in (1, 2):
            checkpoints.save(step, "seed: 1\n", {})
        checkpoints.wait()
        if parallel.rank() == 0:
            part = folder_of(out, 2) / "part-00002.safetensors"
            part.write_bytes(part.read_bytes()[:-1] + b"x")
        parallel.barrier()
        (out / f"newest-{parallel.rank()}").write_text(str(checkpoint.newest(out)))


def test_processes_agree_on_the_newest_checkpoint(tmp_path):
    start(4, look_for_the_newest, tmp_path)
    answers = [path.read_text() for path in tmp_path.glob("newest-*")]
    assert answers == 4 * [str(folder_of(tmp_path, 1))]
