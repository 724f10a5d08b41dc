"""Downloads over a real, badly behaved server: a file that is cut off, changed or wrong is never used."""

import copy
import functools
import http.server
from dataclasses import dataclass, field

import pytest
from support.server import serving

from onepeace.errors import UserError
from onepeace.hub import download
from onepeace.hub.download import fetch

CONTENT = bytes(range(256)) * 5000


@dataclass
class Script:
    """How the server behaves."""

    content: bytes = CONTENT
    etag: str | None = '"v1"'
    date: str | None = None
    cuts: list[int] = field(default_factory=list)
    """Bytes of the body to send before hanging up, one entry per request; then no more cuts."""
    announced: int | None = None
    """A false Content-Length."""
    no_length: bool = False
    total: int | None = None
    """A false length of the file, in Content-Range."""
    ranges: bool = True
    ignores_if_range: bool = False
    status: list[int] = field(default_factory=list)
    """Errors to answer with first."""
    location: str | None = None
    changes: list[tuple[bytes, str]] = field(default_factory=list)
    """New content and ETag after each request."""
    seen: list[dict[str, str]] = field(default_factory=list)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, script, *args):
        self.script = script
        super().__init__(*args)

    def log_message(self, *args):
        pass

    def do_GET(self):
        script = self.script
        script.seen.append({key.lower(): value for key, value in self.headers.items()})
        self.close_connection = True
        if script.location:
            self.send_response(302)
            self.send_header("Location", script.location)
            return self.finish_headers(0)
        if script.status:
            self.send_response(script.status.pop(0))
            return self.finish_headers(0)
        body, total, start = script.content, len(script.content), 0
        wanted = self.headers.get("Range")
        current = self.headers.get("If-Range") in (script.etag, script.date) or script.ignores_if_range
        if wanted and script.ranges and current:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= total:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{total}")
                return self.finish_headers(0)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{script.total or total}")
        else:
            self.send_response(200)
        body = body[start:]
        for name, value in (("ETag", script.etag), ("Last-Modified", script.date)):
            if value:
                self.send_header(name, value)
        self.finish_headers(None if script.no_length else script.announced or len(body))
        cut = script.cuts.pop(0) if script.cuts else len(body)
        self.wfile.write(body[:cut])
        if script.changes:
            script.content, script.etag = script.changes.pop(0)

    def finish_headers(self, length):
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()


@pytest.fixture
def script():
    return Script()


@pytest.fixture
def url(script, monkeypatch):
    monkeypatch.setattr(download, "_pause", lambda idle: 0.0)
    with serving(functools.partial(Handler, script)) as address:
        yield f"{address}/file.pt"


def only(path) -> bool:
    """Whether `path` is all there is in its folder."""
    return [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_file_arrives_whole(url, script, tmp_path):
    path = tmp_path / "deep" / "file.pt"

    assert fetch(url, path) == path

    assert path.read_bytes() == CONTENT
    assert only(path)
    assert fetch(url, path) == path
    assert len(script.seen) == 1  # the second call asked nobody


def test_broken_connections_are_continued_where_they_broke(url, script, tmp_path):
    script.cuts = [300_000, 1, 0, 500_000]

    fetch(url, tmp_path / "file.pt")

    assert (tmp_path / "file.pt").read_bytes() == CONTENT
    assert [seen.get("range") for seen in script.seen] == [
        None, "bytes=300000-", "bytes=300001-", "bytes=300001-", "bytes=800001-"]  # fmt: skip


def test_interrupted_file_is_not_used(url, script, tmp_path):
    path = tmp_path / "file.pt"
    script.cuts = [400_000, *[0] * 5]

    with pytest.raises(UserError, match=r"not downloaded .*or fetch it elsewhere.*onepeace convert"):
        fetch(url, path)
    assert not path.exists()
    assert (tmp_path / "file.pt.part").stat().st_size == 400_000

    fetch(url, path)  # a later call goes on
    assert path.read_bytes() == CONTENT
    assert script.seen[-1]["range"] == "bytes=400000-"
    assert only(path)


NEW = CONTENT[::-1] + b"more"
DATE = "Mon, 01 May 2023 00:00:00 GMT"
NUISANCES = {
    "the file changed in between": {"cuts": [300_000], "changes": [(NEW, '"v2"')]},
    "another file, If-Range ignored": {
        "cuts": [300_000],
        "changes": [(CONTENT[::-1], '"v2"')],
        "ignores_if_range": True,
    },
    "a shorter file, If-Range ignored": {
        "cuts": [300_000],
        "changes": [(CONTENT[:-5], '"v2"')],
        "ignores_if_range": True,
    },
    "a weak ETag and a date": {"cuts": [1000], "etag": 'W/"weak"', "date": DATE},
    "nothing to tell versions apart": {"cuts": [300_000], "etag": None},
    "no ranges": {"cuts": [300_000], "ranges": False},
    "passing trouble": {"status": [503, 429, 500]},
}


@pytest.mark.parametrize("name", NUISANCES)
def test_nuisances_of_the_server_end_in_the_right_file(url, script, tmp_path, name):
    vars(script).update(copy.deepcopy(NUISANCES[name]))

    fetch(url, tmp_path / "file.pt")

    assert (tmp_path / "file.pt").read_bytes() == script.content
    assert only(tmp_path / "file.pt")
    if script.date:  # it serves where there is no strong ETag
        assert script.seen[1]["if-range"] == script.date


OWN = '{"url": "URL", "validator": "\\"v1\\""}'
PARTS = {
    "of another address": (b"x" * 1000, OWN.replace("URL", "https://example.org/a")),
    **{f"note {note!r}": (b"x" * 1000, note) for note in ("", "[]", "{}", "not json")},
    "complete": (CONTENT, OWN),
    "longer than the file": (CONTENT + b"rest", OWN),
}


@pytest.mark.parametrize("name", PARTS)
def test_part_found_on_the_disk_is_completed_or_replaced(url, script, tmp_path, name):
    content, note = PARTS[name]
    (tmp_path / "file.pt.part").write_bytes(content)
    (tmp_path / "file.pt.part.json").write_text(note.replace("URL", url))

    fetch(url, tmp_path / "file.pt")

    assert (tmp_path / "file.pt").read_bytes() == CONTENT
    assert only(tmp_path / "file.pt")
    assert name != "complete" or len(script.seen) == 1  # then it was only renamed


ELSEWHERE = "http://example.org/a.pt"
REFUSED = {
    "some bytes too few": ({"announced": len(CONTENT) + 10, "ranges": False}, "not downloaded"),
    "half the bytes": ({"announced": len(CONTENT) * 2, "ranges": False}, "not downloaded"),
    "more than announced": ({"cuts": [300_000], "total": 400_000}, "more bytes arrived than the 400000 announced"),
    "no length": ({"no_length": True}, "does not say how long the file is"),
    "not there": ({"status": [404]}, "the server says 404 Not Found"),
    "sent elsewhere": ({"location": ELSEWHERE}, f"{ELSEWHERE}: only https"),
    "sent to a file": ({"location": "file:///etc/passwd"}, "the server says 302"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_the_file_is_refused_in_one_line_and_not_kept(url, script, tmp_path, name):
    answers, message = REFUSED[name]
    vars(script).update(copy.deepcopy(answers))

    with pytest.raises(UserError, match=message):
        fetch(url, tmp_path / "file.pt")

    assert not (tmp_path / "file.pt").exists()
    assert message == "not downloaded" or list(tmp_path.iterdir()) == []  # else a later call goes on
    assert name != "not there" or len(script.seen) == 1


def test_no_network_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_pause", lambda idle: 0.0)
    url = "http://127.0.0.1:9/one-peace.pt"  # nobody listens on the discard port

    with pytest.raises(UserError) as error:
        fetch(url, tmp_path / "one-peace.pt")

    text = str(error.value)
    assert "\n" not in text
    for part in (url, "refused", str(tmp_path / "one-peace.pt"), "onepeace convert one-peace.pt -o OUT"):
        assert part in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "bad",
    [
        "http://example.org/a.pt",
        "ftp://example.org/a.pt",
        "file:///etc/passwd",
        "/etc/passwd",
        "http://127.0.0.1.example.org/a.pt",
    ],
)
def test_only_https_is_downloaded(tmp_path, bad):
    with pytest.raises(UserError, match="only https"):
        fetch(bad, tmp_path / "x")


def test_full_disk_is_noticed_first(url, tmp_path, monkeypatch):
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=5000))

    with pytest.raises(UserError, match="5000 bytes free, 1280000 needed"):
        fetch(url, tmp_path / "file.pt")
