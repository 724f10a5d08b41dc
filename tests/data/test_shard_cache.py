"""Shards that cannot be read where they are: compressed, at addresses; and the cache of their copies."""

import functools
import http.server
import os
import threading
from pathlib import Path

import pytest
from support.numbered import write, write_shards
from support.server import serving

from onepeace.data import shard_cache
from onepeace.data.shard_cache import content_of, open_shard
from onepeace.data.shards import expand
from onepeace.errors import UserError


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder, and its address over HTTP. Below /cut/ a file ends too early; below /stall/ its last byte does not
    come."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(shard_cache, "WAITS", (0.0,))
    folder, over = tmp_path / "served", threading.Event()
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            kind, _, name = self.path[1:].partition("/")
            if kind not in ("cut", "stall"):
                return super().do_GET()
            data = (folder / name).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[:-1])
            if kind == "stall":
                over.wait(20)

    with serving(functools.partial(Handler, directory=str(folder))) as address:
        yield folder, address
        over.set()


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """Opens a shard through a cache of its own, in the folder cache/shards."""
    monkeypatch.setenv("ONEPEACE_CACHE", str(tmp_path / "cache"))
    return lambda place, megabytes=1.0: open_shard(place, megabytes * 1e6)


def contents(sample):
    return [value if isinstance(value, str) else content_of(value) for value in sample.values()]


def read(places):
    opened = [open_shard(place) for place in places]
    found = [sample["__key__"] for samples, _ in opened for sample in samples]
    return found, [line for _, broken in opened for line in broken]


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
    places = expand("*.tar*", "memory://bucket")
    assert len(places) == 2
    assert read(places) == (["0-0", "0-1", "0-2", "1-0", "1-1"], [])


def test_shards_over_http_equal_the_files(served, cached):
    folder, address = served
    write_shards(folder, [30, 20])
    for name in ("000.tar", "001.tar.gz"):
        (remote, no_faults), (local, none) = (cached(place) for place in (f"{address}/{name}", str(folder / name)))
        assert not no_faults + none
        assert len(remote) == len(local) in (20, 30)
        assert [contents(one) for one in remote] == [contents(one) for one in local]
    write(folder / "a[1].tar", ["x"])
    assert read([f"{address}/a[1].tar"]) == (["x"], [])  # no pattern


@pytest.mark.parametrize("place", ["none.tar", "cut/000.tar", "stall/000.tar"])
def test_what_cannot_be_downloaded_is_named_and_left_out(served, cached, tmp_path, monkeypatch, place):
    folder, address = served
    monkeypatch.setattr(shard_cache, "STALLED", 0.3)
    write_shards(folder, [6])
    samples, broken = cached(f"{address}/{place}?key=secret")
    assert samples == []
    assert broken[0].startswith(f"{address}/{place}: ")
    assert "secret" not in broken[0]
    assert not list((tmp_path / "cache/shards").glob("*.tar*"))


def test_copies_are_made_once_and_the_oldest_give_way(tmp_path, cached):
    cache = tmp_path / "cache/shards"
    shards = [write(tmp_path / f"{i}.tar.gz", ["x", "y"], size=40_000) for i in range(4)]
    first, _ = cached(shards[0], 0.2)
    copies = list(cache.glob("*.tar"))
    stamps = copies[0].stat().st_ino
    assert cached(shards[0], 0.2) == (first, [])
    assert copies[0].stat().st_ino == stamps
    for shard in shards[1:]:
        if copies[0].exists():
            os.utime(copies[0], (1, 1))
        cached(shard, 0.2)
    assert not copies[0].exists()
    assert sum(path.stat().st_size for path in cache.iterdir()) < 200_000
    assert len(content_of(first[0]["jpg"])) == 40_000  # copied again
    (large,), _ = cached(write(tmp_path / "large.tar.gz", ["x"], size=300_000), 0.2)
    assert len(content_of(large["jpg"])) == 300_000
    assert len(list(cache.glob("*.tar"))) == 1  # it stays alone


def test_shard_that_is_written_again_is_read_anew(tmp_path, cached):
    for keys_ in (["x"], ["y", "x"]):
        write(tmp_path / "new.tar", keys_)
        os.replace(tmp_path / "new.tar", tmp_path / "a.tar")
        samples, _ = cached(str(tmp_path / "a.tar"))
        for one, key in zip(samples, keys_, strict=True):
            assert f"it is {key}" in str(content_of(one["json"]))


def test_tars_one_behind_another_are_one_shard(tmp_path, cached):
    parts = [Path(write(tmp_path / f"{key}.tar", [key])).read_bytes() for key in "xy"]
    (tmp_path / "both.tar").write_bytes(b"".join(parts))
    samples, broken = cached(str(tmp_path / "both.tar"))
    assert ([one["__key__"] for one in samples], broken) == (["x", "y"], [])


def test_cache_that_cannot_be_written_is_an_error(tmp_path, cached):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match="ONEPEACE_CACHE"):
        cached("x.tar")
