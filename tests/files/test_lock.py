import subprocess
import sys

import pytest

from onepeace.errors import UserError
from onepeace.files import lock
from onepeace.files.lock import locked


@pytest.fixture
def other(tmp_path, monkeypatch):
    """Another process that has locked the folder."""
    monkeypatch.setattr(lock, "PATIENCE", 0.0)
    code = "import sys, time; from pathlib import Path; from onepeace.files.lock import locked\n"
    code += "with locked(Path(sys.argv[1])): print(flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run")], stdout=subprocess.PIPE)
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()


def test_folder_locked_by_another_process_is_refused_until_it_is_killed(other, tmp_path):
    with pytest.raises(UserError, match="run: another run is writing to this folder"), locked(tmp_path / "run"):
        pass
    other.kill()
    other.wait()
    with locked(tmp_path / "run"):
        pass


def test_process_may_lock_its_folder_again(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 0.0)
    with locked(tmp_path):
        with locked(tmp_path):
            pass
        other = subprocess.run(
            [sys.executable, "-c", f"from onepeace.files import lock; from pathlib import Path; lock.PATIENCE = 0.0\n"
             f"with lock.locked(Path({str(tmp_path)!r})): pass"],
            capture_output=True, text=True,
        )  # fmt: skip
    assert "another run is writing" in other.stderr


def test_folder_in_which_nothing_was_written_goes_again(tmp_path):
    with locked(tmp_path / "run"):
        pass
    assert not (tmp_path / "run").exists()
    with locked(tmp_path / "run"):
        (tmp_path / "run" / "log.jsonl").touch()
    assert (tmp_path / "run" / "log.jsonl").exists()
