"""Averaging with the start's weights: what is mixed, what is chosen, and that a whole fine-tuning does both."""

import json

import pytest
import torch
from support.finetuning import write_pictures, write_table

import onepeace
from onepeace.finetune import average
from onepeace.finetune.average import SHARES, choose, mixed
from onepeace.hub.weights import read_state


@pytest.fixture(scope="module")
def table_of_80(tmp_path_factory):
    """80 pictures: 16 are held out, and 13 of the others chosen by."""
    folder = tmp_path_factory.mktemp("pictures")
    rows = [(path.name, f"a {path.stem[:-1]} square") for path in write_pictures(folder, 20)]
    return write_table(folder / "table.csv", ("image", "text"), *rows)


def test_weight_at_a_share():
    start = torch.tensor([1.0, 2.0], dtype=torch.float16)
    new = torch.tensor([3.0, -2.0])
    assert mixed(start, new, 0.25).tolist() == [1.5, 1.0]
    assert mixed(start, new, 0.0).tolist() == [1.0, 2.0]
    assert torch.equal(mixed(start, new, 1.0), new)


@pytest.fixture
def choose_with():
    """Chooses a share with a score by share; the start lacks the bias."""

    def run(scores):
        module = torch.nn.Linear(1, 1)
        new = {name: torch.ones_like(tensor) for name, tensor in module.state_dict().items()}
        start = {"weight": torch.zeros(1, 1)}

        def score():
            assert module.bias.item() == 1.0
            return scores.get(module.weight.item(), 0.0)

        return choose(module, start, new, score, items=9)

    return run


def test_share_is_the_smallest_of_the_best(choose_with):
    average = choose_with({0.5: 1.0, 0.75: 1.0})
    assert average.share == 0.5
    assert average.scores == {"0.0": 0.0, "0.25": 0.0, "0.5": 1.0, "0.75": 1.0, "1.0": 0.0}
    assert tuple(map(float, average.scores)) == SHARES


def test_share_of_no_gain_is_zero(choose_with):
    average = choose_with({})
    assert average.share == 0.0
    assert "kept as they were" in average.described()


LORA = ("lora={rank: 4, alpha: 32}", "freeze={except: [logit_scale]}")


@pytest.mark.usefixtures("no_near_copies")
@pytest.mark.parametrize("way", [(), pytest.param(LORA, marks=pytest.mark.slow)], ids=["full", "lora"])
def test_average_of_a_fine_tuning(random_folder, table_of_80, finetune, out, monkeypatch, way):
    """The share of a half is made the best one, and the process dies before the model is written."""
    scores = iter([0.1, 0.2, 0.4, 0.3, 0.2] * 2)
    monkeypatch.setattr(average, "score", lambda answers: next(scores))
    with monkeypatch.context() as patch:
        patch.setattr(average, "mixed", lambda *_: 1 / 0)
        finetune(table_of_80, *way, code=1)
    tuned = read_state(out / "tuned")

    err = finetune(table_of_80, *way).err

    assert json.loads((out / "average.json").read_text())["share"] == 0.5
    choice = "50% of the new weights and 50% of the initial ones, chosen on 13 files"
    assert choice in err
    assert choice in (out / "report.html").read_text()
    assert choice in (out / "model" / "MODEL_CARD.md").read_text()
    start, averaged = read_state(random_folder), read_state(out / "model")
    changed = [name for name in averaged if not torch.equal(tuned[name], start[name])]
    assert len(changed) >= 4
    for name in changed:
        assert torch.allclose(averaged[name], (start[name] + tuned[name]) / 2, atol=1e-6), name
    assert onepeace.load(out / "model").encode_text(["a red square"]).isfinite().all()
    assert not (out / "tuned").exists()
    assert not list(out.glob("step-*"))  # nothing goes on from them
    finetune(table_of_80, *way)  # nothing is chosen again, nor trained
