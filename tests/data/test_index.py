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


def test_index_holds_keys_endings_and_places(tmp_path):
    members = {"a.jpg": b"picture", "a.json": b"{", "dir/b.2.jpg": b"second", "dir/b.jpg": b"first", "ü.txt": b""}
    shard = open_shard(str(write_tar(tmp_path / "a.tar", members)))
    rows = [(shard.index.key(row), content_of(shard.members(row))) for row in range(len(shard.index))]
    assert rows == [
        ("a", {"jpg": b"picture", "json": b"{"}),
        ("dir/b", {"2.jpg": b"second", "jpg": b"first"}),
        ("ü", {"txt": b""}),
    ]
    again = open_shard(str(tmp_path / "a.tar"))
    for name in ("offsets", "sizes", "layout_of", "member_starts"):
        assert np.array_equal(getattr(again.index, name), getattr(shard.index, name))
    assert (again.index.layouts, again.index.digest) == (shard.index.layouts, shard.index.digest)


def test_digest_tells_shards_apart_and_not_machines(tmp_path):
    first = open_shard(write(tmp_path / "a.tar", ["x", "y"]))
    copy = open_shard(write(tmp_path / "b.tar", ["x", "y"]))
    other = open_shard(write(tmp_path / "c.tar", ["x", "z"]))
    assert first.index.digest == copy.index.digest != other.index.digest


def test_tars_one_behind_another_are_one_shard(tmp_path):
    parts = [Path(write(tmp_path / f"{key}.tar", [key])).read_bytes() for key in "xy"]
    (tmp_path / "both.tar").write_bytes(b"".join(parts))
    index = open_shard(str(tmp_path / "both.tar")).index
    assert [index.key(row) for row in range(len(index))] == ["x", "y"]
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


def change(path):
    write(path.with_suffix(".new"), ["x"])
    os.utime(path.with_suffix(".new"), ns=(1, 1))
    os.replace(path.with_suffix(".new"), path)


@pytest.mark.parametrize(
    ("alter", "told"),
    [
        (lambda path: os.truncate(path, 700), "has changed since"),
        (change, "has changed since"),
        (os.unlink, "cannot be read"),
        (lambda path: (os.unlink(path), os.mkfifo(path)), "not a regular file"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes")
def test_shard_that_changes_under_a_run_is_named(tmp_path, alter, told):
    path = tmp_path / "a.tar"
    shard = open_shard(write(path, ["x"]))
    alter(path)
    shard_module.forget_open_files()
    for _ in range(2):
        with pytest.raises(UnreadableShard, match=rf"a\.tar: .*{told}") as caught:
            shard.members(0)["jpg"].read()
        assert "\n" not in str(caught.value)


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes")
def test_pipe_and_folder_are_no_shards(tmp_path):
    os.mkfifo(tmp_path / "a.tar")
    (tmp_path / "b.tar").mkdir()
    for name in ("a.tar", "b.tar"):
        with pytest.raises(UnreadableShard, match=rf"{name}: it is not a regular file"):
            open_shard(str(tmp_path / name))
