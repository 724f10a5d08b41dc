import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.golden_cases import ADAPTERS
from support.hub_layouts import to_original
from torch import nn

from onepeace.config import MaskedDecoderConfig, ModelConfig
from onepeace.errors import UserError
from onepeace.model import OnePeace
from onepeace.train.optim import freeze, make_optimizer, parameter_groups
from onepeace.train.schedule import SCHEDULES, ScheduleConfig, learning_rate
from onepeace.train.sections import OptimConfig, OptimGroup

DECODER = MaskedDecoderConfig(
    dim=24,
    depth=2,
    num_heads=3,
    ffn_dim=48,
    options={"audio": {"num_positions": 1026}},
)
GOLDEN = Path(__file__).parents[1] / "golden" / "optim"


def golden_json(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())


def network(bias_per_block=False, decoder=DECODER):
    """The modules the numbers of the original were computed with, without memory."""
    config = ModelConfig(
        dim=32,
        embed_dim=32,
        depth=3,
        num_heads=4,
        ffn_dim=64,
        bias_per_block=bias_per_block,
        adapters={key: ADAPTERS[key] for key in ("text", "image", "audio")},
        projections=("text", "image", "audio"),
        decoder=decoder,
    )
    with torch.device("meta"):
        return OnePeace(config)


def settings_by_name(module, **options):
    """Factor of the learning rate, and weight decay, of each parameter."""
    settings = {}
    for group in parameter_groups(module, OptimConfig(**options)):
        for name, _ in group["params"]:
            settings[name] = (group["lr_scale"], group["weight_decay"])
    return settings


# Parameters


@pytest.mark.parametrize(
    ("case", "model", "layer_decay"),
    [
        ("pretrain", {}, None),
        ("retrieval_layer_decay_0.9", {"bias_per_block": True, "decoder": None}, 0.9),
    ],
)
def test_parameter_groups_match_golden(case, model, layer_decay):
    golden = golden_json("parameter_groups")[case]

    settings = settings_by_name(network(**model), layer_decay=layer_decay)

    assert len(settings) > 100
    for name, (scale, decay) in settings.items():
        expected_scale, expected_decay = golden.pop(to_original(name))
        if name == "decoder.pos_embed.image.weight":
            # The original decays these positions: a comma is missing in its list.
            assert expected_decay == 0.05
            expected_decay = 0
        assert scale == pytest.approx(expected_scale)
        assert decay == expected_decay
    for name in golden:  # parameters that nothing uses
        assert "mask_embedding" in name or name.startswith("decoder_wrapper")


@pytest.fixture
def small():
    inner = nn.ModuleDict({"norm": nn.LayerNorm(4), "c": nn.Linear(4, 2)})
    return nn.ModuleDict({"a": nn.Linear(3, 4), "b": inner})


def test_groups_use_first_pattern_that_matches(small):
    groups = {
        "a.weight": OptimGroup(lr_scale=0.1),
        "[ab]*": OptimGroup(lr_scale=0.5, weight_decay=0.2),
    }

    settings = settings_by_name(small, weight_decay=0.05, groups=groups)

    assert settings["a.weight"] == (0.1, 0.05)
    assert settings["b.c.weight"] == (0.5, 0.2)
    assert settings["a.bias"] == (0.5, 0.0)  # does not decay, whatever the decay is


def test_pattern_that_matches_no_parameter_is_an_error(small):
    with pytest.raises(UserError, match=r"'head\.\*' matches none of 6"):
        settings_by_name(small, groups={"head.*": OptimGroup(lr_scale=0.1)})


def trainable(module):
    return [name for name, parameter in module.named_parameters() if parameter.requires_grad]


def test_freeze_patterns(small):
    freeze(small, ["a.*", "*.bias"])
    assert trainable(small) == ["b.norm.weight", "b.c.weight"]

    freeze(small, [])
    assert len(trainable(small)) == 6


def test_freeze_all_except(small):
    freeze(small, {"except": ["a.*"]})

    assert trainable(small) == ["a.weight", "a.bias"]
    assert settings_by_name(small).keys() == {"a.weight", "a.bias"}


# Learning rates


@pytest.mark.parametrize(
    ("case", "schedule", "peak"),
    [
        ("warmup_updates=30,max_update=200,lr=5e-4,min=1e-6", ScheduleConfig(steps=200, warmup_steps=30), 5e-4),
        ("warmup_ratio=0.1,total=120,lr=1e-4,min=1e-6", ScheduleConfig(steps=120, warmup_ratio=0.1), 1e-4),
    ],
)
def test_learning_rate_matches_golden(case, schedule, peak):
    golden = golden_json("lr_schedules")[case]

    rates = [learning_rate(step, peak, schedule) for step in range(schedule.steps)]

    assert rates == pytest.approx(golden[:-1], rel=1e-9)
    # At the very end the original starts another period at a tenth; we stay.
    assert learning_rate(schedule.steps, peak, schedule) == 1e-6
    assert learning_rate(9 * schedule.steps, peak, schedule) == 1e-6


def rates_of(schedule, count):
    return [learning_rate(step, 0.8, schedule) for step in range(count)]


def test_linear_rate():
    schedule = ScheduleConfig(steps=10, name="linear", warmup_steps=2, min_lr=0.0)
    assert rates_of(schedule, 11) == pytest.approx([0, 0.4, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0])


def test_wsd_rate_stays_at_peak_until_decay():
    schedule = ScheduleConfig(steps=10, name="wsd", warmup_steps=2, decay_ratio=0.4, min_lr=0.0)
    assert rates_of(schedule, 12) == pytest.approx([0, 0.4, 0.8, 0.8, 0.8, 0.8, 0.8, 0.6, 0.4, 0.2, 0, 0])


def test_schedule_of_ones_own(monkeypatch):
    """The inverse square root of Vaswani et al., arXiv 1706.03762."""
    monkeypatch.setitem(SCHEDULES, "inverse_sqrt", lambda step, schedule: (schedule.warmup / step) ** 0.5)
    schedule = ScheduleConfig(steps=40, name="inverse_sqrt", warmup_steps=4, min_lr=0.0)

    rates = rates_of(schedule, 17)

    assert rates[4] == 0.8
    assert rates[16] == pytest.approx(0.4)


# Optimizers

EPS = 1e-3
BETAS = (0.9, 0.98)


def take_golden_steps(golden, eps_of_step):
    """The parameter after each of three steps of AdamW."""
    model = nn.ParameterDict({"p": nn.Parameter(golden["param0"].clone())})
    config = OptimConfig(lr=1e-2, betas=BETAS, eps=EPS, weight_decay=0.05)
    optimizer = make_optimizer(model, config)
    parameters = []
    for step in range(1, 4):
        model["p"].grad = golden[f"grad{step - 1}"].clone()
        optimizer.param_groups[0]["eps"] = eps_of_step(step)
        optimizer.step()
        parameters.append(model["p"].detach().clone())
    return parameters


def test_adamw_matches_golden_but_for_eps():
    """The original adds eps to sqrt(v) before the bias correction; dividing eps by it gives its numbers exactly."""
    golden = load_file(GOLDEN / "adam.safetensors")

    def corrected_eps(step):
        return EPS / math.sqrt(1 - BETAS[1] ** step)

    corrected = take_golden_steps(golden, corrected_eps)
    plain = take_golden_steps(golden, lambda step: EPS)

    for step, parameter in enumerate(corrected, 1):
        assert torch.allclose(parameter, golden[f"param{step}"], atol=1e-6, rtol=0)
    # So the test would see another formula; at the default eps of 1e-8 the difference is nothing.
    assert not torch.allclose(plain[-1], golden["param3"], atol=1e-4, rtol=0)


def test_muon_trains_matrices_of_blocks():
    """AdamW trains everything else."""
    model = network().to_empty(device="cpu")
    parameters = dict(model.named_parameters())
    for parameter in parameters.values():
        nn.init.zeros_(parameter)
        parameter.grad = torch.randn_like(parameter)
    config = OptimConfig(name="muon", betas=BETAS, options={"momentum": 0.8})
    optimizer = make_optimizer(model, config)

    optimizer.step()

    for name, parameter in parameters.items():
        is_matrix_of_block = parameter.ndim == 2 and name.startswith(("blocks.", "decoder.blocks."))
        assert ("momentum_buffer" in optimizer.state[parameter]) == is_matrix_of_block, name
    assert {"blocks.0.attn.q.weight", "decoder.blocks.1.attn.proj.weight"} <= parameters.keys()
    for group in optimizer.param_groups:
        assert group["momentum"] == 0.8
        assert group["betas"] == BETAS
