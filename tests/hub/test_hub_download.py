"""Downloads over a real, badly behaved server: a file that is cut off, changed or wrong is never used."""

import functools
import http.server
import shutil
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from support.server import serving

from onepeace.errors import UserError
from onepeace.hub.download import fetch, is_hub_reachable

CONTENT = bytes(range(256)) * 5000


@pytest.fixture(autouse=True)
def _online(monkeypatch):
    """Tests of other packages switch downloads off, in the whole process."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@dataclass
class Script:
    """How the server behaves."""

    content: bytes = CONTENT
    etag: str = '"v1"'
    cuts: list[int] = field(default_factory=list)
    """Bytes of the body to send before hanging up, one entry per request; then no more cuts."""
    has_ranges: bool = True
    trickles: threading.Event | None = None
    """Until it is set, the answer to a request for content is a header that comes a byte at a time."""
    trickles_at_once: bool = False
    """Whether a request for the header alone is answered so too."""
    status: int | None = None
    """The error to answer with."""
    ranges_asked: list[str | None] = field(default_factory=list)
    """Range of each request for content."""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, script, *args):
        self.script = script
        super().__init__(*args)

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        if self.script.trickles is not None and self.script.trickles_at_once:
            self.trickle()
            return
        self.answer(200, len(self.script.content))

    def do_GET(self):
        if self.script.trickles is not None:
            self.trickle()
            return
        byte_range = self.headers.get("Range")
        self.script.ranges_asked.append(byte_range)
        start = 0
        if byte_range and self.script.has_ranges:
            start = int(byte_range.removeprefix("bytes=").rstrip("-"))
        body = self.script.content[start:]
        self.answer(206 if start else 200, len(body))
        if self.script.cuts:
            body = body[: self.script.cuts.pop(0)]
        self.wfile.write(body)

    def trickle(self):
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Wait: ")
        with suppress(OSError):  # the client has gone
            while not self.script.trickles.wait(0.02):
                self.wfile.write(b".")

    def answer(self, status, length):
        self.send_response(self.script.status or status)
        self.send_header("Connection", "close")  # or the client would send the next request over it, now and then
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


def test_file_arrives_whole_and_is_asked_for_once(url, script, tmp_path):
    path = tmp_path / "deep" / "file.pt"
    assert fetch(url, path) == path
    assert fetch(url, path) == path
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]
    assert len(script.ranges_asked) == 1


@pytest.mark.parametrize("has_ranges", [True, False])
def test_broken_connections_are_continued(url, script, tmp_path, has_ranges):
    script.cuts = [300_000, 500_000]
    script.has_ranges = has_ranges

    fetch(url, tmp_path / "file.pt")

    assert (tmp_path / "file.pt").read_bytes() == CONTENT
    assert len(script.ranges_asked) == 3


@pytest.fixture
def interrupted_path(url, script, tmp_path):
    """The path of a download that ended after 400,000 bytes."""
    path = tmp_path / "file.pt"
    script.cuts = [400_000, *[0] * 9]
    with pytest.raises(UserError, match="onepeace convert"):
        fetch(url, path)
    assert not path.exists()
    script.cuts = []
    return path


def test_later_call_goes_on_where_the_last_ended(url, script, interrupted_path):
    fetch(url, interrupted_path)
    assert interrupted_path.read_bytes() == CONTENT
    assert script.ranges_asked[-1] == "bytes=400000-"


def test_later_call_begins_anew_if_the_file_changed(url, script, interrupted_path):
    script.content = CONTENT[::-1] + b"more"
    script.etag = '"v2"'

    fetch(url, interrupted_path)

    assert interrupted_path.read_bytes() == script.content
    assert script.ranges_asked[-1] is None


def test_header_that_trickles_is_not_waited_for(url, script, tmp_path, monkeypatch):
    script.trickles = threading.Event()
    monkeypatch.setattr("onepeace.hub.download.STALLED", 0.5)
    try:
        with pytest.raises(UserError, match="no data for"):
            fetch(url, tmp_path / "model.pt")
    finally:
        script.trickles.set()


def test_hub_whose_header_trickles_cannot_be_reached(url, script, monkeypatch):
    script.trickles = threading.Event()
    script.trickles_at_once = True
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    monkeypatch.setattr("onepeace.hub.download.HUB_TIMEOUT", 0.5)
    try:
        assert not is_hub_reachable()
    finally:
        script.trickles.set()


def test_missing_file_is_one_line(url, script, tmp_path):
    script.status = 404
    with pytest.raises(UserError, match="404") as error:
        fetch(url, tmp_path / "file.pt")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/a.pt",
        "file:///etc/passwd",
        "http://127.0.0.1.example.org/a.pt",
    ],
)
def test_only_https_is_downloaded(tmp_path, url):
    with pytest.raises(UserError, match="https"):
        fetch(url, tmp_path / "x")


@pytest.mark.parametrize(("copies", "needed"), [(1, 1280000), (2, 2560000)])
def test_full_disk_is_noticed_first(url, tmp_path, monkeypatch, copies, needed):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=5000))
    with pytest.raises(UserError, match=f"5000 .* {needed}"):
        fetch(url, tmp_path / "file.pt", copies=copies)
