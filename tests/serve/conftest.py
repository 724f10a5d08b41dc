import os
import shutil
import subprocess
import sys

import pytest

from onepeace.index.index import Index
from onepeace.index.write import build

PICTURES, SOUNDS = ("cat", "dog", "sea", "horses"), ("cat", "dog", "sea", "rain")


@pytest.fixture(scope="package")
def collection(tmp_path_factory, samples):
    """A folder of four pictures, four sounds and a text."""
    folder = tmp_path_factory.mktemp("collection") / "files"
    folder.mkdir()
    for name in PICTURES:
        shutil.copy2(samples / "images" / f"{name}.jpg", folder)
    for name in SOUNDS:
        shutil.copy2(samples / "sounds" / f"{name}.ogg", folder)
    (folder / "note.txt").write_text("a <b>dog</b> barks at the sea", encoding="utf-8")
    return folder


@pytest.fixture(scope="package")
def index_folder(collection, random_folder):
    """An index of it, by the very small random model."""
    folder = collection.parent / "index"
    build(folder, [str(collection)], str(random_folder), device="cpu", progress=False)
    return folder


@pytest.fixture(scope="package")
def ids(index_folder):
    """The number of every file, by its name."""
    with Index.open(index_folder) as index:
        return {item.path.rpartition("/")[2]: item.id for item in index.items()}


@pytest.fixture(scope="package")
def server(index_folder):
    """The address of `onepeace serve` in a process of its own, which has to end well: no error, and nothing left."""
    pytest.importorskip("gradio", reason="the page needs gradio")
    command = [sys.executable, "-m", "onepeace", "serve", str(index_folder), "--port", "0", "--device", "cpu"]
    log, temporary = index_folder.parent / "server.log", index_folder.parent / "temporary"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with open(log, "wb") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
    try:
        line = process.stdout.readline()
        assert line.startswith("onepeace at http://127.0.0.1:"), log.read_text()
        yield line.split()[2]
        assert process.poll() is None, log.read_text()
    finally:
        process.terminate()
        process.wait()
    assert process.returncode == 0, log.read_text()
    assert not list(temporary.glob("onepeace-*"))
    assert "Traceback" not in log.read_text(), log.read_text()
