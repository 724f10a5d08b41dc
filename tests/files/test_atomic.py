"""Writing a file all at once."""

import os
import subprocess
import sys

import pytest

from onepeace.errors import UserError
from onepeace.files import atomic
from onepeace.files.atomic import locked, remove_unfinished_in, write_atomic, write_text_atomic


@pytest.fixture
def target(tmp_path):
    return tmp_path / "v.npz"


def test_failed_write_keeps_the_old_file(target):
    write_text_atomic(target, "old")

    def fail():
        with write_atomic(target) as temporary:
            temporary.write_bytes(b"half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()

    assert target.read_text() == "old"
    assert os.listdir(target.parent) == ["v.npz"]


def test_link_stays_and_its_file_is_replaced(tmp_path, target):
    link = tmp_path / "link.npz"
    link.symlink_to(target)

    for content in ("first", "second"):
        write_text_atomic(link, content)
        assert link.is_symlink()
        assert target.read_text() == content


KILLED = """
import os, sys
from onepeace.files.atomic import write_atomic
with write_atomic(sys.argv[1]) as temporary:
    temporary.write_bytes(b"half")
    os._exit(9)
"""


def test_leftover_of_a_killed_process_is_removed_by_the_next_writer(target):
    subprocess.run([sys.executable, "-c", KILLED, str(target)], check=False)
    assert len(os.listdir(target.parent)) == 1

    write_text_atomic(target, "whole")

    assert os.listdir(target.parent) == ["v.npz"]


def test_leftovers_among_many_files_are_removed_together(target):
    subprocess.run([sys.executable, "-c", KILLED, str(target)], check=False)
    with write_atomic(target, synced=False) as temporary:
        temporary.touch()
        remove_unfinished_in(target.parent)
        assert len(os.listdir(target.parent)) == 1
    assert os.listdir(target.parent) == ["v.npz"]


def test_file_that_is_being_written_is_no_leftover(target):
    with write_atomic(target) as first:
        first.write_text("first")
        write_text_atomic(target, "second")
        assert first.exists()
    assert target.read_text() == "first"


def test_similar_files_of_others_stay(target):
    others = [".v.npz.mybackup.tmp", ".v.npz.4711.tmp", ".v.npz.onepeace-backup.tmp", ".v.npz.onepeace-0a1b2c3d.old"]
    for name in others:
        target.with_name(name).touch()

    write_text_atomic(target, "whole")

    assert sorted(os.listdir(target.parent)) == sorted([*others, "v.npz"])


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_new_files(target, umask):
    """Also when a library replaces the temporary file by one that nobody else may read."""
    before = os.umask(umask)
    try:
        with write_atomic(target) as temporary:
            temporary.unlink()
            temporary.touch(0o600)
    finally:
        os.umask(before)
    assert target.stat().st_mode & 0o777 == 0o666 & ~umask


HOLDS = """
import sys, time
from pathlib import Path
from onepeace.files.atomic import locked
with locked(Path(sys.argv[1])):
    print(flush=True)
    time.sleep(60)
"""
TRIES = """
import sys
from pathlib import Path
from onepeace.files import atomic
atomic.PATIENCE = 0.0
with atomic.locked(Path(sys.argv[1])):
    pass
"""


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch):
    monkeypatch.setattr(atomic, "PATIENCE", 0.0)


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
