"""Shards that cannot be read where they are: compressed, at addresses; and the cache of their copies."""

import os
import time
from pathlib import Path

import pytest
from support.numbered import write, write_shards
from support.server import Requests, serving

from onepeace.data import shard_cache
from onepeace.data.prefetch import Prefetch
from onepeace.data.shard import UnreadableShard, content_of, open_shard
from onepeace.data.shard_cache import CacheFailure
from onepeace.data.shards import expand
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
    return lambda place, megabytes=1.0: open_shard(place, megabytes * 1e6)


def contents(shard):
    """Keys and members of a shard."""
    rows = range(len(shard.index))
    return [(shard.index.key(row), content_of(shard.members(row))) for row in rows]


def keys(shard):
    return [shard.index.key(row) for row in range(len(shard.index))]


def test_addresses_are_expanded_and_nothing_is_opened():
    assert expand("https://x.org/a-{01..03}.tar") == [f"https://x.org/a-0{i}.tar" for i in (1, 2, 3)]
    assert expand("b/{y,x}.tar?k=1", "https://x.org/data/") == [f"https://x.org/data/b/{k}.tar?k=1" for k in "xy"]
    for wrong in ("nonsense://me:secret@b/x.tar?token=secret", "https://me:secret@x.org/*.tar", "a-{1..3.tar"):
        with pytest.raises(UserError) as caught:
            expand(wrong)
        assert "secret" not in str(caught.value)


def test_commands_are_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for pattern, root in (("pipe:touch ran", None), ("{pipe:touch ran,pipe:touch run}", None), ("touch ran", "pipe:")):
        with pytest.raises(UserError):
            expand(pattern, root)
    assert list(tmp_path.iterdir()) == []


def test_object_stores_are_listed_and_read(tmp_path):
    import fsspec

    store = fsspec.filesystem("memory")
    for shard in write_shards(tmp_path, [3, 2]):
        store.pipe(f"/bucket/{Path(shard).name}", Path(shard).read_bytes())
    shards = [open_shard(address) for address in expand("*.tar*", "memory://bucket")]
    assert [keys(shard) for shard in shards] == [["0-0", "0-1", "0-2"], ["1-0", "1-1"]]
    assert shards[0].index.damages + shards[1].index.damages == []


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


@pytest.mark.parametrize("place", ["none.tar", "cut/000.tar", "stall/000.tar"])
def test_what_cannot_be_downloaded_is_named(served, cached, tmp_path, monkeypatch, place):
    folder, address, _ = served
    monkeypatch.setattr(shard_cache, "STALLED", 0.3)
    write_shards(folder, [6])
    with pytest.raises(UnreadableShard) as caught:
        cached(f"{address}/{place}?key=secret")
    assert str(caught.value).startswith(f"{address}/{place}: ")
    assert "secret" not in str(caught.value)
    assert not list((tmp_path / "cache/shards").glob("*.tar*"))


def test_shards_are_copied_ahead_and_requested_once(served, cached):
    folder, address, requests = served
    write_shards(folder, [3, 3, 3, 3, 3])
    addresses = [f"{address}/{name.name}" for name in sorted(folder.iterdir())]
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


def test_copies_are_made_once_and_the_oldest_give_way(tmp_path, cached):
    cache = tmp_path / "cache/shards"
    shards = [write(tmp_path / f"{i}.tar.gz", ["x", "y"], size=40_000) for i in range(4)]
    first = cached(shards[0], 0.2)
    (copy,) = cache.glob("*.tar")
    inode = copy.stat().st_ino
    assert contents(cached(shards[0], 0.2)) == contents(first)
    assert copy.stat().st_ino == inode
    for shard in shards[1:]:
        if copy.exists():
            os.utime(copy, (1, 1))
        cached(shard, 0.2)
    assert not copy.exists()
    assert sum(path.stat().st_size for path in cache.iterdir()) < 200_000
    assert len(first.members(0)["jpg"].read()) == 40_000  # copied again
    large = cached(write(tmp_path / "large.tar.gz", ["x"], size=300_000), 0.2)
    assert len(large.members(0)["jpg"].read()) == 300_000
    assert len(list(cache.glob("*.tar"))) == 1  # it stays alone


def test_cache_is_not_listed_for_each_new_file(tmp_path, cached, monkeypatch):
    listed = []
    list_files = shard_cache._files_by_age
    monkeypatch.setattr(shard_cache, "_files_by_age", lambda folder: listed.append(folder) or list_files(folder))
    for i in range(5):
        cached(write(tmp_path / f"{i}.tar", ["x"]))
    assert len(listed) == 1  # the first time
    total = int((tmp_path / "cache/shards/total_bytes").read_text())
    assert total == sum(path.stat().st_size for path in (tmp_path / "cache/shards").glob("*.safetensors"))


def test_shard_that_is_written_again_is_read_anew(tmp_path, cached):
    for keys_ in (["x"], ["y", "x"]):
        write(tmp_path / "new.tar", keys_)
        os.replace(tmp_path / "new.tar", tmp_path / "a.tar")
        for key, members in contents(cached(str(tmp_path / "a.tar"))):
            assert f"it is {key}" in str(members["json"])


def test_cache_that_cannot_be_written_is_an_error(tmp_path, cached):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(CacheFailure, match="ONEPEACE_CACHE"):
        cached(write(tmp_path / "x.tar", ["x"]))


def test_full_disk_is_an_error_with_its_remedy(tmp_path, cached, monkeypatch):
    def full(address, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shard_cache, "_copy_once", full)
    with pytest.raises(CacheFailure, match=r"No space left.*data\.cache_gigabytes"):
        cached(write(tmp_path / "x.tar.gz", ["x"]))
    monkeypatch.setattr(Path, "write_bytes", full)  # of an index
    with pytest.raises(CacheFailure, match=r"No space left.*data\.cache_gigabytes"):
        cached(write(tmp_path / "x.tar", ["x"]))
