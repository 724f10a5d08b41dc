"""What a run says of its speed: tokens a second, the share of the card's peak, and a trace."""

import gzip
import json
from collections import Counter
from contextlib import nullcontext

import pytest
import torch
from support.training import make_recipe
from torch.utils.checkpoint import checkpoint

from onepeace.cards import CARDS, card_called
from onepeace.errors import UserError
from onepeace.train import logging, speed, trainer
from onepeace.train.logging import Averages, read_log
from onepeace.train.speed import TRACE, Utilisation


def test_tokens_a_second(monkeypatch):
    now = [10.0]
    monkeypatch.setattr(logging.time, "perf_counter", lambda: now[0])
    averages = Averages()
    averages.tokens = Counter(text=30, image=400)
    now[0] = 14.0
    _, speed = averages.take()
    assert speed["tokens_per_second/text"] == 7.5
    assert speed["tokens_per_second/image"] == 100
    assert not averages.tokens


def product(left, right):
    """A product of 4 x 8 and 8 x 6 numbers: 2 x 4 x 8 x 6 FLOPs."""
    return left @ right


@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shares_of_the_peak(monkeypatch, dtype, is_compiled):
    """Products are counted in one step, with their backward passes and apart from what is recomputed."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    utilisation = Utilisation(torch.device("cuda"))
    peak = CARDS["h100"].bfloat16 if dtype == torch.bfloat16 else CARDS["h100"].float32
    compiled = torch.compile(product, backend="eager") if is_compiled else product
    left = torch.ones(4, 8, dtype=dtype, requires_grad=True)
    right = torch.ones(8, 6, dtype=dtype, requires_grad=True)
    stance = torch.compiler.set_stance("force_eager") if is_compiled else nullcontext()
    for tokens in (4, 400):
        with stance, utilisation.counting(tokens):
            checkpoint(compiled, left, right, use_reentrant=False, early_stop=False).sum().backward()

    shares = utilisation.shares(0.01 * peak)
    flops = 2 * 4 * 8 * 6 / 4
    assert shares == {"mfu": pytest.approx(0.01 * 3 * flops), "hfu": pytest.approx(0.01 * 4 * flops)}


def test_shares_are_left_out_where_they_are_not_known(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA RTX A6000")
    utilisation = Utilisation(torch.device("cuda"))
    with utilisation.counting(1):
        product(torch.ones(2, 2), torch.ones(2, 2))
    assert utilisation.shares(1.0) == {}


@pytest.mark.parametrize("compile", [False, True])
def test_counting_changes_no_step(root, tmp_path, monkeypatch, compile):
    """Under run.compile, a step is computed once more to be counted; what is trained stays the same."""
    files = []
    for name in ("tesla t4", "h100"):
        monkeypatch.setattr(speed, "card_name", lambda _, name=name: name)
        run = {"batch_size": 4, "log_every": 1, "compile": compile}
        folder = trainer.train(make_recipe(root, tmp_path / name, steps=2, run=run))
        (line, _) = read_log(folder.parent / "log.jsonl")
        assert ("mfu" in line) == ("hfu" in line) == (name == "h100")
        files.append((folder / "model.safetensors").read_bytes())

    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA H100 PCIe", None),
        ("Tesla T4", None),
    ],
)
def test_card_by_the_name_of_its_driver(name, key):
    assert card_called(name) == CARDS.get(key)


def test_run_logs_tokens_and_traces_two_steps(root, tmp_path, monkeypatch):
    tokens = Counter()
    take = Averages.take

    def take_and_count(averages, **options):
        tokens.update(averages.tokens)
        return take(averages, **options)

    monkeypatch.setattr(Averages, "take", take_and_count)
    run = {"batch_size": 4, "log_every": 1, "profile": [2, 3]}
    recipe = make_recipe(root, tmp_path / "run", steps=4, run=run)
    trainer.train(recipe)
    lines = read_log(tmp_path / "run/log.jsonl")
    assert min(line["tokens_per_second/image"] for line in lines) > 0
    assert tokens["image"] == 4 * 4 * (3 * 3 + 1)  # steps of four pictures of 3 x 3 patches, with CLS

    events = json.loads(gzip.decompress((tmp_path / "run" / TRACE).read_bytes()))["traceEvents"]
    names = {event["name"] for event in events}
    assert "aten::mm" in names
    assert sum(name.startswith("ProfilerStep#") for name in names) == 2


def test_trace_that_ends_before_it_begins(root, tmp_path):
    with pytest.raises(UserError, match=r"run\.profile \[3, 2\]"):
        make_recipe(root, tmp_path, steps=4, run={"profile": [3, 2]})
