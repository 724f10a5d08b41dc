"""Writing a file all at once."""

import os
import subprocess
import sys

import pytest

from onepeace.commands.files import check_output
from onepeace.files.atomic import write_atomic, write_text_atomic


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


@pytest.fixture
def leftover(target):
    """What a process left that was killed while it wrote."""
    subprocess.run([sys.executable, "-c", KILLED, str(target)], check=False)
    (path,) = target.parent.iterdir()
    return path


def test_leftover_of_a_killed_process_is_removed_by_the_next_command(target, leftover):
    check_output(target, force=False)
    assert not leftover.exists()


def test_file_that_is_being_written_is_no_leftover(target, leftover):
    with write_atomic(target) as temporary:
        check_output(target, force=False)
        temporary.write_bytes(b"whole")

    assert target.read_bytes() == b"whole"
    assert os.listdir(target.parent) == ["v.npz"]
