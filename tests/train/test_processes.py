"""Several processes that train one model give what one gives; parts of a batch give what the whole gives."""

import math
import re

import pytest
import torch
from filelock import FileLock
from support.checkpoints import read_newest
from support.processes import in_turn, loss_and_gradients, make_objective, spread_step, start, train, whole_batch
from support.small_shards import write_shards
from support.training import DENOISING, assert_same_losses, assert_same_weights, losses, make_recipe
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from onepeace.config import write_config
from onepeace.errors import UserError
from onepeace.files import atomic
from onepeace.losses import sigmoid
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

    assert len(losses) == 8
    assert_near(losses, alone[0])
    assert_near(gradients, alone[1])


LAYOUTS = {
    "ddp": {"parallel": "ddp"},
    "2 x 2 fsdp": {"parallel": "fsdp", "shard": 2, "keep_gathered": False},
    "fsdp, weights kept": {"parallel": "fsdp", "keep_gathered": True},
}


def save_sigmoid(folder):
    """The sigmoid loss of this process's rows of eight and its gradients, also with respect to rows of the others."""
    generator = torch.Generator().manual_seed(0)
    share = 8 // parallel.world_size()
    rows = slice(parallel.rank() * share, (parallel.rank() + 1) * share)
    vectors = [F.normalize(torch.randn(8, 6, generator=generator), dim=1)[rows] for _ in "ab"]
    leaves = [leaf.requires_grad_() for leaf in (*vectors, torch.tensor(10.0), torch.tensor(-3.0))]
    a, b, scale, bias = leaves
    loss = torch.zeros(())
    for turn, others in enumerate(parallel.around(b)):
        loss = loss + sigmoid(a, others, scale, bias, paired=turn == 0)
    loss.backward()
    torch.save((loss.detach(), *[leaf.grad for leaf in leaves]), folder / f"sigmoid-{parallel.rank()}")


def check_sigmoid(folder, alone, processes):
    """The mean over processes, of which the gradient is the mean too, is that of one process."""
    saved = [torch.load(folder / f"sigmoid-{rank}") for rank in range(processes)]
    loss, by_a, by_b, by_scale, by_bias = zip(*saved, strict=True)
    together = [torch.stack(loss).mean(), torch.cat(by_a) / processes, torch.cat(by_b) / processes]
    together += [torch.stack(by_scale).mean(), torch.stack(by_bias).mean()]
    torch.testing.assert_close(together, list(torch.load(alone / "sigmoid-0")), rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """Folder of the losses and gradients of four processes in each layout."""
    folder = tmp_path_factory.mktemp("steps")
    calls = [(spread_step, folder / name, options) for name, options in LAYOUTS.items()]
    start(4, in_turn, [*calls, (save_sigmoid, folder)])
    return folder


@pytest.mark.parametrize("name", LAYOUTS)
def test_processes_equal_one(alone, steps, name):
    losses, gradients = torch.load(steps / name)

    assert_near(losses, alone[0])
    assert_near(gradients, alone[1])


def test_sigmoid_of_four_processes_is_that_of_one(steps, tmp_path):
    save_sigmoid(tmp_path)
    check_sigmoid(steps, tmp_path, 4)


# Runs


def train_with_one_bad_gradient(path, overrides):
    """A run in whose first step the gradient of one process is no number."""
    clip = parallel.clip_gradients
    step = 0

    def spoil_and_clip(objective, limit):
        nonlocal step
        step += 1
        if step == 1 and parallel.rank() == 1:
            weight = objective.model.blocks[0].norm1.weight
            weight.grad.to_local().fill_(torch.nan)
        return clip(objective, limit)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "clip_gradients", spoil_and_clip)
        train(path, overrides)


def train_and_note_error(path, overrides, note, roots=None):
    """A run that cannot be: each process adds its message to the name of the note."""
    atomic.PATIENCE = 0.0
    if roots:
        overrides = [*overrides, f"data.root={roots[parallel.rank()]}"]
    with pytest.raises(UserError) as error:
        train(path, overrides)
    note.with_suffix(f".{parallel.rank()}").write_text(str(error.value))


@pytest.fixture(scope="module")
def runs(root, tmp_path_factory):
    """Folder of runs of one recipe, two steps of every loss term, one after another in the same two processes."""
    folder = tmp_path_factory.mktemp("runs")
    path = folder / "recipe.yaml"
    objective = {"contrastive": {"multi_positive": True}}
    for name in ("denoising/text", "denoising/image", "denoising/text+image"):
        objective[name] = {**DENOISING["objective"][name], "keys": "global"}
    recipe = make_recipe(
        root,
        folder,
        steps=2,
        objective=objective,
        mask=DENOISING["mask"],
        run={"batch_size": 16, "log_every": 1, "grad_cache_chunks": 2, "recompute": "blocks", "parallel": "fsdp"},
    )
    write_config(recipe, path)
    roots = [root, write_shards(folder / "second", squares=11)]

    def overrides(name, *others):
        return [f"run.out={folder / name}", *others]

    calls = [
        (train, path, overrides("fsdp")),
        (train, path, overrides("ddp", "run.parallel=ddp")),
        (train, path, overrides("bfloat16", "run.precision=bfloat16")),
        (train, path, overrides("cut", "run.save_every=1"), 1),
        (train, path, overrides("cut", "run.save_every=1")),
        (train_with_one_bad_gradient, path, overrides("bad")),
        (save_sigmoid, folder),
        (train_and_note_error, path, overrides("odd", "run.batch_size=15"), folder / "odd"),
        (train_and_note_error, path, overrides("locked"), folder / "locked"),
        (train_and_note_error, path, overrides("differing"), folder / "differing", roots),
    ]
    (folder / "locked").mkdir()
    with FileLock(folder / "locked" / ".lock"):
        start(2, in_turn, calls)
    return folder


def test_sigmoid_of_two_processes_is_that_of_one(runs, tmp_path):
    save_sigmoid(tmp_path)
    check_sigmoid(runs, tmp_path, 2)


def test_sharded_training_equals_replicated(runs):
    assert_same_losses(runs / "fsdp", runs / "ddp")


def test_weights_gathered_in_bfloat16_train_like_float32(runs):
    assert_same_losses(runs / "bfloat16", runs / "fsdp", rel=0.02)


def test_sharded_resume_is_bit_identical(runs):
    assert_same_weights(runs / "cut" / "model", runs / "fsdp" / "model")
    assert losses(runs / "cut") == losses(runs / "fsdp")


def test_sharded_step_with_nan_gradient_is_left_out(runs):
    first, second = losses(runs / "bad")
    assert first == {}  # nothing of the step counts
    assert second
    assert all(math.isfinite(value) for value in second.values())
    assert read_newest(runs / "bad").optimizer["model.logit_scale"]["step"] == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("odd", r"run\.batch_size 15 .* 2 processes"),
        ("locked", "locked: another run"),
        ("differing", "processes 0 and 1 read different data"),  # a shard of the second machine has a sample less
    ],
)
def test_run_that_cannot_be_ends_in_all_processes(runs, name, message):
    for rank in range(2):
        assert re.search(message, (runs / f"{name}.{rank}").read_text())


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
    """Folders of a run by one process, then two with a share each, then two shares in four; and of a run that one
    process never stopped."""
    folder = tmp_path_factory.mktemp("respread")
    path = folder / "recipe.yaml"
    run = {"batch_size": 16, "log_every": 1, "save_every": 2, "ema": 0.5, "keep": 9}
    write_config(make_recipe(root, folder / "cut", steps=6, run=run), path)
    train(path, [], 2)
    start(2, train, path, ["run.parallel=fsdp"], 4)
    start(4, train, path, ["run.parallel=fsdp", "run.shard=2"])
    train(path, [f"run.out={folder / 'whole'}"])
    return folder / "cut", folder / "whole"


def test_resume_with_other_world_sizes_has_same_losses(respread):
    cut, whole = respread

    assert [step_of(folder) for folder in folders(cut)] == [2, 4, 6]
    assert_same_losses(cut, whole)


def test_resume_with_other_world_sizes_has_same_state(respread):
    cut, whole = map(read_newest, respread)

    for name, tensor in whole.ema.items():
        assert torch.allclose(cut.ema[name], tensor, atol=1e-4), name
    assert cut.optimizer.keys() == whole.optimizer.keys()
    for name, expected in whole.optimizer.items():
        moments = cut.optimizer[name]
        assert moments["step"] == expected["step"] == 6
        assert torch.allclose(moments["exp_avg"], expected["exp_avg"], rtol=1e-2, atol=1e-5), name
