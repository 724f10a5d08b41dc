"""Shards: what is whole, what their index holds, reading of members, and the cache of those that are elsewhere."""

import os
import sys
import tarfile
import time
from pathlib import Path

import fsspec
import pytest
from support.numbered import write, write_shards
from support.server import Requests, serving
from support.small_shards import write_tar

from onepeace.data import shard as shard_module
from onepeace.data.shard import CacheFailure, UnreadableShard, content_of, fetch_ahead, open_shard
from onepeace.data.source import expand
from onepeace.errors import UserError


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder, its address over HTTP, and the requests."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()
    requests = Requests()
    with serving(requests.handler(folder)) as address:
        yield folder, address, requests
        requests.over.set()


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """Opens a shard through a cache of its own, in the folder cache/shards."""
    monkeypatch.setenv("ONEPEACE_CACHE", str(tmp_path / "cache"))
    return lambda address, megabytes=1.0: open_shard(str(address), megabytes * 1e6)


def contents(shard):
    """Keys and members of a shard."""
    return [(key, content_of(shard.members(row))) for row, key in enumerate(shard.keys)]


# What is whole


END = 1024
"""Bytes of the two blocks of zeros that end a tar."""
SPARSE = {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(10**18)}
"""Fields of a member of ``tar -S``, with a size of no possible file."""


def without_padding(tar):
    """A tar up to its two blocks of zeros."""
    blocks = -(-len(tar.rstrip(b"\0")) // 512)
    return tar[: 512 * blocks + END]


@pytest.mark.parametrize(
    ("alter", "told"),
    [
        (lambda tar: tar[: len(tar) // 2], "is cut short: it ends within k5.jpg"),
        (lambda tar: tar[:-END], "is cut short: after k9.json .*the end of a tar is missing"),
        (lambda tar: tar[:-1], "is cut short: after k9.json"),
        (lambda tar: tar[:2048] + b"x" * 512 + tar[2560:], "is damaged after k0.json: what begins at byte 2048"),
        (lambda tar: tar + tar, "is damaged after k9.json"),
        (lambda tar: bytes(len(tar)), "has no sample"),
        (lambda tar: b"", "is not a tar: it has 0 bytes"),
        (lambda tar: b"<!DOCTYPE html>" * 100, "is not a tar: it has 1500 bytes and begins with b'<!DOCTYPE html>"),
    ],
    ids=["half", "end", "byte", "damage", "two", "zeros", "empty", "page"],
)
def test_tar_that_is_not_whole_is_no_shard(tmp_path, alter, told):
    path = Path(write(tmp_path / "a.tar", [f"k{i}" for i in range(10)]))
    whole = without_padding(path.read_bytes())
    path.write_bytes(whole)
    assert len(open_shard(str(path))) == 10
    path.write_bytes(alter(whole))
    with pytest.raises(UnreadableShard, match=rf"a\.tar: .*{told}"):
        open_shard(str(path))


@pytest.mark.parametrize(
    ("format", "fields", "told"),
    [
        (tarfile.PAX_FORMAT, {"size": 2**94}, "is damaged after a.txt: a header of no possible file"),
        (tarfile.GNU_FORMAT, {"size": 2**62, "type": tarfile.GNUTYPE_LONGNAME}, "is damaged .* no possible file"),
        (tarfile.PAX_FORMAT, {"pax_headers": SPARSE}, "a.txt is stored as a sparse file"),
    ],
    ids=["size", "name", "sparse"],
)
def test_header_of_no_possible_file_is_no_shard(tmp_path, format, fields, told):
    header = tarfile.TarInfo("a.txt")
    for name, value in fields.items():
        setattr(header, name, value)
    path = tmp_path / "a.tar"
    path.write_bytes(header.tobuf(format) + bytes(4 * 512))
    with pytest.raises(UnreadableShard, match=rf"a\.tar: {told}"):
        open_shard(str(path))


def test_member_that_comes_twice_is_named(tmp_path):
    write_tar(tmp_path / "a.tar", [("x.png", b"1"), ("x.png", b"2")])
    with pytest.raises(UnreadableShard, match=r"a\.tar: x\.png: duplicate"):
        open_shard(str(tmp_path / "a.tar"))


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes")
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_pipe_and_folder_are_no_shards(tmp_path, make):
    make(tmp_path / "a.tar")
    with pytest.raises(UnreadableShard, match=r"a\.tar: it is not a regular file"):
        open_shard(str(tmp_path / "a.tar"))


# The index


def test_index_finds_the_members_of_a_key(tmp_path, cached):
    members = {"a.jpg": b"picture", "a.json": b"{", "dir/b.2.jpg": b"second", "dir/b.jpg": b"first", "ü.txt": b""}
    path = write_tar(tmp_path / "a.tar", members)
    for _ in range(2):  # the second time, the index is read from the cache
        assert contents(cached(path)) == [
            ("a", {"jpg": b"picture", "json": b"{"}),
            ("dir/b", {"2.jpg": b"second", "jpg": b"first"}),
            ("ü", {"txt": b""}),
        ]


def test_shard_that_is_written_again_is_read_anew(tmp_path, cached):
    for keys_of_version in (["x"], ["y", "x"]):
        write(tmp_path / "new.tar", keys_of_version)
        os.replace(tmp_path / "new.tar", tmp_path / "a.tar")
        assert cached(tmp_path / "a.tar").keys == keys_of_version


# Files that are not what they were


def test_read_that_fails_once_is_tried_again(tmp_path, monkeypatch):
    shard = open_shard(write(tmp_path / "a.tar", ["x"]))
    failures = [OSError(5, "Input/output error")]
    read = shard_module.OpenFile.read

    def failing(file, offset, size):
        if failures:
            raise failures.pop()
        return read(file, offset, size)

    monkeypatch.setattr(shard_module.OpenFile, "read", failing)
    assert b"it is x" in shard.members(0)["json"].read()
    failures = [OSError(5, "Input/output error")]
    assert len(open_shard(str(tmp_path / "a.tar"))) == 1


def cut(path):
    os.truncate(path, 700)


def replace(path):
    newer = path.with_suffix(".new")
    write(newer, ["x"])
    os.utime(newer, ns=(1, 1))
    os.replace(newer, path)


@pytest.mark.parametrize(
    ("alter", "reason"),
    [
        (cut, "has changed since"),
        (replace, "has changed since"),
        (os.unlink, "cannot be read"),
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


# Addresses


@pytest.mark.parametrize(
    ("pattern", "root", "addresses"),
    [
        ("https://x.org/a-{01..02}.tar", None, ["https://x.org/a-01.tar", "https://x.org/a-02.tar"]),
        ("{y,x}.tar?k=1", "https://x.org/b/", ["https://x.org/b/x.tar?k=1", "https://x.org/b/y.tar?k=1"]),
    ],
)
def test_addresses_are_expanded_and_nothing_is_opened(pattern, root, addresses):
    assert expand(pattern, root) == addresses


@pytest.mark.parametrize(
    "pattern", ["nonsense://me:secret@b/x.tar?token=secret", "https://me:secret@x.org/*.tar", "a-{1..3.tar"]
)
def test_wrong_addresses_are_refused_without_their_secrets(pattern):
    with pytest.raises(UserError) as caught:
        expand(pattern)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "root"),
    [("pipe:touch ran", None), ("{pipe:touch ran,pipe:touch run}", None), ("touch ran", "pipe:")],
)
def test_commands_are_refused_and_not_run(tmp_path, monkeypatch, pattern, root):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        expand(pattern, root)
    assert list(tmp_path.iterdir()) == []


def test_object_stores_are_listed_and_read(tmp_path):
    store = fsspec.filesystem("memory")
    for shard in write_shards(tmp_path, [3, 2]):
        path = Path(shard)
        store.pipe(f"/bucket/{path.name}", path.read_bytes())
    first, second = [open_shard(address) for address in expand("*.tar*", "memory://bucket")]
    assert first.keys == ["0-0", "0-1", "0-2"]
    assert second.keys == ["1-0", "1-1"]


# Servers


def test_shards_over_http_equal_the_files(served, cached):
    folder, address, requests = served
    write_shards(folder, [30, 20])
    for name, count in {"000.tar": 30, "001.tar.gz": 20}.items():
        remote = cached(f"{address}/{name}")
        assert len(remote) == count
        assert contents(remote) == contents(cached(str(folder / name)))
    write(folder / "a[1].tar", ["x"])
    assert cached(f"{address}/a[1].tar").keys == ["x"]  # no pattern
    assert set(requests.counts.values()) == {1}


@pytest.mark.parametrize("kind", ["500", "cut", "half", "unsized", "login"])
def test_server_that_fails_once_changes_nothing(served, cached, kind):
    folder, address, requests = served
    write_shards(folder, [6, 4])
    shard = cached(f"{address}/{kind}-once/001.tar.gz")
    assert contents(shard) == contents(cached(str(folder / "001.tar.gz")))
    assert requests.counts[f"/{kind}-once/001.tar.gz"] == 2


@pytest.mark.parametrize(
    ("kind", "attempts", "told"),
    [
        ("500", 3, "the server answered 500 Internal Server Error"),
        ("403", 1, "the server answered 403 Forbidden"),
        ("404", 1, "not found"),
        ("cut", 3, "not enough data|payload"),
        ("half", 3, "is cut short"),
        ("unsized", 3, "is cut short"),
        ("login", 3, "is not a tar: it has 43 bytes and begins with b'<!DOCTYPE html>"),
        ("stall", 3, "no data for 0 s"),
        ("slow", 1, "not complete after 1 s"),
    ],
)
def test_server_that_always_fails_is_named_and_nothing_is_kept(
    served, cached, tmp_path, monkeypatch, kind, attempts, told
):
    folder, address, requests = served
    monkeypatch.setattr(shard_module, "STALLED", 0.3 if kind == "stall" else 60.0)
    monkeypatch.setattr(shard_module, "REQUEST_SECONDS", 1.0 if kind == "slow" else 600.0)
    write_shards(folder, [6])
    with pytest.raises(UnreadableShard, match=told) as caught:
        cached(f"{address}/{kind}/000.tar?key=secret")
    assert str(caught.value).startswith(f"{address}/{kind}/000.tar: ")
    assert "secret" not in str(caught.value)
    assert requests.counts.total() == attempts
    assert {path.suffix for path in (tmp_path / "cache/shards").iterdir()} == {".lock"}


def test_shards_are_fetched_ahead_and_requested_once(served, cached):
    folder, address, requests = served
    write_shards(folder, [3, 3, 3, 3, 3])
    addresses = [f"{address}/{path.name}" for path in sorted(folder.iterdir())]
    fetch_ahead(addresses, 1e6)
    end = time.monotonic() + 60
    while len(requests.counts) < 5 and time.monotonic() < end:
        time.sleep(0.01)
    assert len(requests.counts) == 5
    for shard in addresses:
        assert len(cached(shard)) == 3
    assert set(requests.counts.values()) == {1}


# The cache


def write_compressed(folder, count):
    """Shards of 80 kB."""
    return [write(folder / f"{i}.tar.gz", ["x", "y"], size=40_000) for i in range(count)]


@pytest.fixture
def copies(tmp_path):
    """Returns the copies in the cache."""
    return lambda: list((tmp_path / "cache/shards").glob("*.tar"))


def test_oldest_copies_give_way_and_are_made_again(tmp_path, cached, copies):
    paths = write_compressed(tmp_path, 4)
    first = cached(paths[0], 0.2)
    (oldest_copy,) = copies()
    for path in paths[1:]:
        if oldest_copy.exists():
            os.utime(oldest_copy, (1, 1))
        cached(path, 0.2)
    assert not oldest_copy.exists()
    assert sum(path.stat().st_size for path in oldest_copy.parent.iterdir()) < 200_000
    assert len(first.members(0)["jpg"].read()) == 40_000


@pytest.mark.parametrize("is_open", [True, False])
def test_cut_copy_is_made_anew(tmp_path, cached, copies, is_open):
    (path,) = write_compressed(tmp_path, 1)
    shard = cached(path)
    expected = contents(shard)
    (copy,) = copies()
    os.truncate(copy, 4096)

    assert contents(shard if is_open else cached(path)) == expected


def test_damaged_copy_is_made_anew(tmp_path, cached, copies):
    (path,) = write_compressed(tmp_path, 1)
    expected = contents(cached(path))
    (copy,) = copies()
    offset = cached(path).members(0)["jpg"].offset
    damaged = bytearray(copy.read_bytes())
    damaged[offset + 7] ^= 1
    copy.write_bytes(damaged)
    shard_module.forget_open_files()

    assert contents(cached(path)) == expected
    assert copy.read_bytes() != damaged


def test_cache_that_cannot_be_written_is_an_error(tmp_path, cached):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(CacheFailure, match="ONEPEACE_CACHE"):
        cached(write(tmp_path / "x.tar", ["x"]))


def no_space(*arguments):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("owner", "function", "name"),
    [(shard_module.gzip, "open", "x.tar.gz"), (shard_module, "write_derived", "x.tar")],
    ids=["copy", "index"],
)
def test_full_disk_is_an_error_with_its_remedy(tmp_path, cached, monkeypatch, owner, function, name):
    shard = write(tmp_path / name, ["x"])
    monkeypatch.setattr(owner, function, no_space)
    with pytest.raises(CacheFailure, match=r"No space left.*data\.cache_gigabytes"):
        cached(shard)
