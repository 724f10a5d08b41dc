"""Writing a file all at once."""

import os
import subprocess
import sys

import pytest

from onepeace.commands.files import check_output
from onepeace.files.atomic import write_atomic, write_text_atomic


def test_failed_write_keeps_the_old_file(tmp_path):
    target = tmp_path / "v.npz"
    write_text_atomic(target, "old")

    def fail():
        with write_atomic(target) as temporary:
            temporary.write_bytes(b"half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["v.npz"]


def test_file_of_a_link_is_replaced_and_not_the_link(tmp_path):
    target, link = tmp_path / "there" / "v.html", tmp_path / "v.html"
    target.parent.mkdir()
    link.symlink_to(target)
    for content in ("first", "second"):
        write_text_atomic(link, content)
        assert link.is_symlink()
        assert target.read_text() == content


def test_new_content_appears_at_the_end_of_the_block(tmp_path):
    target = tmp_path / "v.npz"
    with write_atomic(target) as temporary:
        temporary.write_bytes(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["v.npz"]


KILLED = """
import os, sys
from onepeace.files.atomic import write_atomic
with write_atomic(sys.argv[1]) as temporary:
    temporary.write_bytes(b"half")
    os._exit(9)
"""


def test_what_a_killed_process_left_is_removed_by_the_next_command(tmp_path):
    target, other = tmp_path / "v.npz", tmp_path / "w.npz"
    for path in (target, other):
        subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert len(os.listdir(tmp_path)) == 2
    with write_atomic(target) as temporary:
        check_output(target, force=False)
        temporary.write_bytes(b"whole")
    assert target.read_bytes() == b"whole"
    check_output(other, force=False)
    assert os.listdir(tmp_path) == ["v.npz"]
