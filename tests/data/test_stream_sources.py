"""Streams over HTTP and from commands: what is refused, what is not there, and what stalls."""

import functools
import http.server
import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from support.server import serving
from support.streams import PAIR, at, keys, write, write_shards

from onepeace.data import process_output
from onepeace.data.shards import expand, raw_samples
from onepeace.data.streams import StreamShard, first_samples
from onepeace.errors import UserError


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder, its address over HTTP, and what has been left. Below /cut/ a file ends after two samples; below
    /stall/ its last byte does not come."""
    if shutil.which("curl") is None:
        pytest.skip("webdataset reads addresses with curl")
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            kind, _, name = self.path[1:].partition("/")
            if kind not in ("cut", "stall"):
                return super().do_GET()
            data = (tmp_path / name).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            # A header and a block of data for each of two members.
            self.wfile.write(data[: 2 * 2 * (512 + 512)])
            if kind == "stall":
                self.wfile.write(data[2 * 2 * (512 + 512) : -1])
                over.wait(20)
                left.append(name)

    over, left = threading.Event(), []
    handler = functools.partial(Handler, directory=str(tmp_path))
    with serving(handler) as address:
        yield tmp_path, address, left
        over.set()


@pytest.mark.parametrize("pattern", ["pipe:touch ran", " PIPE:touch ran", "{pipe:touch ran,pipe:touch run}"])
def test_commands_are_refused_and_not_run(tmp_path, monkeypatch, pattern):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"would run a command, and that is not allowed; .*data\.allow_pipe=true"):
        expand(pattern)
    with pytest.raises(UserError):
        expand("touch ran", "pipe:")
    assert list(tmp_path.iterdir()) == []


def test_commands_run_where_they_are_allowed(tmp_path):
    (command,) = expand(f"pipe:cat {write(tmp_path / 'a.tar', [f'0-{i}' for i in range(5)])}", allow_pipe=True)
    assert keys(first_samples([command], PAIR, 9)) == [f"0-{i}" for i in range(5)]
    broken = []
    assert list(raw_samples("pipe:exit 3", broken)) == []
    assert any("the command gave exit code 3" in line for line in broken)


def test_stream_over_http_equals_the_files(served):
    folder, address, _ = served
    write_shards(folder, [30, 20, 40])
    local = StreamShard(expand("*.tar*", folder), PAIR, seed=1, shuffle_buffer=7)
    remote = StreamShard(expand("{000.tar,001.tar.gz,002.tar}", address), PAIR, seed=1, shuffle_buffer=7)
    found = keys(remote, 50)
    assert found == keys(local, 50)
    again = at(StreamShard(remote.shards, PAIR, seed=1, shuffle_buffer=7), json.loads(json.dumps(remote.position)))
    assert keys(again, 100) == keys(local, 100)


def test_missing_and_cut_downloads_are_named(served, caplog):
    folder, address, _ = served
    write_shards(folder, [6, 6])
    shards = [f"{address}/none.tar?key=secret", f"{address}/cut/000.tar", f"{address}/001.tar.gz?key=secret"]
    found = list(first_samples(shards, PAIR, 20))
    assert keys(found) == ["0-0", "0-1", *(f"1-{i}" for i in range(6))]
    assert found[-1].source == f"{address}/001.tar.gz"
    assert "none.tar: not read to its end, curl gave exit code 22" in caplog.text
    assert "cut/000.tar: not read to its end, curl gave exit code 18" in caplog.text
    assert "secret" not in caplog.text


def test_missing_curl_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "")
    broken = []
    assert list(raw_samples("https://x.org/a.tar", broken)) == []
    assert broken == ["https://x.org/a.tar: curl is not installed, and addresses are read with it"]


def test_brackets_in_an_address_are_no_pattern(served):
    folder, address, _ = served
    write(folder / "a[1].tar", ["x"])
    broken = []
    assert [raw["__key__"] for raw in raw_samples(f"{address}/a[1].tar", broken)] == ["x"]
    assert broken == []


def test_stalled_download_can_be_left(served):
    folder, address, left = served
    write(folder / "a.tar", ["x", "y", "z"], size=20_000)
    raws = raw_samples(f"{address}/stall/a.tar", [])
    next(raws)
    raws.close()  # would wait for the server
    assert left == []


def rest_after_a_stall(raws, monkeypatch):
    """Keys of all samples. The limit is set when the first one is there: how fast a process starts does not matter."""
    first = next(raws)["__key__"]
    monkeypatch.setattr(process_output, "STALLED", 0.5)
    return [first, *(raw["__key__"] for raw in raws)]


def test_stalled_download_is_given_up_and_named(served, monkeypatch):
    folder, address, _ = served
    write(folder / "a.tar", ["x", "y", "z"], size=20_000)
    broken = []
    assert rest_after_a_stall(raw_samples(f"{address}/stall/a.tar", broken), monkeypatch)[:2] == ["x", "y"]
    assert broken[-1] == f"{address}/stall/a.tar: not read to its end, no byte came for 0.5 seconds"


@pytest.mark.parametrize("cut", [10_000, 0], ids=["in the last sample", "after the end"])
def test_stalled_command_is_given_up_and_named(tmp_path, monkeypatch, cut):
    shard = Path(write(tmp_path / "a.tar", "xyz", size=20_000))
    os.truncate(shard, shard.stat().st_size - cut)
    broken = []
    found = rest_after_a_stall(raw_samples(f"pipe:cat {shard}; exec sleep 90", broken), monkeypatch)
    assert found[:2] == ["x", "y"]
    assert "not read to its end, no byte came for 0.5 seconds" in broken[-1]


def test_a_reader_that_pauses_is_no_stall(tmp_path, monkeypatch):
    shard = write(tmp_path / "a.tar", "xyz", size=100_000)  # more than a pipe holds
    broken = []
    raws = raw_samples(f"pipe:cat {shard}", broken)
    found = [next(raws)["__key__"]]
    monkeypatch.setattr(process_output, "STALLED", 0.2)
    time.sleep(0.5)
    assert [*found, *(raw["__key__"] for raw in raws)] == ["x", "y", "z"]
    assert broken == []
