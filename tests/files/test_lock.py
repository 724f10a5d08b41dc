"""A folder that one process at a time writes to."""

import subprocess
import sys

import pytest

from onepeace.errors import UserError
from onepeace.files import lock
from onepeace.files.lock import locked

HOLDS = """
import sys, time
from pathlib import Path
from onepeace.files.lock import locked
with locked(Path(sys.argv[1])):
    print(flush=True)
    time.sleep(60)
"""
TRIES = """
import sys
from pathlib import Path
from onepeace.files import lock
lock.PATIENCE = 0.0
with lock.locked(Path(sys.argv[1])):
    pass
"""


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 0.0)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def holder(folder):
    """Another process that has locked the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(folder)], stdout=subprocess.PIPE)
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()


def test_lock_of_another_process_holds_until_it_is_killed(folder, holder):
    with pytest.raises(UserError, match="run: another run"), locked(folder):
        pass

    holder.kill()
    holder.wait()
    with locked(folder):
        pass


def test_process_may_lock_its_folder_again(folder):
    with locked(folder):
        with locked(folder):
            pass
        process = subprocess.run([sys.executable, "-c", TRIES, str(folder)], capture_output=True, text=True)

    assert "another run" in process.stderr


def test_folder_in_which_nothing_was_written_is_removed(folder):
    with locked(folder):
        pass
    assert not folder.exists()


def test_folder_in_which_something_was_written_stays(folder):
    with locked(folder):
        (folder / "log.jsonl").touch()
    assert (folder / "log.jsonl").exists()
