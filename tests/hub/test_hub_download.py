"""Downloads over a real, badly behaved server: a file that is cut off, changed or wrong is never used."""

import functools
import http.server
import shutil
import time
from dataclasses import dataclass, field

import pytest
from support.server import serving

from onepeace.errors import UserError
from onepeace.hub.download import fetch

CONTENT = bytes(range(256)) * 5000


@pytest.fixture(autouse=True)
def online(monkeypatch):
    """Tests of other packages switch downloads off, in the whole process."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@dataclass
class Script:
    """How the server behaves."""

    content: bytes = CONTENT
    etag: str = '"v1"'
    cuts: list[int] = field(default_factory=list)
    """Bytes of the body to send before hanging up, one entry per request; then no more cuts."""
    ranges: bool = True
    status: int | None = None
    """The error to answer with."""
    seen: list[str | None] = field(default_factory=list)
    """Range of each request for content."""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, script, *args):
        self.script = script
        super().__init__(*args)

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer(200, len(self.script.content))

    def do_GET(self):
        script = self.script
        wanted = self.headers.get("Range")
        script.seen.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and script.ranges else 0
        body = script.content[start:]
        self.answer(206 if start else 200, len(body))
        self.wfile.write(body[: script.cuts.pop(0) if script.cuts else len(body)])

    def answer(self, status, length):
        self.close_connection = True
        self.send_response(self.script.status or status)
        self.send_header("ETag", self.script.etag)
        self.send_header("Content-Length", str(length))
        self.end_headers()


@pytest.fixture
def script():
    return Script()


@pytest.fixture
def url(script, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    with serving(functools.partial(Handler, script)) as address:
        yield f"{address}/file.pt"


def only(path) -> bool:
    """Whether `path` is all there is in its folder."""
    return [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_file_arrives_whole_and_is_asked_for_once(url, script, tmp_path):
    path = tmp_path / "deep" / "file.pt"
    assert fetch(url, path) == fetch(url, path) == path
    assert path.read_bytes() == CONTENT
    assert only(path)
    assert len(script.seen) == 1


@pytest.mark.parametrize("ranges", [True, False])
def test_broken_connections_are_continued(url, script, tmp_path, ranges):
    script.cuts, script.ranges = [300_000, 500_000], ranges
    fetch(url, tmp_path / "file.pt")
    assert (tmp_path / "file.pt").read_bytes() == CONTENT
    assert len(script.seen) == 3


@pytest.mark.parametrize("changed", [False, True])
def test_a_later_call_goes_on_with_the_same_file_alone(url, script, tmp_path, changed):
    path = tmp_path / "file.pt"
    script.cuts = [400_000, *[0] * 9]
    with pytest.raises(UserError, match=r"not downloaded .*or fetch it elsewhere.*onepeace convert"):
        fetch(url, path)
    assert not path.exists()
    (part,) = tmp_path.iterdir()
    held = part.stat().st_size
    assert held == 400_000
    script.cuts = []
    if changed:
        script.content, script.etag = CONTENT[::-1] + b"more", '"v2"'
    fetch(url, path)
    assert path.read_bytes() == script.content
    assert script.seen[-1] == (None if changed else f"bytes={held}-")


def test_a_file_that_is_not_there_is_refused_in_one_line(url, script, tmp_path):
    script.status = 404
    with pytest.raises(UserError, match="404") as error:
        fetch(url, tmp_path / "file.pt")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "bad", ["http://example.org/a.pt", "file:///etc/passwd", "/etc/passwd", "http://127.0.0.1.example.org/a.pt"]
)
def test_only_https_is_downloaded(tmp_path, bad):
    with pytest.raises(UserError, match="only https"):
        fetch(bad, tmp_path / "x")


def test_full_disk_is_noticed_first(url, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=5000))
    with pytest.raises(UserError, match="5000 bytes free, 1280000 needed"):
        fetch(url, tmp_path / "file.pt")
    with pytest.raises(UserError, match="5000 bytes free, 2560000 needed"):
        fetch(url, tmp_path / "file.pt", copies=2)
