"""A fourth modality is an adapter and a processor: those of examples/add_a_modality.py, unknown to the package."""

import contextlib
import importlib.util
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from onepeace.cli import main
from onepeace.errors import UserError
from onepeace.index import Index, Query, build
from onepeace.model import ADAPTERS
from onepeace.processors import PROCESSORS

pytest.importorskip("fastapi", reason="the API comes with the extra web")
pytest.importorskip("mcp", reason="the tools come with the extra mcp")

from fastapi.testclient import TestClient

from onepeace.serve.app import create_app
from onepeace.serve.mcp import Tools
from onepeace.serve.service import Service

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


@pytest.fixture(scope="module")
def index(trained, paths, folder):
    """An index of five files of the new kind and a text."""
    (folder / "note.txt").write_text("nodding")
    build(folder / "own.index", [*paths, folder / "note.txt"], str(trained), device="cpu", progress=False)
    with Index.open(folder / "own.index", device="cpu") as opened:
        yield opened


@pytest.fixture
def kinds_found(index, command, trained):
    """Kinds of files that each interface finds among those of a kind."""

    def by_command(kind):
        _, out, _ = command("search", index.folder, "nodding", "--only", kind, "--json", model=trained)
        return [hit["kind"] for hit in json.loads(out)["hits"]]

    def by_api(kind):
        client = TestClient(create_app(Service(index)), base_url="http://localhost")
        return [hit["kind"] for hit in client.post("/search", json={"text": "nodding", "only": kind}).json()["hits"]]

    def by_mcp(kind):
        return [file["kind"] for file in Tools(Service(index)).search("nodding", only=kind)["files"]]

    return {
        "Python": lambda kind: [hit.kind for hit in index.search("nodding", only=kind)],
        "a condition": lambda kind: [hit.kind for hit in index.search("nodding", where=f"kind = '{kind}'")],
        "the newest": lambda kind: [item.kind for item in index.newest(9, only=kind)[0]],
        "the command": by_command,
        "the API": by_api,
        "MCP": by_mcp,
    }


def test_every_interface_knows_the_kind(kinds_found):
    for interface, found in kinds_found.items():
        assert set(found("motion")) == {"motion"}, interface
        assert set(found("text")) == {"text"}, interface


def test_page_shows_the_kind(index, paths):
    client = TestClient(create_app(Service(index)), base_url="http://localhost")

    points = client.get("/points").json()
    assert points["kinds"] == ["text", "motion"]
    assert [point[2] for point in points["points"]].count(1) == len(paths)
    assert client.get("/about").json()["files"] == {"motion": 5, "text": 1}
    assert client.post("/timeline", json={"only": "motion"}).json()["kinds"] == {"motion": 5, "text": 1}
    hits = client.post("/search", json={"text": "nodding", "only": ["motion"]}).json()["hits"]
    assert {hit["thumbnail"] for hit in hits} == {None}


def test_index_knows_its_kinds_where_the_modality_is_not_imported(index, paths, monkeypatch):
    monkeypatch.delitem(PROCESSORS, "motion")

    assert {hit.kind for hit in index.search(Query(like=str(paths[0])), only="motion")} == {"motion"}
    with pytest.raises(UserError, match=r"^only: 'moton' is not a kind of file"):
        index.search(Query(like=str(paths[0])), only="moton")


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
