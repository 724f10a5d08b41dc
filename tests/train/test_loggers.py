"""The numbers of a run in TensorBoard, Weights & Biases and MLflow; the last two are stand-ins that take notes."""

import sys
from types import SimpleNamespace
from typing import ClassVar

import pytest
from support.training import make_recipe

from onepeace.errors import MissingPackage, UserError
from onepeace.train import trainer
from onepeace.train.logging import LOGGERS, open_log, read_log
from onepeace.train.model_config import make_config


class FakeWandb:
    """The part of wandb that is used."""

    def __init__(self):
        self.runs = []
        self.logged = {}
        self.num_finished = 0

    def init(self, **options):
        self.runs.append(options)
        return self

    def log(self, values, step):
        self.logged.setdefault(step, values)

    def finish(self):
        self.num_finished += 1


class FakeMLflow:
    """The part of mlflow that is used."""

    def __init__(self):
        self.started = []
        self.logged = {}
        self.files = {}
        self.num_ended = 0

    def start_run(self, **options):
        self.started.append(options)
        return SimpleNamespace(info=SimpleNamespace(run_id="run-1"))

    def log_dict(self, content, name):
        self.files[name] = content

    def log_metrics(self, values, step):
        self.logged[step] = values

    def end_run(self):
        self.num_ended += 1


def test_services_get_every_step_of_one_run(small_recipe, tmp_path, monkeypatch):
    """A run of five steps, stopped after the third and resumed from the second."""
    wandb = FakeWandb()
    mlflow = FakeMLflow()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    run = {"batch_size": 8, "log_every": 1, "save_every": 2, "loggers": ["wandb", "mlflow"]}
    recipe = small_recipe("birds", steps=5, run=run)

    trainer.train(recipe, stop_at=3)
    trainer.train(recipe)

    lines = read_log(tmp_path / "birds" / "log.jsonl")
    first, second = wandb.runs
    assert first["id"] == second["id"]
    assert first["resume"] == "allow"
    assert first["name"] == "birds"
    assert first["config"]["schedule"]["steps"] == 5
    assert sorted(wandb.logged) == [1, 2, 3, 4, 5]
    assert {"step": 5, **wandb.logged[5]} == lines[-1]
    assert wandb.num_finished == 2

    assert mlflow.started == [{"run_name": "birds"}, {"run_id": "run-1"}]
    assert mlflow.files["recipe.yaml"]["schedule"]["steps"] == 5
    assert sorted(mlflow.logged) == [1, 2, 3, 4, 5]
    assert mlflow.logged[5]["contrastive/text-image"] == lines[-1]["contrastive/text+image"]
    assert mlflow.num_ended == 2


def test_tensorboard_gets_every_loss_once(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    recipe = make_recipe(tmp_path, tmp_path, run={"loggers": ["tensorboard"]})
    for start, stop in ((0, 3), (2, 5)):
        journal = open_log(recipe, start)
        for step in range(start + 1, stop + 1):
            journal.write(step, {"loss": step / 8})
        journal.close()

    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, 8 * event.value) for event in events.Scalars("loss")] == [(i, i) for i in range(1, 6)]


@pytest.mark.parametrize("name", LOGGERS)
def test_missing_package_is_told_before_data_is_read(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)

    with pytest.raises(MissingPackage, match=name):
        make_config(make_recipe(tmp_path / "nowhere", tmp_path, run={"loggers": [name]}))


class Shaky:
    """A service that is not reachable in the second step, nor when a run is resumed."""

    steps: ClassVar = []

    def __init__(self, folder, step, recipe):
        if step:
            raise ConnectionError("no route\nto host")

    @classmethod
    def check(cls):
        pass

    def log(self, step, values):
        if step == 2:
            raise RuntimeError("no route")
        self.steps.append(step)


@pytest.fixture
def shaky_recipe(tmp_path, monkeypatch):
    monkeypatch.setitem(LOGGERS, "shaky", Shaky)
    return make_recipe(tmp_path, tmp_path, run={"loggers": ["shaky"]})


def test_logger_that_cannot_start_is_one_line(shaky_recipe):
    with pytest.raises(UserError, match=r"shaky .*\(no route to host\)"):
        open_log(shaky_recipe, step=1)


def test_logger_that_fails_ends_no_run(shaky_recipe, tmp_path, caplog):
    journal = open_log(shaky_recipe, step=0)

    for step in (1, 2, 3):
        journal.write(step, {"loss": 1.0})

    assert [line["step"] for line in read_log(tmp_path / "log.jsonl")] == [1, 2, 3]
    assert Shaky.steps == [1, 3]
    assert "step 2 is missing in Shaky: no route" in caplog.text
