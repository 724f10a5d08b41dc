"""Embedding by actors of Ray: the same index, and files that kill an actor are named.

By default the actors are objects in this process; slow tests start Ray's processes on this machine.
"""

import os
import shutil
import sys

import numpy as np
import pytest
from support import deadly
from support.broken_files import write_broken, write_good
from support.indexes import check_same, content
from support.media import TWO_SCENES
from support.small_shards import square, write_tar

from onepeace.embed import embedder
from onepeace.errors import UserError
from onepeace.index import build, maintain
from onepeace.plugins.ray import open_engine

ray = pytest.importorskip("ray", reason='needs Ray: pip install "onepeace[ray]"')

from support.ray_in_process import RayInProcess, crash  # noqa: E402


@pytest.fixture(scope="module")
def ray_processes():
    """A Ray instance of two cores."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    python_path = os.pathsep.join(path for path in sys.path if path)
    variables = {"PYTHONPATH": python_path, "OMP_NUM_THREADS": "1"}
    ray.init(
        num_cpus=2,
        runtime_env={"env_vars": variables},
        include_dashboard=False,
        log_to_driver=False,
        logging_level="CRITICAL",
    )
    yield
    ray.shutdown()


@pytest.fixture
def ray_in_process(monkeypatch):
    instance = RayInProcess()
    instance.install(monkeypatch)
    monkeypatch.setattr(deadly, "end_process", crash)
    return instance


SLOW_PROCESSES = pytest.param("ray_processes", marks=pytest.mark.slow)


@pytest.fixture(params=["ray_in_process", SLOW_PROCESSES])
def _ray(request):
    request.getfixturevalue(request.param)


@pytest.fixture
def deadly_model(random_folder, monkeypatch):
    """A model folder for which support/deadly.py is loaded."""
    monkeypatch.setattr(embedder, "load", deadly.load)
    monkeypatch.setattr(maintain, "keep_calibration", lambda *_: None)
    return str(random_folder)


def reasons_of(report):
    return {os.path.basename(problem.path): problem.reason for problem in report.problems}


@pytest.mark.usefixtures("_ray")
def test_index_is_the_same_as_in_one_process(random_folder, tmp_path, samples):
    files = tmp_path / "files"
    write_good(files, samples, 15)
    write_broken(files / "broken", samples)
    shutil.copy(TWO_SCENES, files)
    red = square((200, 0, 0), np.random.default_rng(0))
    shard = write_tar(tmp_path / "shard.tar", {"a.png": red, "a.txt": b"a red square"})
    paths = [files, shard]
    options = {"device": "cpu", "batch_size": 4, "progress": False}

    plain_report = build(tmp_path / "plain", paths, str(random_folder), **options)
    ray_report = build(tmp_path / "ray", paths, str(random_folder), engine="ray:2", **options)

    check_same(tmp_path / "ray", tmp_path / "plain")
    assert ray_report.added == plain_report.added
    assert ray_report.vectors == plain_report.vectors
    assert reasons_of(ray_report) == reasons_of(plain_report)
    assert ray.is_initialized()  # the plug-in did not start it and leaves it as it is


@pytest.mark.usefixtures("_ray")
def test_file_that_kills_is_named(deadly_model, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number}.txt").write_text(f"words {number}")
    (folder / "3.txt").write_text("deadly words")
    (folder / "20.txt").write_text("bad words")

    index = tmp_path / "index"
    report = build(index, [folder], deadly_model, engine="ray:2", batch_size=4, progress=False)

    reasons = reasons_of(report)
    assert set(reasons) == {"20.txt", "3.txt"}
    assert "crashes" in reasons["3.txt"]
    assert len(content(index)) == 30
    assert report.vectors == 28


@pytest.mark.usefixtures("_ray")
@pytest.mark.parametrize(
    ("dtype", "reason"),
    [
        ("deadly", "died"),
        ("broken", "broken weights"),
    ],
)
def test_model_that_cannot_be_loaded_ends_the_run(deadly_model, tmp_path, dtype, reason):
    (tmp_path / "words.txt").write_text("words")

    options = {"engine": "ray:1", "dtype": dtype, "progress": False}

    with pytest.raises(UserError, match=reason) as error:
        build(tmp_path / "index", [tmp_path / "words.txt"], deadly_model, **options)

    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("address", "resources", "num_actors", "share"),
    [
        ("ray", {"CPU": 9}, 2, {"num_cpus": 4.0}),
        ("ray", {"CPU": 9, "GPU": 3}, 3, {"num_gpus": 1.0}),
        ("ray:4", {"CPU": 9, "GPU": 3}, 4, {"num_gpus": 0.5}),
    ],
)
def test_resources_of_actors(deadly_model, monkeypatch, address, resources, num_actors, share):
    instance = RayInProcess(resources, num_nodes=2)
    instance.install(monkeypatch)

    open_engine(address, deadly_model, device=None, dtype="auto")

    assert len(instance.actors) == num_actors
    for actor in instance.actors:
        assert share.items() <= actor.options.items()
