"""Writing a file all at once."""

import os
import subprocess
import sys

import pytest

from onepeace.files.atomic import remove_unfinished_in, write_atomic, write_text_atomic


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


def test_new_content_appears_at_the_end_of_the_block(target):
    with write_atomic(target) as temporary:
        temporary.write_bytes(b"new")
        assert not target.exists()

    assert target.read_bytes() == b"new"
    assert os.listdir(target.parent) == ["v.npz"]


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
