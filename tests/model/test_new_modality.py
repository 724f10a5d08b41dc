"""A fourth modality is an adapter and a processor: those of examples/add_a_modality.py, unknown to the package."""

import contextlib
import importlib.util
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from support.golden_cases import assert_near

import onepeace
from onepeace.cli import main
from onepeace.model import ADAPTERS
from onepeace.processors import PROCESSORS

EXAMPLE = Path(__file__).parents[2] / "examples" / "add_a_modality.py"


@pytest.fixture(scope="module")
def example():
    """The example as a module, whose entries are taken out again."""
    adapters = dict(ADAPTERS)
    processors = dict(PROCESSORS)
    spec = importlib.util.spec_from_file_location("add_a_modality", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    ADAPTERS.clear()
    ADAPTERS.update(adapters)
    PROCESSORS.clear()
    PROCESSORS.update(processors)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder where the example writes."""
    return tmp_path_factory.mktemp("motion")


@pytest.fixture(scope="module")
def printed(example, folder):
    """What the example printed when it ran."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as stdout:
        patch.setattr(sys, "argv", [str(EXAMPLE), str(folder)])
        example.main()
    return stdout.getvalue()


@pytest.fixture(scope="module")
def trained(folder, printed):
    """The folder of the model."""
    return folder / "run" / "model"


@pytest.fixture(scope="module")
def kinds(example):
    return list(example.KINDS)


@pytest.fixture(scope="module")
def paths(folder, printed, kinds):
    """Files that the model has not seen, one of each kind in turn."""
    return [folder / f"new{number}.imu" for number in range(4 * len(kinds))]


@pytest.fixture(scope="module")
def model(trained):
    return onepeace.load(trained, device="cpu")


def test_example_recognises_new_files(printed):
    num_right, num_files = re.search(r"(\d+) of (\d+) new files", printed).groups()
    assert int(num_right) >= 0.9 * int(num_files)


def test_vectors_do_not_depend_on_batch_mates(model, paths):
    vectors = model.encode(paths[:5])
    norms = vectors.norm(dim=1)
    assert norms.tolist() == pytest.approx([1.0] * 5, abs=1e-5)
    for path, vector in zip(paths[:5], vectors, strict=True):
        assert_near(model.encode([path])[0], vector, 1e-5)


@pytest.fixture
def copies(paths, tmp_path):
    """A folder of files of motion alone."""
    folder = tmp_path / "files"
    folder.mkdir()
    for path in paths:
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_index_lists_a_broken_file_and_exports_the_others(command, trained, model, copies, paths, tmp_path):
    (copies / "cut.imu").write_bytes(b"IMU")
    index = tmp_path / "index"
    code, _, err = command("index", "build", index, copies, model=trained)
    assert code == 1
    assert "cut.imu" in err

    archive = tmp_path / "vectors.npz"
    assert main(["index", "export", str(index), "-o", str(archive)]) == 0
    exported = np.load(archive)
    names = {Path(path).name for path in exported["paths"]}
    assert names == {path.name for path in paths}
    vectors = model.encode(list(exported["paths"]))
    assert np.allclose(exported["vectors"], vectors, atol=1e-5)


# From the command line


def onepeace_command(*arguments):
    """The command in a process of its own, which knows nothing of the modality unless told."""
    command = [sys.executable, "-m", "onepeace", *(str(argument) for argument in arguments)]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return process


@pytest.fixture(scope="module")
def imported_run(folder, printed, tmp_path_factory):
    """A run of three steps whose recipe names the example by a path relative to itself."""
    out = tmp_path_factory.mktemp("imported")
    recipe = out / "recipe.yaml"
    recipe.write_text(f"base: {folder / 'recipe.yaml'}\nimports: [{os.path.relpath(EXAMPLE, out)}]\n")
    overrides = [f"data.root={folder}", f"run.out={out / 'run'}", "schedule.steps=3", "run.workers=1"]
    onepeace_command("train", recipe, *overrides)
    return out / "run"


def test_import_in_a_recipe_resumes(imported_run):
    recipe = imported_run / "recipe.yaml"
    assert yaml.safe_load(recipe.read_text())["imports"] == [str(EXAMPLE)]
    resumed = onepeace_command("train", recipe, "schedule.steps=4")
    assert "step 3" in resumed.stderr


def test_import_option_classifies(imported_run, paths):
    options = ["--labels", "nodding,shaken hard", "--model", imported_run / "model"]
    classified = onepeace_command("--import", EXAMPLE, "classify", paths[0], *options)
    assert paths[0].name in classified.stdout


@pytest.mark.parametrize(("table", "word"), [(ADAPTERS, "modality"), (PROCESSORS, "processor")])
def test_modality_that_is_not_imported(trained, paths, command, monkeypatch, table, word):
    """The message names the option."""
    monkeypatch.delitem(table, "motion")
    code, _, err = command("classify", paths[0], "--labels", "nodding,still", model=trained)
    assert code == 1
    assert re.search(rf"{word}.* 'motion'.*--import", err)
    if table is ADAPTERS:
        assert str(trained) in err
