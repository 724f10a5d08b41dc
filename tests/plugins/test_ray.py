"""Embedding by actors of a Ray instance on this machine: the same index, and files that kill an actor are named."""

import os
import sys

import numpy as np
import pytest
from support import deadly
from support.broken_files import write_broken, write_good
from support.indexes import check_same, content
from support.small_shards import square, write_tar

from onepeace.embed import embedder
from onepeace.errors import UserError
from onepeace.index import build, filling

ray = pytest.importorskip("ray", reason='needs Ray: pip install "onepeace[ray]"')


@pytest.fixture(scope="module")
def local():
    """A Ray instance of two cores."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    there = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"}
    options = {"include_dashboard": False, "log_to_driver": False, "logging_level": "CRITICAL"}
    ray.init(num_cpus=2, runtime_env={"env_vars": there}, **options)
    yield
    ray.shutdown()


@pytest.mark.slow
def test_the_same_index_comes_out(local, random_folder, tmp_path, samples):
    files = tmp_path / "files"
    write_good(files, samples, 15)
    write_broken(files / "broken", samples)
    members = {"a.png": square((200, 0, 0), np.random.default_rng(0)), "a.txt": b"a red square"}
    paths = [files, write_tar(tmp_path / "some.tar", members)]
    options = {"device": "cpu", "batch_size": 4, "progress": False}
    one = build(tmp_path / "one", paths, str(random_folder), **options)
    two = build(tmp_path / "two", paths, str(random_folder), engine="ray:2", **options)
    check_same(tmp_path / "two", tmp_path / "one")
    assert (two.added, two.vectors, len(two.problems)) == (one.added, one.vectors, len(one.problems))
    assert ray.is_initialized()  # it was not started by the plug-in, and is left as it is


@pytest.mark.slow
def test_a_file_that_kills_is_named_and_the_others_are_embedded(local, random_folder, monkeypatch, tmp_path):
    monkeypatch.setattr(embedder, "load", deadly.load)
    monkeypatch.setattr(filling, "keep_calibration", lambda *_: None)
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(30):
        (folder / f"{i}.txt").write_text(f"words {i}" + {3: " deadly", 20: " bad"}.get(i, ""))
    options = {"engine": "ray:2", "batch_size": 4, "progress": False}
    report = build(tmp_path / "index", [folder], str(random_folder), **options)
    assert sorted(os.path.basename(problem.path) for problem in report.problems) == ["20.txt", "3.txt"]
    assert len(content(tmp_path / "index")) == 30
    assert report.vectors == 28


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "reason"), [("none", "no such precision"), ("deadly", "an actor died")])
def test_a_model_that_cannot_be_loaded_ends_the_run(local, random_folder, monkeypatch, tmp_path, dtype, reason):
    monkeypatch.setattr(embedder, "load", deadly.load)
    (tmp_path / "words.txt").write_text("words")
    options = {"engine": "ray:1", "dtype": dtype, "progress": False}
    with pytest.raises(UserError, match=f"^{reason}"):
        build(tmp_path / "index", [tmp_path / "words.txt"], str(random_folder), **options)
