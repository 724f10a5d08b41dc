"""A fourth modality is an adapter and a processor: those of examples/add_a_modality.py, unknown to the package."""

import contextlib
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from support.small_models import VARIANTS, batch_of, small_model, training_batch
from support.training import terms

import onepeace
from onepeace.cli import main
from onepeace.config import MaskedDecoderConfig, ModelConfig
from onepeace.layers.position import SequencePositions
from onepeace.model import ADAPTERS, OnePeace
from onepeace.processors import PROCESSORS, guess
from onepeace.train.objective import Objective

FILE = Path(__file__).parents[2] / "examples" / "add_a_modality.py"


@pytest.fixture(scope="module")
def example():
    """The example as a module, whose entries are taken out again."""
    tables = [(table, dict(table)) for table in (ADAPTERS, PROCESSORS)]
    spec = importlib.util.spec_from_file_location("add_a_modality", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for table, before in tables:
        table.clear()
        table.update(before)


@pytest.fixture(scope="module")
def done(example, tmp_path_factory):
    """The folder that the program wrote, and what it printed."""
    folder = tmp_path_factory.mktemp("motion")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.setattr(sys, "argv", [str(FILE), str(folder)])
        example.main()
    return folder, printed.getvalue()


@pytest.fixture(scope="module")
def files(example, done):
    """The kind of each file that the model has not seen."""
    kinds = list(example.KINDS)
    return {done[0] / f"new{number}.imu": kinds[number % len(kinds)] for number in range(4 * len(kinds))}


@pytest.fixture
def model(done):
    return onepeace.load(done[0] / "run" / "model", device="cpu")


@pytest.fixture
def config(example, monkeypatch):
    """A small model of texts and motion, with a decoder for both."""
    positions = staticmethod(lambda dim, *, num_positions=30: SequencePositions(dim, num_positions))
    monkeypatch.setattr(example.MotionAdapter, "decoder_positions", positions, raising=False)
    adapters = {"text": VARIANTS["text"][1], "motion": {"num_buckets": 4}}
    decoder = MaskedDecoderConfig(16, 2, 2, 24, {"motion": {"num_positions": 25}})
    return ModelConfig(32, 24, 2, 4, 48, adapters=adapters, projections=tuple(adapters), decoder=decoder)


def test_contrast_and_denoising_train_it(config):
    """Alone and joint: every parameter learns, and the loss falls in a few steps."""
    model = OnePeace(config).train()
    text, motion = (
        batch_of(small_model("text"), range(3))["text"],
        {"readings": torch.randn(3, 20, 6), "steps": torch.tensor([20, 4, 9])},
    )
    batch = training_batch(model, {"text": text, "motion": motion})
    objective = Objective(model, terms({"contrastive": {}, "denoising/motion": {}, "denoising/text+motion": {}}), {})
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    losses = []
    for _ in range(4):
        found = objective(batch)
        losses.append(found["loss"].item())
        optimizer.zero_grad()
        found["loss"].backward()
        assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
        optimizer.step()
    assert {"contrastive/text+motion", "denoising/motion", "denoising/text+motion:motion"} < set(found)
    assert losses[-1] < losses[0] - 0.1


def test_new_files_are_called_what_they_are(done):
    right, of = map(int, re.search(r"(\d+) of (\d+) new files", done[1]).groups())
    assert right >= 0.9 * of


def test_vectors_of_a_file_are_its_own(example, model, files):
    assert guess("walk.IMU", dict.fromkeys(PROCESSORS)) == "motion"
    paths = list(files)[:5]
    vectors = model.encode(paths)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(len(paths)), atol=1e-5)
    assert torch.allclose(torch.cat([model.encode([path]) for path in paths]), vectors, atol=1e-5)
    count = len(example.MotionProcessor().decode(paths[0]))
    assert model.explain({"motion": paths[0]}, "nodding").positions.tolist() == [[i, i + 1] for i in range(count)]


def test_commands_search_embed_and_classify_its_files_and_list_a_broken_one(done, model, files, command, tmp_path):
    trained, folder = done[0] / "run" / "model", tmp_path / "files"
    folder.mkdir()
    copies = {folder / path.name: kind for path, kind in files.items()}
    for path in copies:
        path.write_bytes((done[0] / path.name).read_bytes())
    kinds = sorted(set(files.values()))
    code, out, err = command("search", folder, "--text", kinds[0], "--top", "3", "--json", model=trained)
    assert code == 0, err
    hits = [json.loads(line) for line in out.splitlines()]
    assert {hit["modality"] for hit in hits} == {"motion"}
    assert copies[Path(hits[0]["path"])] == kinds[0]
    assert command("search", folder, "--text", kinds[0], "--html", tmp_path / "hits.html", model=trained)[0] == 0
    assert "motion" in (tmp_path / "hits.html").read_text()

    code, out, _ = command("classify", folder, "--labels", ",".join(kinds), "--json", model=trained)
    assert code == 0
    assert {Path(json.loads(line)["path"]) for line in out.splitlines()} == set(copies)

    (folder / "cut.imu").write_bytes(b"IMU")
    code, _, err = command("index", "build", tmp_path / "index", folder, model=trained)
    assert code == 1
    assert "cut.imu" in err
    assert main(["index", "export", str(tmp_path / "index"), "-o", str(tmp_path / "vectors.npz")]) == 0
    written = np.load(tmp_path / "vectors.npz")
    assert set(map(Path, written["paths"])) == set(copies)
    assert np.allclose(written["vectors"], model.encode(list(written["paths"])), atol=1e-5)


# From the command line


def onepeace_command(*arguments):
    """The command in a process of its own, which knows nothing of the modality unless told."""
    command = [sys.executable, "-m", "onepeace", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_import_in_a_recipe_trains_the_modality_and_import_option_uses_it(done, files, tmp_path):
    folder = done[0]
    recipe = tmp_path / "recipe.yaml"
    file = os.path.relpath(FILE, tmp_path)
    recipe.write_text(f"base: {folder / 'recipe.yaml'}\nimports: [{file}]\n")
    overrides = [f"data.root={folder}", f"run.out={tmp_path / 'run'}", "schedule.steps=3", "run.workers=1"]
    trained = onepeace_command("train", recipe, *overrides)
    assert trained.returncode == 0, trained.stderr
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["imports"] == [str(FILE)]

    path = next(iter(files))
    arguments = ["classify", path, "--labels", "nodding,shaken hard", "--model", tmp_path / "run" / "model"]
    classified = onepeace_command("--import", FILE, *arguments)
    assert classified.returncode == 0, classified.stderr
    assert path.name in classified.stdout

    resumed = onepeace_command("train", tmp_path / "run" / "recipe.yaml", "schedule.steps=4")
    assert resumed.returncode == 0, resumed.stderr
    assert "going on from step 3" in resumed.stderr


def test_a_model_whose_modality_is_not_imported_is_one_line_that_names_the_option(done, files, command, monkeypatch):
    monkeypatch.delitem(ADAPTERS, "motion")
    trained = done[0] / "run" / "model"
    code, _, err = command("classify", next(iter(files)), "--labels", "nodding,still", model=trained)
    assert code == 1
    assert re.search(rf"{trained}: no modality 'motion'; known: text, .*; --import FILE\.py, or imports", err)
    monkeypatch.undo()
    monkeypatch.delitem(PROCESSORS, "motion")
    code, _, err = command("classify", next(iter(files)), "--labels", "nodding,still", model=trained)
    assert code == 1
    assert re.search(r"no processor of 'motion'; known: image, .*; --import FILE\.py, or imports", err)
