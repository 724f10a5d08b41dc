"""The numbers of a run in TensorBoard, Weights & Biases and MLflow; the last two are stand-ins that take notes."""

import sys
from types import SimpleNamespace

import pytest
from support.training import make_recipe

from onepeace.errors import MissingPackage, UserError
from onepeace.train import trainer
from onepeace.train.logging import LOGGERS, read_log
from onepeace.train.model_config import make_config


@pytest.fixture
def train_in_two_parts(small_recipe, tmp_path):
    """Five steps, stopped after the third and resumed from the second; the lines of the log."""

    def train(logger):
        run = {"batch_size": 8, "log_every": 1, "save_every": 2, "loggers": [logger]}
        recipe = small_recipe("birds", steps=5, run=run)
        trainer.train(recipe, stop_at=3)
        trainer.train(recipe)
        return read_log(tmp_path / "birds" / "log.jsonl")

    return train


def test_tensorboard_gets_every_loss_once(train_in_two_parts, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lines = train_in_two_parts("tensorboard")

    events = EventAccumulator(str(tmp_path / "birds" / "tensorboard"))
    events.Reload()
    for name in ("loss", "contrastive/text+image"):
        for event, line in zip(events.Scalars(name), lines, strict=True):
            assert event.step == line["step"]
            assert event.value == pytest.approx(line[name])


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


def test_wandb_gets_every_step_in_one_run(train_in_two_parts, monkeypatch):
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)

    lines = train_in_two_parts("wandb")

    first, second = wandb.runs
    assert first["id"] == second["id"]
    assert first["resume"] == "allow"
    assert first["name"] == "birds"
    assert first["config"]["schedule"]["steps"] == 5
    assert sorted(wandb.logged) == [1, 2, 3, 4, 5]
    assert {"step": 5, **wandb.logged[5]} == lines[-1]
    assert wandb.num_finished == 2


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


def test_mlflow_gets_every_step_in_one_run(train_in_two_parts, monkeypatch):
    mlflow = FakeMLflow()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)

    lines = train_in_two_parts("mlflow")

    assert mlflow.started == [{"run_name": "birds"}, {"run_id": "run-1"}]
    assert mlflow.files["recipe.yaml"]["schedule"]["steps"] == 5
    assert sorted(mlflow.logged) == [1, 2, 3, 4, 5]
    assert mlflow.logged[5]["loss"] == lines[-1]["loss"]
    assert mlflow.logged[5]["contrastive/text-image"] == lines[-1]["contrastive/text+image"]
    assert mlflow.num_ended == 2


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("tensorboard", "track"),
        ("wandb", "wandb"),
        ("mlflow", "mlflow"),
    ],
)
def test_missing_package_is_told_before_data_is_read(tmp_path, monkeypatch, name, extra):
    monkeypatch.setitem(sys.modules, name, None)

    with pytest.raises(MissingPackage) as caught:
        make_config(make_recipe(tmp_path / "nowhere", tmp_path, run={"loggers": [name]}))

    assert (caught.value.package, caught.value.extra) == (name, extra)


def test_logger_that_cannot_start_is_one_line(small_recipe, monkeypatch):
    class Offline:
        def __init__(self, folder, step, recipe):
            raise ConnectionError("no route\nto host")

        @classmethod
        def check(cls):
            pass

    monkeypatch.setitem(LOGGERS, "offline", Offline)

    with pytest.raises(UserError, match=r"offline .*\(no route to host\)"):
        trainer.train(small_recipe(steps=1, run={"loggers": ["offline"]}))


class ShakyWandb(FakeWandb):
    def log(self, values, step):
        if step == 2:
            raise RuntimeError("no route")
        super().log(values, step)


def test_logger_that_fails_ends_no_run(train_in_two_parts, monkeypatch, caplog):
    wandb = ShakyWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)

    lines = train_in_two_parts("wandb")

    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert sorted(wandb.logged) == [1, 3, 4, 5]
    assert "step 2 is missing in WandB: no route" in caplog.text
