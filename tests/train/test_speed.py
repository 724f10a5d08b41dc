"""What a run says of its speed: tokens a second, the share of the card's peak, and a trace."""

import gzip
import json
from collections import Counter

import pytest
import torch
from support.training import make_recipe

from onepeace.cards import CARDS, card_called
from onepeace.errors import UserError
from onepeace.train import logging, trainer
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


def test_share_of_the_peak(monkeypatch):
    """A product of 4 x 8 and 8 x 6 and its backward pass are 3 x 2 x 4 x 8 x 6 FLOPs, counted once."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    utilisation = Utilisation(torch.device("cuda"), bfloat16=True, is_compiled=False)
    assert utilisation.peak == CARDS["h100"].bfloat16
    utilisation.peak = 1000.0
    left = torch.ones(4, 8, requires_grad=True)
    right = torch.ones(8, 6, requires_grad=True)
    for tokens in (4, 400):
        with utilisation.counting(tokens):
            (left @ right).sum().backward()
    flops_per_token = 3 * 2 * 4 * 8 * 6 / 4
    assert utilisation.share(2.0) == {"mfu": pytest.approx(flops_per_token * 2.0 / 1000.0)}


@pytest.mark.parametrize("is_compiled", [False, True])
def test_share_is_left_out_where_it_is_not_known(monkeypatch, is_compiled):
    name = "NVIDIA H100 80GB HBM3" if is_compiled else "NVIDIA RTX A6000"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    utilisation = Utilisation(torch.device("cuda"), bfloat16=True, is_compiled=is_compiled)
    with utilisation.counting(1):
        torch.ones(2, 2) @ torch.ones(2, 2)
    assert utilisation.share(1.0) == {}


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
