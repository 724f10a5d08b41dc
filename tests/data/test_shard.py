"""Shards that cannot be read where they are: compressed, at addresses; and the cache of their copies."""

import os
import time
from pathlib import Path

import fsspec
import pytest
from support.numbered import write, write_shards
from support.server import Requests, serving

from onepeace.data import shard_cache
from onepeace.data.prefetch import Prefetch
from onepeace.data.shard import UnreadableShard, content_of, open_shard
from onepeace.data.shard_cache import CacheFailure
from onepeace.data.source import expand
from onepeace.errors import UserError


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder, its address over HTTP, and the requests."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(shard_cache, "PAUSES", (0.0,))
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
    rows = range(len(shard.index))
    return [(shard.index.key(row), content_of(shard.members(row))) for row in rows]


def keys(shard):
    return [shard.index.key(row) for row in range(len(shard.index))]


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
    assert keys(first) == ["0-0", "0-1", "0-2"]
    assert keys(second) == ["1-0", "1-1"]
    assert first.index.damages + second.index.damages == []


# Over HTTP


def test_shards_over_http_equal_the_files(served, cached):
    folder, address, requests = served
    write_shards(folder, [30, 20])
    for name in ("000.tar", "001.tar.gz"):
        remote = cached(f"{address}/{name}")
        local = cached(str(folder / name))
        assert contents(remote) == contents(local)
        assert remote.index.digest == local.index.digest
        assert remote.index.damages == local.index.damages == []
        assert len(remote.index) in (20, 30)
    write(folder / "a[1].tar", ["x"])
    assert keys(cached(f"{address}/a[1].tar")) == ["x"]  # no pattern
    assert set(requests.counts.values()) == {1}


@pytest.mark.parametrize("kind", ["error-once", "cut-once"])
@pytest.mark.parametrize("name", ["000.tar", "001.tar.gz"])
def test_server_that_fails_once_changes_nothing(served, cached, kind, name):
    folder, address, requests = served
    write_shards(folder, [6, 4])
    shard = cached(f"{address}/{kind}/{name}")
    assert contents(shard) == contents(cached(str(folder / name)))
    assert shard.index.damages == []
    assert requests.counts[f"/{kind}/{name}"] == 2


@pytest.mark.parametrize("path", ["none.tar", "cut/000.tar", "stall/000.tar"])
def test_failed_download_is_named(served, cached, tmp_path, monkeypatch, path):
    folder, address, _ = served
    monkeypatch.setattr(shard_cache, "STALLED", 0.3)
    write_shards(folder, [6])
    with pytest.raises(UnreadableShard) as caught:
        cached(f"{address}/{path}?key=secret")
    assert str(caught.value).startswith(f"{address}/{path}: ")
    assert "secret" not in str(caught.value)
    assert not list((tmp_path / "cache/shards").glob("*.tar*"))


def test_shards_are_copied_ahead_and_requested_once(served, cached):
    folder, address, requests = served
    write_shards(folder, [3, 3, 3, 3, 3])
    addresses = [f"{address}/{path.name}" for path in sorted(folder.iterdir())]
    prefetch = Prefetch(1e6)
    prefetch.ask(addresses)
    prefetch.ask(addresses)
    end = time.monotonic() + 60
    while len(requests.counts) < 5 and time.monotonic() < end:
        time.sleep(0.01)
    assert len(requests.counts) == 5
    for shard in addresses:
        assert len(cached(shard).index) == 3
    assert set(requests.counts.values()) == {1}


# The cache


def write_compressed(folder, count):
    """Shards of 80 kB."""
    return [write(folder / f"{i}.tar.gz", ["x", "y"], size=40_000) for i in range(count)]


@pytest.fixture
def copies(tmp_path):
    """Returns the copies in the cache."""
    return lambda: list((tmp_path / "cache/shards").glob("*.tar"))


def test_copy_is_made_once(tmp_path, cached, copies):
    (path,) = write_compressed(tmp_path, 1)
    first = cached(path)
    (copy,) = copies()
    inode = copy.stat().st_ino
    assert contents(cached(path)) == contents(first)
    assert copy.stat().st_ino == inode


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


def test_copy_that_is_larger_than_the_cache_stays_alone(tmp_path, cached, copies):
    cached(*write_compressed(tmp_path, 1), 0.2)
    large = cached(write(tmp_path / "large.tar.gz", ["x"], size=300_000), 0.2)
    assert len(large.members(0)["jpg"].read()) == 300_000
    assert len(copies()) == 1


def test_cache_is_not_listed_for_each_new_file(tmp_path, cached, monkeypatch):
    folder = tmp_path / "cache/shards"
    listed = []
    iterdir = Path.iterdir

    def counted_iterdir(path):
        if path == folder:
            listed.append(path)
        return iterdir(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", counted_iterdir)
        for i in range(5):
            cached(write(tmp_path / f"{i}.tar", ["x"]))
    assert len(listed) == 1  # the first time
    total = int((folder / "total_bytes").read_text())
    assert total == sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def test_shard_that_is_written_again_is_read_anew(tmp_path, cached):
    for keys_of_version in (["x"], ["y", "x"]):
        write(tmp_path / "new.tar", keys_of_version)
        os.replace(tmp_path / "new.tar", tmp_path / "a.tar")
        for key, members in contents(cached(tmp_path / "a.tar")):
            assert f"it is {key}" in str(members["json"])


def test_cache_that_cannot_be_written_is_an_error(tmp_path, cached):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(CacheFailure, match="ONEPEACE_CACHE"):
        cached(write(tmp_path / "x.tar", ["x"]))


def no_space(*arguments):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("owner", "function", "name"),
    [(shard_cache.gzip, "open", "x.tar.gz"), (Path, "write_bytes", "x.tar")],
    ids=["copy", "index"],
)
def test_full_disk_is_an_error_with_its_remedy(tmp_path, cached, monkeypatch, owner, function, name):
    shard = write(tmp_path / name, ["x"])
    monkeypatch.setattr(owner, function, no_space)
    with pytest.raises(CacheFailure, match=r"No space left.*data\.cache_gigabytes"):
        cached(shard)
