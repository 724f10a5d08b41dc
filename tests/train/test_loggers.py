"""The numbers of a run in TensorBoard, Weights & Biases and MLflow; the last two are stand-ins that take notes."""

import sys
from types import SimpleNamespace

import pytest
from support.training import recipe

from onepeace.errors import UserError
from onepeace.train import loop
from onepeace.train.log import read_log
from onepeace.train.loggers import LOGGERS
from onepeace.train.model_config import make_config


def train_in_two_parts(root, out, logger):
    """Five steps, stopped after the third and resumed from the second; the lines of the log."""
    run = {"batch_size": 8, "log_every": 1, "save_every": 2, "loggers": [logger]}
    loop.train(recipe(root, out, steps=5, run=run), stop_at=3)
    loop.train(recipe(root, out, steps=5, run=run))
    return read_log(out / "log.jsonl")


def test_tensorboard_gets_the_losses_and_only_once(root, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lines = train_in_two_parts(root, tmp_path, "tensorboard")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    for name in ("loss", "contrastive/text+image"):
        points = [(event.step, pytest.approx(event.value)) for event in events.Scalars(name)]
        assert points == [(line["step"], line[name]) for line in lines]


class FakeWandb:
    """The part of wandb that is used."""

    def __init__(self):
        self.runs = []
        self.logged = {}
        self.finished = 0

    def init(self, **options):
        self.runs.append(options)
        return self

    def log(self, values, step):
        self.logged.setdefault(step, values)

    def finish(self):
        self.finished += 1


def test_wandb_gets_every_step_in_one_run(root, tmp_path, monkeypatch):
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    lines = train_in_two_parts(root, tmp_path / "birds", "wandb")
    first, second = wandb.runs
    assert first["id"] == second["id"]
    assert first["resume"] == "allow"
    assert first["name"] == "birds"
    assert first["config"]["schedule"]["steps"] == 5
    assert sorted(wandb.logged) == [1, 2, 3, 4, 5]
    assert {"step": 5, **wandb.logged[5]} == lines[-1]
    assert wandb.finished == 2


class FakeMLflow:
    """The part of mlflow that is used."""

    def __init__(self):
        self.started = []
        self.logged = {}
        self.files = {}
        self.ended = 0

    def start_run(self, **options):
        self.started.append(options)
        return SimpleNamespace(info=SimpleNamespace(run_id="run-1"))

    def log_dict(self, content, name):
        self.files[name] = content

    def log_metrics(self, values, step):
        self.logged[step] = values

    def end_run(self):
        self.ended += 1


def test_mlflow_gets_every_step_in_one_run(root, tmp_path, monkeypatch):
    mlflow = FakeMLflow()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    lines = train_in_two_parts(root, tmp_path / "birds", "mlflow")
    assert mlflow.started == [{"run_name": "birds"}, {"run_id": "run-1"}]
    assert mlflow.files["recipe.yaml"]["schedule"]["steps"] == 5
    assert mlflow.logged[5]["loss"] == lines[-1]["loss"]
    assert mlflow.logged[5]["contrastive/text-image"] == lines[-1]["contrastive/text+image"]
    assert sorted(mlflow.logged) == [1, 2, 3, 4, 5]
    assert mlflow.ended == 2


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_package_is_told_before_data_is_read(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    extra = "track" if name == "tensorboard" else name
    with pytest.raises(UserError, match=rf'needs {name}: pip install "onepeace\[{extra}\]"'):
        make_config(recipe(tmp_path / "nowhere", tmp_path, run={"loggers": [name]}))


def test_an_unknown_logger_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"run\.loggers: 'tensorbord' is not known; did you mean tensorboard\?"):
        recipe(tmp_path, tmp_path, run={"loggers": ["tensorbord"]})


def test_a_logger_that_cannot_start_is_one_line(root, tmp_path, monkeypatch):
    class Offline:
        def __init__(self, folder, step, recipe):
            raise ConnectionError("no route\nto host")

        @classmethod
        def check(cls):
            pass

    monkeypatch.setitem(LOGGERS, "offline", Offline)
    with pytest.raises(UserError, match=r"run\.loggers: offline cannot start \(no route to host\); mend it"):
        loop.train(recipe(root, tmp_path, steps=1, run={"loggers": ["offline"]}))


def test_a_logger_that_fails_in_a_step_does_not_end_the_run(root, tmp_path, monkeypatch, caplog):
    class Shaky(FakeWandb):
        def log(self, values, step):
            if step == 2:
                raise RuntimeError("no route")
            super().log(values, step)

    wandb = Shaky()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    train_in_two_parts(root, tmp_path, "wandb")
    assert sorted(wandb.logged) == [1, 3, 4, 5]
    assert "step 2 is missing in WandB: no route" in caplog.text
