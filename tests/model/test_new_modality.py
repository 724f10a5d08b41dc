"""A fourth modality is an adapter and a processor: those of examples/add_a_modality.py, unknown to the package."""

import contextlib
import importlib.util
import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

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
def paths(folder, printed):
    """Files that the model has not seen, one of each kind."""
    return [folder / f"new{number}.imu" for number in range(5)]


def test_example_recognises_new_files(printed):
    num_right, num_files = re.search(r"(\d+) of (\d+) new files", printed).groups()
    assert int(num_right) >= 0.9 * int(num_files)


def test_index_lists_a_broken_file_and_finds_the_others(command, trained, paths, tmp_path):
    broken = tmp_path / "cut.imu"
    broken.write_bytes(b"IMU")
    code, _, err = command("index", "build", tmp_path / "index", *paths, broken, model=trained)
    assert code == 1
    assert "cut.imu" in err

    code, out, _ = command("search", tmp_path / "index", "nodding", "--top", 1, model=trained)
    assert code == 0
    assert "new4.imu" in out


def test_fine_tuning_by_class(example, trained, tmp_path, capsys):
    rng = np.random.default_rng(1)
    for kind in list(example.KINDS)[:2]:
        for number in range(10):
            path = tmp_path / "own" / kind / f"{number}.imu"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(example.readings(kind, rng))

    call = ["finetune", tmp_path / "own", "-o", tmp_path / "out", "--model", trained, "schedule.steps=1"]
    code = main([str(argument) for argument in call])
    out, err = capsys.readouterr()

    assert code == 0, err
    assert "20 motion in 2 classes" in err
    assert "motion by words" in out
    assert "motion by head" in out
    assert (tmp_path / "out" / "report.html").exists()


def test_import_option_classifies(trained, paths):
    """In a process of its own, which knows nothing of the modality unless told."""
    options = ["--labels", "nodding,shaken hard", "--model", trained]
    command = [sys.executable, "-m", "onepeace", "--import", EXAMPLE, "classify", paths[0], *options]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert paths[0].name in process.stdout


@pytest.mark.parametrize(("table", "word"), [(ADAPTERS, "modality"), (PROCESSORS, "processor")])
def test_modality_that_is_not_imported(trained, paths, command, monkeypatch, table, word):
    """The message names the option."""
    monkeypatch.delitem(table, "motion")
    code, _, err = command("classify", paths[0], "--labels", "nodding,still", model=trained)
    assert code == 1
    assert re.search(rf"{word}.* 'motion'.*--import", err)
    if table is ADAPTERS:
        assert str(trained) in err
