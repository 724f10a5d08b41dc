"""What `onepeace train RECIPE --plan` says, against real steps at small sizes: bytes that backward holds, and FLOPs."""

import pytest
import torch

from onepeace.bench.items import item_batch
from onepeace.bench.live import Live
from onepeace.cli import main
from onepeace.config import build
from onepeace.cost import plan
from onepeace.cost.flops import DryRun
from onepeace.data.masking import draw_masks
from onepeace.errors import UserError
from onepeace.model import OnePeace
from onepeace.train.objective import Objective
from onepeace.train.optim import freeze, make_optimizer
from onepeace.train.recipe import Recipe, read_recipe
from onepeace.train.start import make_config

SMALL = {"dim": 64, "embed_dim": 32, "depth": 3, "num_heads": 4, "ffn_dim": 160}
LARGER = {"dim": 128, "embed_dim": 64, "depth": 5, "num_heads": 4, "ffn_dim": 352}
DENOISING = {"scale": 2.5, "label_smoothing": 0.1}
TEXT = {"vocab_size": 300, "num_positions": 40, "num_buckets": 8}
STAGES = {
    "image": {
        "objective": {"contrastive": {}, "denoising/text": DENOISING, "denoising/image": DENOISING,
                      "denoising/text+image": DENOISING},
        "mask": {"text": {"unit": "token", "unimodal": 0.15, "joint": 0.4},
                 "image": {"unit": "patch", "unimodal": 0.75, "joint": 0.6875}},
    },
    "audio": {
        "objective": {"contrastive": {}, "denoising/audio": {**DENOISING, "teacher": "joint"},
                      "denoising/text+audio": DENOISING},
        "mask": {"text": {"unit": "token", "joint": 0.4},
                 "audio": {"unit": "span", "unimodal": 0.55, "joint": 0.45}},
        "freeze": {"except": ["adapters.audio.*", "norms.audio.*", "blocks.*.ffn.audio.*", "heads.audio.*",
                              "logit_scale", "decoder.*"]},
    },
}  # fmt: skip


def recipe(other, size, pixels=160, batch=4, **run):
    adapters = {
        "text": TEXT,
        "image": {"patch_size": 16, "grid": 10, "bias_grid": 10},
        "audio": {"stem": "wave", "convs": [[24, 10, 5], [24, 8, 8], [24, 8, 8]], "num_buckets": 8, "pos_groups": 4},
    }
    decoder = {"dim": size["dim"] // 2, "depth": 2, "num_heads": 2, "ffn_dim": size["dim"]}
    content = {
        "model": {"size": "tiny", **size, "decoder": decoder, "adapters": adapters, "modalities": ["text", other]},
        "processors": {"text": {"max_tokens": 20}, "image": {"size": pixels}, "audio": {"max_seconds": 2}},
        "data": {"train": [{"shards": "x.tar", "pair": [other, "text"]}]},
        "schedule": {"steps": 10},
        "run": {"out": "x", "batch_size": batch, **run},
        **STAGES[other],
    }
    return build(Recipe, content, "recipe")


def objective_and_batch(wanted, other):
    config = make_config(wanted)
    objective = Objective(OnePeace(config.model), wanted.objective, {}, wanted.run.grad_cache_chunks)
    model = objective.model
    if wanted.freeze:
        freeze(model, wanted.freeze)
    count = wanted.batch_size(wanted.data.train[0].name)
    size = {"image": wanted.processors["image"]["size"], "audio": wanted.processors["audio"]["max_seconds"]}[other]
    names = [str(i) for i in range(count)]
    batch = {"text": item_batch(config, "text", 21, count), other: item_batch(config, other, size, count)}
    masks = {
        key: draw_masks(rates, model.adapters[key].token_lengths(batch[key]), torch.Generator().manual_seed(0))
        for key, rates in wanted.mask.items()
    }
    return objective, {
        **batch, "masks": masks, "keys": names, "captions": names, "names": [[name] for name in names], "pair": "x",
    }  # fmt: skip


def autocast(wanted):
    return torch.autocast("cpu", torch.bfloat16, enabled=wanted.run.precision == "bfloat16")


@pytest.mark.parametrize("other", ["image", "audio"])
@pytest.mark.parametrize(("size", "precision"), [(SMALL, "float32"), (SMALL, "bfloat16"), (LARGER, "bfloat16")])
def test_plan_is_near_what_a_step_holds(other, size, precision):
    wanted = recipe(other, size, precision=precision)
    objective, batch = objective_and_batch(wanted, other)
    weights = {parameter.untyped_storage().data_ptr() for parameter in objective.parameters()}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage
        return tensor

    optimizer = make_optimizer(objective.model, wanted.optim)
    with DryRun() as counter:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast(wanted):
            loss = objective(batch)["loss"]
        held = sum(storage.nbytes() for storage in saved.values())
        loss.backward()
    optimizer.step()

    found = plan.make_plan(wanted, device="cpu")
    memory = found.memory["ddp", False]
    parameters = list(objective.parameters())
    states = [tensor for state in optimizer.state.values() for tensor in state.values()]
    assert memory.parameters == sum(p.nbytes for p in parameters)
    assert memory.gradients == pytest.approx(sum(p.grad.nbytes for p in parameters if p.grad is not None), rel=0.01)
    assert memory.optimizer == pytest.approx(sum(tensor.nbytes for tensor in states), rel=0.01)
    # Measured: 1.06 to 1.08 of it. What is made again of one block is planned for, and not held yet.
    assert memory.activations + memory.copies + memory.losses == pytest.approx(held, rel=0.1)
    if precision == "bfloat16":  # in float32 these lengths take torch's fused CPU kernel, whose FLOPs it does not tell
        assert found.flops_per_step == pytest.approx(counter.flops, rel=0.002)


@pytest.mark.parametrize("other", ["image", "audio"])
@pytest.mark.parametrize("run", [{}, {"checkpoint_activations": True}, {"grad_cache_chunks": 4}])
def test_plan_is_near_the_peak_of_a_step(other, run):
    wanted = recipe(other, {**SMALL, "depth": 6}, batch=16, precision="bfloat16", **run)
    objective, batch = objective_and_batch(wanted, other)
    if wanted.run.checkpoint_activations:
        objective.model.set_grad_checkpointing()
    with Live([*objective.parameters(), batch["text"], batch[other]]) as live:
        with autocast(wanted):
            loss = objective(batch)["loss"]
        loss.backward()
    memory = plan.make_plan(wanted, device="cpu").memory["ddp", wanted.run.checkpoint_activations]
    ratio = (memory.activations + memory.copies + memory.losses) / live.peak
    assert ratio == pytest.approx(1, abs=0.15)


def test_memory_by_way_processes_and_parts():
    alone = plan.make_plan(recipe("image", SMALL, batch=16))
    four = plan.make_plan(recipe("image", SMALL, batch=16, ema=0.99), processes=4)
    parts = plan.make_plan(recipe("image", SMALL, batch=16, grad_cache_chunks=4))
    ddp, fsdp = four.memory["ddp", False], four.memory["fsdp", False]
    assert alone.memory["ddp", False].exchange == 0
    assert ddp.exchange == ddp.gradients == ddp.average
    assert fsdp.optimizer == pytest.approx(ddp.optimizer / 4, abs=1)
    assert 0 < fsdp.exchange < ddp.parameters + ddp.gradients
    whole = alone.memory["ddp", False]
    assert whole.activations == pytest.approx(4 * ddp.activations, rel=0.02)
    assert parts.memory["ddp", False].activations == ddp.activations
    assert parts.memory["ddp", False].losses == whole.losses  # of all parts
    # 0.67 here: a block keeps little beside its input since it makes the rest again itself.
    assert alone.memory["ddp", True].activations < 0.7 * whole.activations
    forward_again = parts.flops_per_step / alone.flops_per_step
    assert 1.25 < forward_again < 1.45
    total, trained = alone.memory["ddp", False].parameters, whole.optimizer // 8
    assert alone.file == total + 8 * trained
    assert four.file == total + 12 * trained


def test_checkpointed_blocks_are_computed_again():
    plain, again = (plan.make_plan(recipe("image", SMALL, checkpoint_activations=flag)) for flag in (False, True))
    assert 1.15 < again.flops / plain.flops < 1.34
    assert again.chosen == ("ddp", True)
    assert plain.flops == 10 * plain.flops_per_step


def test_plan_command_prints_sums_and_allocates_no_model(capsys):
    torch.set_default_dtype(torch.float32)
    assert main(["train", "recipes/pretrain/audio_text_4b.yaml", "--plan", "--processes", "96", "model.depth=2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "3072 audio+text a step on 96 GPUs, bfloat16"
    rows = {line[:20].strip(): line[20:].split() for line in lines}
    columns = [rows[label] for label in ("parameters", "gradients", "optimizer", "bfloat16 weights", "activations")]
    assert {len(row) for row in columns} == {4}
    parts = [row for label, row in rows.items() if label in
             ("parameters", "gradients", "optimizer", "averaged weights", "buckets, gathered", "bfloat16 weights",
              "activations", "kept for losses")]  # fmt: skip
    sums = next(line[20:].split() for line in lines if line.startswith("sum") and len(line.split()) == 5)
    for i, total in enumerate(sums):
        assert float(total) == pytest.approx(sum(float(row[i]) for row in parts), abs=0.05)
    assert "fsdp, checkpointed *" in "\n".join(lines)


def test_start_that_is_not_there_needs_a_size(tmp_path):
    wanted = read_recipe("recipes/pretrain/base_audio_text.yaml", ["model.from=" + str(tmp_path)])
    assert plan.planned_config(wanted).model.dim == 768
    del wanted.model["size"]
    with pytest.raises(UserError, match=r"is not there yet; add model\.size"):
        plan.planned_config(wanted)


def test_bad_number_of_processes_is_usage(capsys):
    assert main(["train", "recipes/pretrain/base_audio_text.yaml", "--plan", "--processes", "0"]) == 2
    assert "--processes 0" in capsys.readouterr().err
