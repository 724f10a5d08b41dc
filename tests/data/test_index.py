"""The index of a shard, and reading of members: nothing is parsed, and no other file is taken for the shard."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from support.numbered import write
from support.small_shards import write_tar

from onepeace.data import shard as shard_module
from onepeace.data.index import index_tar
from onepeace.data.shard import UnreadableShard, content_of, open_shard


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(shard_module, "READ_PAUSES", (0.0, 0.0))
    shard_module.forget_open_files()


class Counted:
    """A file that counts the bytes that are read of it."""

    def __init__(self, path):
        self.file = open(path, "rb", buffering=0)
        self.bytes_read = 0

    def read(self, size=-1):
        data = self.file.read(size)
        self.bytes_read += len(data)
        return data

    def __getattr__(self, name):
        return getattr(self.file, name)


def test_index_reads_headers_alone(tmp_path):
    write(tmp_path / "a.tar", [f"k{i}" for i in range(10)], size=100_000)
    file = Counted(tmp_path / "a.tar")
    with file.file:
        index = index_tar(file, "a.tar")
    assert len(index) == 10
    assert file.bytes_read < 40_000  # headers of 20 members, padding, and the end of the tar


def test_index_finds_the_members_of_a_key(tmp_path):
    members = {"a.jpg": b"picture", "a.json": b"{", "dir/b.2.jpg": b"second", "dir/b.jpg": b"first", "ü.txt": b""}
    shard = open_shard(str(write_tar(tmp_path / "a.tar", members)))
    content_by_key = {}
    for row in range(len(shard.index)):
        content_by_key[shard.index.key(row)] = content_of(shard.members(row))
    assert content_by_key == {
        "a": {"jpg": b"picture", "json": b"{"},
        "dir/b": {"2.jpg": b"second", "jpg": b"first"},
        "ü": {"txt": b""},
    }


def test_index_in_the_cache_is_that_of_the_shard(tmp_path):
    path = write(tmp_path / "a.tar", ["x", "y"])
    first = open_shard(path).index
    second = open_shard(path).index
    for name in ("offsets", "sizes", "layout_of", "member_starts"):
        assert np.array_equal(getattr(second, name), getattr(first, name)), name
    assert second.layouts == first.layouts
    assert second.digest == first.digest


def test_digest_tells_shards_apart_and_not_machines(tmp_path):
    first = open_shard(write(tmp_path / "a.tar", ["x", "y"]))
    copy = open_shard(write(tmp_path / "b.tar", ["x", "y"]))
    other = open_shard(write(tmp_path / "c.tar", ["x", "z"]))
    assert first.index.digest == copy.index.digest != other.index.digest


def test_tars_one_behind_another_are_one_shard(tmp_path):
    first = Path(write(tmp_path / "x.tar", ["x"]))
    second = Path(write(tmp_path / "y.tar", ["y"]))
    (tmp_path / "both.tar").write_bytes(first.read_bytes() + second.read_bytes())
    index = open_shard(str(tmp_path / "both.tar")).index
    assert len(index) == 2
    assert index.key(0) == "x"
    assert index.key(1) == "y"
    assert index.damages == []


def test_damaged_index_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("ONEPEACE_CACHE", str(tmp_path / "cache"))
    path = write(tmp_path / "a.tar", ["x", "y"])
    open_shard(path)
    (index_file,) = (tmp_path / "cache/shards").glob("*.safetensors")
    index_file.write_bytes(index_file.read_bytes()[:50])
    assert len(open_shard(path).index) == 2


# Files that are not what they were


def test_read_that_fails_once_is_tried_again(tmp_path, monkeypatch):
    shard = open_shard(write(tmp_path / "a.tar", ["x"]))
    failures = [OSError(5, "Input/output error")]
    read = shard_module.OpenFile.read_any

    def failing(file, offset, size):
        if failures:
            raise failures.pop()
        return read(file, offset, size)

    monkeypatch.setattr(shard_module.OpenFile, "read_any", failing)
    assert b"it is x" in shard.members(0)["json"].read()
    failures = [OSError(5, "Input/output error")]
    assert len(open_shard(str(tmp_path / "a.tar")).index) == 1


def cut(path):
    os.truncate(path, 700)


def replace(path):
    newer = path.with_suffix(".new")
    write(newer, ["x"])
    os.utime(newer, ns=(1, 1))
    os.replace(newer, path)


def make_a_pipe(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("alter", "reason"),
    [
        (cut, "has changed since"),
        (replace, "has changed since"),
        (os.unlink, "cannot be read"),
        (make_a_pipe, "not a regular file"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes")
def test_shard_that_changes_under_a_run_is_named(tmp_path, alter, reason):
    path = tmp_path / "a.tar"
    shard = open_shard(write(path, ["x"]))
    alter(path)
    shard_module.forget_open_files()
    for _ in range(2):
        with pytest.raises(UnreadableShard, match=rf"a\.tar: .*{reason}") as caught:
            shard.members(0)["jpg"].read()
        assert "\n" not in str(caught.value)


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes")
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_pipe_and_folder_are_no_shards(tmp_path, make):
    make(tmp_path / "a.tar")
    with pytest.raises(UnreadableShard, match=r"a\.tar: it is not a regular file"):
        open_shard(str(tmp_path / "a.tar"))
