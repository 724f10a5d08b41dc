"""Several processes that train one model give what one gives; parts of a batch give what the whole gives."""

import math

import pytest
import torch
from processes import loss_and_gradients, make_objective, spread_step, start, train, whole_batch
from test_train import DENOISING, recipe, root  # noqa: F401

from onepeace.errors import UserError
from onepeace.train import checkpoint, loop
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
            assert (ours[name] - theirs[name]).abs().max() <= 1e-5 * scale + 1e-7, name


@pytest.mark.parametrize("options", [{"max_padding": 0.1}, {"accumulate": 4}, {"accumulate": 3, "max_padding": 1.0}])
def test_accumulation_equals_big_batch(alone, options):
    """Gradient caching and batching by length: the loss and every gradient of the whole batch."""
    assert len(alone[0]) == 7
    assert_same(loss_and_gradients(make_objective(**options), whole_batch()), alone)


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "accumulate"), [(2, 1), (4, 2)])
def test_processes_equal_one(alone, ranks, accumulate, tmp_path):
    start(ranks, spread_step, tmp_path / "found.pt", accumulate)
    assert_same(torch.load(tmp_path / "found.pt"), alone)


def losses(folder):
    return [
        {name: value for name, value in line.items() if name.startswith(("loss", "contrastive", "denoising"))}
        for line in read_log(folder / "log.jsonl")
    ]


@pytest.fixture(scope="module")
def distributed(root, tmp_path_factory):  # noqa: F811
    """Six steps of every loss term in four processes, with and without sharding, and the recipe they ran."""
    folder = tmp_path_factory.mktemp("distributed")
    terms = {name: {**term, "keys": "global"} for name, term in DENOISING["objective"].items() if "/" in name}
    objective = {**terms, "contrastive": {"equal_captions": True}}
    run = {"batch_size": 16, "workers": 0, "log_every": 1, "save_every": 3, "precision": "float32", "accumulate": 2}
    made = recipe(root, folder, steps=6, objective=objective, mask=DENOISING["mask"], run={**run, "out": str(folder)})
    loop.write_config(made, folder / "recipe.yaml")
    for way in ("ddp", "fsdp"):
        start(4, train, folder / "recipe.yaml", [f"run.out={folder / way}", f"run.parallel={way}"])
    return folder


@pytest.mark.slow
def test_sharded_training_equals_replicated(distributed):
    replicated, sharded = losses(distributed / "ddp"), losses(distributed / "fsdp")
    assert len(replicated) == 6
    for a, b in zip(replicated, sharded, strict=True):
        assert a == pytest.approx(b, rel=2e-4), (a, b)
    assert replicated[-1]["loss"] < replicated[0]["loss"]


@pytest.mark.slow
def test_four_processes_go_on_as_two(distributed):
    """From the third step's checkpoint of four; the losses are those of one process that was never stopped."""
    # Masks are drawn by process; without them all is the same.
    path, out = distributed / "recipe.yaml", distributed / "cut"
    plain = ["objective={contrastive: {equal_captions: true}}", "mask={}", "run.parallel=fsdp"]
    start(4, train, path, [*plain, f"run.out={out}"], 4)
    (saved,) = checkpoint.files(out)
    assert len(list(saved.glob("*.safetensors"))) == 4
    start(2, train, path, [*plain, f"run.out={out}"])
    train(path, [*plain, f"run.out={distributed / 'whole'}"])
    whole, cut = losses(distributed / "whole"), losses(out)
    assert len(whole) == len(cut) == 6
    for a, b in zip(whole, cut, strict=True):
        assert a == pytest.approx(b, rel=2e-4), (a, b)


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_is_an_error_not_a_hang(distributed):
    with pytest.raises(Exception, match=r"run\.batch_size 15 .* 2 processes; set a multiple"):
        start(2, train, distributed / "recipe.yaml", ["run.batch_size=15", f"run.out={distributed / 'odd'}"])


def test_a_run_goes_on_in_the_way_it_was_spread(tmp_path):
    state = loop.State(torch.nn.Linear(2, 2), None, {}, sharded=True)
    saved = checkpoint.Checkpoint(tmp_path / "step-1.safetensors", 1, {}, {}, {}, "", {}, None, {})
    with pytest.raises(UserError, match=r"run\.parallel=ddp"):
        state.restore(saved)


@pytest.mark.slow
def test_the_4b_recipes_take_their_first_step_in_two_processes(root, tmp_path):  # noqa: F811
    """Shrunken in width, with everything else they say: every loss term, fsdp, blocks computed again."""
    small = ["model.dim=32", "model.embed_dim=32", "model.depth=2", "model.num_heads=2", "model.ffn_dim=64",
             "model.decoder={dim: 16, depth: 1, num_heads: 2, ffn_dim: 32}", f"data.root={root}", "run.batch_size=8",
             "tokenizer={vocab_size: 300}", "run.workers=0", "run.log_every=1", "schedule.steps=1",
             "schedule.warmup_steps=1", "schedule.warmup_ratio=null", "media.image.size=64"]  # fmt: skip
    squares = "data.train=[{shards: squares.tar, pair: [image, text]}]"
    tones = "data.train=[{shards: tones.tar, pair: [audio, text]}]"
    audio = ["model.adapters.audio.pos_groups=4", "model.adapters.audio.convs=[[16, 10, 5], [16, 8, 8]]"]
    first, second = tmp_path / "first", tmp_path / "second"
    start(2, train, "recipes/pretrain/image_text_4b.yaml", [*small, squares, f"run.out={first}"])
    stage2 = [*audio, tones, f"run.out={second}", f"model.from={first}"]
    start(2, train, "recipes/pretrain/audio_text_4b.yaml", [*small[5:-1], *stage2])
    terms = [
        {"contrastive/text+image", "denoising/image", "denoising/text", "denoising/text+image:image"},
        {"contrastive/text+audio", "denoising/audio", "denoising/text+audio:audio", "denoising/text+audio:text"},
    ]
    for folder, names in zip((first, second), terms, strict=True):
        (line,) = read_log(folder / "log.jsonl")
        assert all(math.isfinite(line[name]) for name in names)
