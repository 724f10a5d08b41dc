"""Several processes that train one model give what one gives; parts of a batch give what the whole gives."""

import math
import os

import pytest
import torch
from filelock import FileLock
from support.checkpoints import read_newest
from support.processes import loss_and_gradients, make_objective, spread_step, start, train, whole_batch
from support.small_shards import write_shards
from support.training import DENOISING, assert_same_losses, assert_same_weights, losses, make_recipe
from torch.multiprocessing import ProcessRaisedException
from torch.nn.parallel import DistributedDataParallel

from onepeace.config import write_config
from onepeace.files import atomic
from onepeace.train import parallel
from onepeace.train.checkpoint import folders, step_of

# A step


@pytest.fixture(scope="module")
def alone():
    """Losses and gradients of the whole batch in one process, computed at once."""
    return loss_and_gradients(make_objective(max_padding=1.0), whole_batch())


def assert_near(tensors, expected):
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert bool(torch.isfinite(tensor).all()), name
        scale = max(expected[name].abs().max().item(), 1e-2)
        # Measured: 6e-7 in the gradient of a projection's bias, a sum of items that cancel but for 0.03.
        assert (tensor - expected[name]).abs().max() <= 1e-5 * scale + 1e-6, name


@pytest.mark.parametrize(("parts", "max_padding"), [(1, 0.1), (3, 1.0)])
def test_accumulation_equals_big_batch(alone, parts, max_padding):
    """Gradient caching and batching by length: the loss and every gradient of the whole batch."""
    objective = make_objective(max_padding=max_padding)

    losses, gradients = loss_and_gradients(objective, whole_batch().split(parts, objective.model.adapters))

    assert len(losses) == 7
    assert_near(losses, alone[0])
    assert_near(gradients, alone[1])


@pytest.mark.parametrize(
    ("ranks", "options"),
    [
        (4, {"parallel": "ddp"}),
        (4, {"parallel": "fsdp", "shard": 2, "keep_gathered": False}),
        (4, {"parallel": "fsdp", "shard": 2, "keep_gathered": True}),
        (2, {"parallel": "fsdp", "keep_gathered": True}),
    ],
    ids=["4 ddp", "2 x 2 fsdp", "2 x 2 fsdp, weights kept", "2 fsdp, weights kept"],
)
def test_processes_equal_one(alone, tmp_path, ranks, options):
    start(ranks, spread_step, tmp_path / "step.pt", 2, **options)

    losses, gradients = torch.load(tmp_path / "step.pt")
    assert_near(losses, alone[0])
    assert_near(gradients, alone[1])


# Runs


class Distributed:
    """Runs of one recipe, three steps of every loss term in two processes, each in a folder of its name."""

    def __init__(self, root, folder):
        self.folder = folder
        objective = {"contrastive": {"multi_positive": True}}
        for name in ("denoising/text", "denoising/image", "denoising/text+image"):
            objective[name] = {**DENOISING["objective"][name], "keys": "global"}
        recipe = make_recipe(
            root,
            folder,
            steps=3,
            objective=objective,
            mask=DENOISING["mask"],
            run={"batch_size": 16, "log_every": 1, "grad_cache_chunks": 2, "recompute": "blocks"},
        )
        write_config(recipe, folder / "recipe.yaml")

    def train(self, name, *overrides, parallel="fsdp", function=train, arguments=()):
        out = self.folder / name
        overrides = [f"run.out={out}", f"run.parallel={parallel}", *overrides]
        start(2, function, self.folder / "recipe.yaml", overrides, *arguments)
        return out


@pytest.fixture(scope="module")
def distributed(root, tmp_path_factory):
    return Distributed(root, tmp_path_factory.mktemp("distributed"))


@pytest.fixture(scope="module")
def sharded(distributed):
    """Folder of a run with shards of the weights."""
    return distributed.train("fsdp")


def test_sharded_training_equals_replicated(distributed, sharded):
    assert_same_losses(sharded, distributed.train("ddp", parallel="ddp"))


def test_weights_gathered_in_bfloat16_train_like_float32(distributed, sharded):
    assert_same_losses(distributed.train("bfloat16", "run.precision=bfloat16"), sharded, rel=0.02)


def test_sharded_resume_is_bit_identical(distributed, sharded):
    distributed.train("cut", "run.save_every=1", arguments=[2])
    out = distributed.train("cut", "run.save_every=1")

    assert_same_weights(out / "model", sharded / "model")
    assert losses(out) == losses(sharded)


def train_with_one_bad_gradient(path, overrides):
    """A run in whose second step the gradient of one process is no number."""
    clip = parallel.clip_gradients
    step = 0

    def spoil_and_clip(objective, limit):
        nonlocal step
        step += 1
        if step == 2 and parallel.rank() == 1:
            weight = objective.model.blocks[0].norm1.weight
            weight.grad.to_local().fill_(torch.nan)
        return clip(objective, limit)

    parallel.clip_gradients = spoil_and_clip
    train(path, overrides)


def test_sharded_step_with_nan_gradient_is_left_out(distributed, sharded):
    out = distributed.train("bad", function=train_with_one_bad_gradient)

    first, second, third = losses(out)
    assert first == losses(sharded)[0]
    assert second == {}  # nothing of the step counts
    assert all(math.isfinite(value) for value in third.values())
    assert read_newest(out).optimizer["model.logit_scale"]["step"] == 2


def test_batch_that_cannot_be_shared_is_an_error(distributed):
    with pytest.raises(ProcessRaisedException, match=r"run\.batch_size 15 .* 2 processes"):
        distributed.train("odd", "run.batch_size=15")


def train_with_root_of_rank(path, overrides, roots):
    root = roots[int(os.environ["RANK"])]
    train(path, [*overrides, f"data.root={root}"])


def test_processes_that_read_different_shards_stop(distributed, root, tmp_path):
    """Both read the one shard, which has a sample less on the second machine."""
    write_shards(tmp_path / "second", squares=11)

    with pytest.raises(ProcessRaisedException, match="processes 0 and 1 read different data"):
        distributed.train("differing", function=train_with_root_of_rank, arguments=[[root, tmp_path / "second"]])


def train_at_once(path, overrides):
    atomic.PATIENCE = 0.0
    train(path, overrides)


def test_second_run_in_folder_is_refused(distributed):
    """Only the first process of a run locks its folder."""
    out = distributed.folder / "locked"
    out.mkdir()

    with FileLock(out / ".lock"), pytest.raises(ProcessRaisedException, match="locked: another run"):
        distributed.train("locked", function=train_at_once)


def leave_while_gloo_tidies_up():
    """Its thread drops the tensors of the last exchange one by one, and needs Python's lock for each."""
    with parallel.group(torch.device("cpu")):
        model = DistributedDataParallel(torch.nn.Linear(2, 2))
        torch.distributed.all_reduce_coalesced([torch.zeros(1) for _ in range(20_000)])
    del model


def test_run_ends_while_gloo_still_tidies_up():
    start(4, leave_while_gloo_tidies_up)


@pytest.fixture(scope="module")
def respread(root, tmp_path_factory):
    """Folders of a run by one process, two with a share each, two shares in four, two with all of it; and of the run of
    one process that was never stopped."""
    folder = tmp_path_factory.mktemp("respread")
    path = folder / "recipe.yaml"
    run = {"batch_size": 16, "log_every": 1, "save_every": 2, "ema": 0.5, "keep": 9}
    write_config(make_recipe(root, folder / "cut", steps=8, run=run), path)
    train(path, [], 2)
    start(2, train, path, ["run.parallel=fsdp"], 4)
    start(4, train, path, ["run.parallel=fsdp", "run.shard=2"], 6)
    start(2, train, path, [])
    train(path, [f"run.out={folder / 'whole'}"])
    return folder / "cut", folder / "whole"


def test_resume_with_other_world_sizes_has_same_losses(respread):
    cut, whole = respread

    assert [step_of(folder) for folder in folders(cut)] == [2, 4, 6, 8]
    assert_same_losses(cut, whole)


def test_resume_with_other_world_sizes_has_same_state(respread):
    cut, whole = map(read_newest, respread)

    for name, tensor in whole.ema.items():
        assert torch.allclose(cut.ema[name], tensor, atol=1e-4), name
    assert cut.optimizer.keys() == whole.optimizer.keys()
    for name, expected in whole.optimizer.items():
        moments = cut.optimizer[name]
        assert moments["step"] == expected["step"] == 8
        assert torch.allclose(moments["exp_avg"], expected["exp_avg"], rtol=1e-2, atol=1e-5), name
