"""Several processes that train one model give what one gives; parts of a batch give what the whole gives."""

import math
import os

import pytest
import torch
from filelock import FileLock
from support.checkpoints import read_newest
from support.processes import loss_and_gradients, make_objective, spread_step, start, train, whole_batch
from support.small_shards import COLOURS, write_shards
from support.training import DENOISING, assert_same_weights, recipe
from torch.nn.parallel import DistributedDataParallel

from onepeace.config import write_config
from onepeace.files import lock
from onepeace.train import parallel, teachers
from onepeace.train.checkpoint_files import folders, step_of
from onepeace.train.log import read_log


@pytest.fixture(scope="module")
def alone():
    """Losses and gradients of the whole batch in one process, computed at once."""
    return loss_and_gradients(make_objective(max_padding=1.0), whole_batch())


def assert_same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name in theirs:
            assert bool(torch.isfinite(ours[name]).all()), name
            scale = max(theirs[name].abs().max().item(), 1e-2)
            # Measured: 6e-7 in the gradient of a projection's bias, a sum of items that cancel but for 0.03.
            assert (ours[name] - theirs[name]).abs().max() <= 1e-5 * scale + 1e-6, name


@pytest.mark.parametrize(("parts", "max_padding"), [(1, 0.1), (3, 1.0)])
def test_accumulation_equals_big_batch(alone, parts, max_padding):
    """Gradient caching and batching by length: the loss and every gradient of the whole batch."""
    assert len(alone[0]) == 7
    objective = make_objective(max_padding=max_padding)
    batch = whole_batch().split(parts, objective.model.adapters)
    assert_same(loss_and_gradients(objective, batch), alone)


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
    assert_same(torch.load(tmp_path / "step.pt"), alone)


def losses(folder):
    return [
        {name: value for name, value in line.items() if name.startswith(("loss", "contrastive", "denoising"))}
        for line in read_log(folder / "log.jsonl")
    ]


def assert_same_losses(folder, other, steps):
    """But for the order of sums."""
    ours, theirs = losses(folder), losses(other)
    assert len(ours) == len(theirs) == steps
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, rel=2e-4), (a, b)


@pytest.fixture(scope="module")
def distributed(root, tmp_path_factory):
    """Three steps of every loss term in two processes, with and without sharding, and the recipe they ran."""
    folder = tmp_path_factory.mktemp("distributed")
    terms = {name: {**term, "keys": "global"} for name, term in DENOISING["objective"].items() if "/" in name}
    objective = {**terms, "contrastive": {"multi_positive": True}}
    run = {"batch_size": 16, "log_every": 1, "grad_cache_chunks": 2}
    made = recipe(root, folder, steps=3, objective=objective, mask=DENOISING["mask"], run=run)
    write_config(made, folder / "recipe.yaml")
    for way in ("ddp", "fsdp"):
        start(2, train, folder / "recipe.yaml", [f"run.out={folder / way}", f"run.parallel={way}"])
    return folder


def test_sharded_training_equals_replicated(distributed):
    assert_same_losses(distributed / "ddp", distributed / "fsdp", 3)


def test_weights_gathered_in_bfloat16_train_like_those_in_float32(distributed):
    options = [f"run.out={distributed / 'bfloat16'}", "run.parallel=fsdp", "run.precision=bfloat16"]
    start(2, train, distributed / "recipe.yaml", options)
    for line, expected in zip(losses(distributed / "bfloat16"), losses(distributed / "fsdp"), strict=True):
        assert line == pytest.approx(expected, rel=0.02)


def train_with_one_bad_gradient(path, overrides):
    """A run in whose second step the gradient of one process is no number."""
    clip = parallel.clip
    count = 0

    def spoil_and_clip(objective, limit):
        nonlocal count
        count += 1
        if count == 2 and parallel.rank() == 1:
            weight = objective.model.blocks[0].norm1.weight
            weight.grad.to_local().fill_(torch.nan)
        return clip(objective, limit)

    parallel.clip = spoil_and_clip
    train(path, overrides)


def test_sharded_step_with_a_gradient_that_is_no_number_is_left_out(distributed):
    out = distributed / "bad"
    start(2, train_with_one_bad_gradient, distributed / "recipe.yaml", [f"run.out={out}", "run.parallel=fsdp"])
    lines = losses(out)
    assert lines[0] == losses(distributed / "fsdp")[0]
    assert lines[1] == {}  # nothing of the step counts
    assert all(math.isfinite(value) for value in lines[2].values())
    assert read_newest(out).optimizer["model.logit_scale"]["step"] == 2


def test_a_batch_that_cannot_be_shared_is_an_error_not_a_hang(distributed):
    with pytest.raises(Exception, match=r"run\.batch_size 15 .* 2 processes; set a multiple"):
        start(2, train, distributed / "recipe.yaml", ["run.batch_size=15", f"run.out={distributed / 'odd'}"])


def train_with_root_of_its_own(path, overrides, roots):
    root = roots[int(os.environ["RANK"])]
    train(path, [*overrides, f"data.root={root}"])


def test_processes_that_read_different_shards_stop(distributed, root, tmp_path):
    """Both read the one shard, which has a sample less on the second machine."""
    write_shards(tmp_path / "there", squares=11)
    options = [f"run.out={distributed / 'differing'}"]
    with pytest.raises(Exception, match=r"processes 0 and 1 do not agree on lane 0 of image\+text"):
        start(2, train_with_root_of_its_own, distributed / "recipe.yaml", options, [root, tmp_path / "there"])


def train_at_once(path, overrides):
    lock.PATIENCE = 0.0
    train(path, overrides)


def test_second_run_in_a_folder_is_refused_in_all_its_processes(distributed):
    """Only the first process of a run locks its folder."""
    out = distributed / "locked"
    out.mkdir()
    with FileLock(out / ".lock"), pytest.raises(Exception, match="locked: another run is writing to this folder"):
        start(2, train_at_once, distributed / "recipe.yaml", [f"run.out={out}"])


def leave_while_gloo_tidies_up():
    """Its thread drops the tensors of the last exchange one by one, and needs Python's lock for each."""
    with parallel.group(torch.device("cpu")):
        model = DistributedDataParallel(torch.nn.Linear(2, 2))
        torch.distributed.all_reduce_coalesced([torch.zeros(1) for _ in range(20_000)])
    del model


def test_a_run_ends_while_gloo_still_tidies_up():
    start(4, leave_while_gloo_tidies_up)


def test_a_run_goes_on_however_it_is_spread(root, tmp_path):
    """One process, two with a share each, two shares in four, two with all of it: the run of one process that was never
    stopped."""
    path, out = tmp_path / "recipe.yaml", tmp_path / "cut"
    run = {"batch_size": 16, "log_every": 1, "save_every": 2, "ema": 0.5, "keep": 9}
    write_config(recipe(root, out, steps=8, run=run), path)
    train(path, [], 2)
    start(2, train, path, ["run.parallel=fsdp"], 4)
    start(4, train, path, ["run.parallel=fsdp", "run.shard=2"], 6)
    start(2, train, path, [])
    train(path, [f"run.out={tmp_path / 'whole'}"])
    assert [step_of(saved) for saved in folders(out)] == [2, 4, 6, 8]
    assert_same_losses(tmp_path / "whole", out, 8)
    ours = read_newest(out)
    theirs = read_newest(tmp_path / "whole")
    for name, tensor in theirs.ema.items():
        assert torch.allclose(ours.ema[name], tensor, atol=1e-4), name
    assert ours.optimizer.keys() == theirs.optimizer.keys()
    for name, values in theirs.optimizer.items():
        moments = ours.optimizer[name]
        assert moments["step"] == values["step"] == 8
        assert torch.allclose(moments["exp_avg"], values["exp_avg"], rtol=1e-2, atol=1e-5), name


def test_sharded_run_that_is_cut_off_goes_on_to_the_bit(distributed):
    overrides = [f"run.out={distributed / 'cut'}", "run.parallel=fsdp", "run.save_every=1"]
    start(2, train, distributed / "recipe.yaml", overrides, 2)
    start(2, train, distributed / "recipe.yaml", overrides)
    assert_same_weights(distributed / "cut" / "model", distributed / "fsdp" / "model")
    assert losses(distributed / "cut") == losses(distributed / "fsdp")


def train_with_teacher(path, asked):
    """A run whose teacher notes in ``asked`` which process had it say something."""

    def brightness(name, modality, output):
        def encode(pictures):
            with asked.open("a") as file:
                file.write(f"{parallel.rank()} {len(pictures)}\n")
            return torch.tensor([[p.convert("L").resize((1, 1)).getpixel((0, 0)) / 255] for p in pictures])

        return encode

    teachers.TEACHERS["brightness"] = brightness
    train(path, [])


def test_the_first_of_several_processes_asks_the_teacher_for_all(root, tmp_path, monkeypatch):
    monkeypatch.setitem(teachers.TEACHERS, "brightness", None)  # known here by name alone
    terms = {"contrastive": {}, "distillation/image": {"weight": 1.0, "teacher": {"library": "brightness", "name": ""}}}
    write_config(recipe(root, tmp_path / "run", steps=1, objective=terms), tmp_path / "recipe.yaml")
    start(2, train_with_teacher, tmp_path / "recipe.yaml", tmp_path / "asked")
    asked = [line.split() for line in (tmp_path / "asked").read_text().splitlines()]
    assert {rank for rank, _ in asked} == {"0"}
    assert sum(int(count) for _, count in asked) == 12 * len(COLOURS)


def test_the_4b_recipe_takes_its_first_step_in_two_processes(root, tmp_path):
    """Shrunken in width, with everything else it says: every loss term, fsdp, blocks computed again."""
    small = ["model.dim=32", "model.embed_dim=32", "model.depth=2", "model.num_heads=2", "model.ffn_dim=64",
             "model.decoder={dim: 16, depth: 1, num_heads: 2, ffn_dim: 32}", f"data.root={root}", "run.batch_size=8",
             "tokenizer={vocab_size: 300}", "run.workers=0", "run.log_every=1", "schedule.steps=1",
             "schedule.warmup_steps=1", "processors.image.size=64", f"run.out={tmp_path}",
             "data.train=[{shards: squares.tar, pair: [image, text]}]"]  # fmt: skip
    start(2, train, "recipes/pretrain/image_text_4b.yaml", small)
    (line,) = read_log(tmp_path / "log.jsonl")
    for name in ("contrastive/text+image", "denoising/image", "denoising/text", "denoising/text+image:image"):
        assert math.isfinite(line[name])
