"""Embedding by several processes: the same index, and no process that dies or is left behind."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
from support.broken_files import write_broken, write_good
from support.deadly import DeadlyModel
from support.indexes import check_same, content
from support.media import TWO_SCENES, media
from support.small_shards import square, tone, write_tar

from onepeace.device import devices_of
from onepeace.errors import UserError
from onepeace.index import write as index_write
from onepeace.index.workers import pool_of


@pytest.fixture
def texts(tmp_path):
    """Seventy texts, of which two kill whoever reads them, and one is bad."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(70):
        (folder / f"{i}.txt").write_text(f"words {i}" + {3: " deadly", 40: " bad", 66: " deadly"}.get(i, ""))
    return folder


@pytest.fixture
def deadly(monkeypatch):
    monkeypatch.setattr(index_write, "Model", DeadlyModel)


def test_the_same_index_comes_out(build, tmp_path, samples):
    files = tmp_path / "files"
    write_good(files, samples, 30)
    write_broken(files / "broken", samples)
    soundfile.write(files / "long.wav", np.random.default_rng(0).normal(0, 0.1, 16000 * 5), 16000)
    soundfile.write(files / "silent.wav", np.zeros(16000), 16000)
    rng = np.random.default_rng(0)
    members = {"a.png": square((200, 0, 0), rng), "a.txt": b"a red square", "b.wav": tone(440, rng)}
    shard = write_tar(tmp_path / "some.tar", members)
    options = {"batch_size": 4, "window": 1.5, "hop": 1.0}
    one = build(tmp_path / "one", files, shard, **options)
    two = build(tmp_path / "two", files, shard, workers=2, **options)
    check_same(tmp_path / "two", tmp_path / "one")
    assert {path: about[8] for path, (about, _) in content(tmp_path / "two").items() if about[8]} == {
        str(files / "silent.wav"): "digital silence"
    }
    assert (two.added, two.vectors, len(two.problems)) == (one.added, one.vectors, len(one.problems))


def test_what_is_learned_of_a_video_comes_back(build, tmp_path):
    pytest.importorskip("av")
    files = [TWO_SCENES, media("no pictures.mp4", "-f", "lavfi", "-i", "sine=d=12", "-c:a", "aac")]
    build(tmp_path / "one", *files)
    build(tmp_path / "two", *files, workers=2)
    check_same(tmp_path / "two", tmp_path / "one")
    assert [about[8] for about, _ in content(tmp_path / "two").values()] == [
        None,
        "there are no pictures in it that can be decoded",
    ]


def test_a_file_that_kills_is_named_and_the_others_are_embedded(build, deadly, texts, tmp_path):
    report = build(tmp_path / "index", texts, workers=2, batch_size=8)
    assert sorted((os.path.basename(problem.path), problem.reason) for problem in report.problems) == [
        ("3.txt", "the process that embeds it dies of it"),
        ("40.txt", "a bad file"),
        ("66.txt", "the process that embeds it dies of it"),
    ]
    assert len(content(tmp_path / "index")) == 70
    assert report.vectors == 67


def test_a_model_that_cannot_be_loaded_ends_the_run(build, deadly, texts, tmp_path):
    with pytest.raises(UserError, match="no such precision"):
        build(tmp_path / "index", texts, workers=2, dtype="none")


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_running(texts, tmp_path, random_folder, how):
    (texts / "3.txt").write_text("slow")
    (texts / "66.txt").write_text("slow")
    ids = tmp_path / "ids"
    ids.mkdir()
    command = [sys.executable, "-m", "support.deadly", tmp_path / "index", texts, ids, random_folder]
    there = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(command, env=there, stderr=subprocess.PIPE, start_new_session=True) as run:
        while len(os.listdir(ids)) < 2:
            assert run.poll() is None, run.stderr.read()
            time.sleep(0.05)
        os.killpg(run.pid, how) if how == signal.SIGINT else run.kill()
        run.wait()
        left = [int(name) for name in os.listdir(ids)]
        while any(os.path.exists(f"/proc/{number}") for number in left):
            time.sleep(0.05)


def test_what_cannot_be_done_is_refused(random_folder):
    with pytest.raises(UserError, match="'spark' is no plug-in"):
        pool_of(DeadlyModel(str(random_folder)), "spark", None)
    with pytest.raises(UserError, match="workers is 0"):
        pool_of(DeadlyModel(str(random_folder)), None, 0)
    with pytest.raises(UserError, match="device 'cuda:9' is not available"):
        pool_of(DeadlyModel(str(random_folder), "cuda:9"), None, 2)
    assert pool_of(DeadlyModel(str(random_folder)), None, 1) is None


def test_every_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr("onepeace.device.available_devices", lambda: ["cuda", "cuda:0", "cuda:1", "cpu"])
    assert list(devices_of(None, 3)) == ["cuda:0", "cuda:1", "cuda:0"]
    assert list(devices_of("cuda:1", 2)) == ["cuda:1", "cuda:1"]
    assert list(devices_of("cpu", 2)) == ["cpu", "cpu"]
