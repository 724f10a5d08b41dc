"""Where bytes come from: paths, addresses (of a server on this machine), values; and what is refused."""

import os
import re
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.server import serving

from onepeace.errors import UserError
from onepeace.files import source

ANSWERS = {
    "/to/file": (302, {"Location": "file:///etc/passwd"}, b""),
    "/to/ftp": (302, {"Location": "ftp://localhost/a"}, b""),
    "/to/here": (302, {"Location": "/ok"}, b""),
    "/missing": (404, {}, b""),
    "/short": (200, {"Content-Length": "100"}, b"x" * 10),
    "/endless": (200, {}, b"x" * 5000),  # no length given
    "/claims": (200, {"Content-Length": "5000"}, b""),
}
"""Status, headers and body by path; other pages hold their own path."""


DRIPPED = {
    "/slow-header": b"HTTP/1.0 200 OK\r\nX-Dripped: " + b"x" * 1000,
    "/slow-content": b"x" * 1000,
    "/slow-chunk": b"0" * 1000,
}
"""What is sent a byte at a time, by path."""


class Site(BaseHTTPRequestHandler):
    def do_GET(self):
        path = self.path.partition("?")[0]
        if path in DRIPPED:
            self.drip(path)
            return
        own_path = (200, {}, self.path.encode())
        status, headers, body = ANSWERS.get(path, own_path)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def drip(self, path):
        if path != "/slow-header":
            self.wfile.write(b"HTTP/1.1 200 OK\r\n")
            self.wfile.write(b"Transfer-Encoding: chunked\r\n\r\n" if path == "/slow-chunk" else b"\r\n")
        with suppress(OSError):  # nobody listens any longer
            for byte in DRIPPED[path]:
                self.wfile.write(bytes([byte]))
                time.sleep(0.02)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def site():
    with serving(Site) as address:
        yield address


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


# Values and paths


def test_path_is_read(tmp_path):
    path = tmp_path / "a b.bin"
    path.write_bytes(b"content")

    assert source.read_bytes(path, max_bytes=7) == b"content"
    assert source.read_bytes(str(path)) == b"content"


@pytest.mark.parametrize(
    "item",
    [
        "C:\\pictures\\a.jpg",
        "note: a dog",
        Path("http://example.org"),
    ],
)
def test_item_with_a_colon_may_have_no_scheme(item):
    assert source.scheme(item) is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("large.bin", r"large\.bin: 5 bytes .* 4"),
        (".", "is a folder"),
        ("none.bin", r"none\.bin: no such file"),
    ],
)
def test_file_problems_are_named(tmp_path, name, words):
    (tmp_path / "large.bin").write_bytes(b"12345")

    with pytest.raises(UserError, match=words):
        source.read_bytes(tmp_path / name, max_bytes=4)


def test_open_file_that_cannot_be_sought_is_an_error():
    read_end, write_end = os.pipe()
    os.close(write_end)

    with open(read_end, "rb") as file, pytest.raises(UserError, match="beginning"):
        source.read_bytes(file)


# Addresses


def test_address_is_read(site):
    assert source.read_bytes(f"{site}/page?x=1") == b"/page?x=1"
    assert source.read_bytes(f"{site}/to/here") == b"/ok"
    assert source.read_bytes(f" {site}/a b/ä%20c\n") == b"/a%20b/%C3%A4%20c"


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("to/file", "not allowed"),
        ("to/ftp", "ftp"),
        ("missing", "404"),
        ("short", "(10 of 100 bytes|cannot be fetched)"),
        ("endless", "more than .* 1000 bytes"),
        ("claims", "5000 bytes .* 1000"),
    ],
)
def test_answer_that_is_refused_names_the_address(site, page, words):
    with pytest.raises(UserError, match=f"{site}/{page}: .*{words}"):
        source.read_bytes(f"{site}/{page}?token=secret", max_bytes=1000)


@pytest.mark.parametrize("page", DRIPPED)
def test_server_that_sends_a_byte_now_and_then_is_given_up(site, monkeypatch, page):
    monkeypatch.setattr(source, "TIMEOUT", 0.4)
    monkeypatch.setattr(source, "MAX_SECONDS", 0.2)
    with pytest.raises(UserError, match=rf"{page}: cannot be fetched \(not answered within"):
        source.read_bytes(f"{site}{page}")


def test_secrets_of_an_address_stay_out_of_messages():
    name = source.describe("https://user:password@example.org/a.jpg?token=secret#part")
    assert name == "https://example.org/a.jpg"


def test_server_that_does_not_answer_is_named():
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:1/a\.jpg: cannot be fetched"):
        source.read_bytes("http://127.0.0.1:1/a.jpg")


@pytest.mark.parametrize(
    "address",
    [
        "http://",
        "http://[::1/a.jpg",
        "http://a..b/",
    ],
)
def test_malformed_address_is_an_error(address):
    with pytest.raises(UserError, match=f"^{re.escape(address)}: cannot be fetched"):
        source.read_bytes(address)


@pytest.mark.parametrize(
    "address",
    [
        "file:///etc/passwd",
        "ftp://example.org/a.jpg",
        "data:image/png;base64,AAAA",
        "s3://bucket/a.jpg",
        "  javascript:alert(1)",
    ],
)
def test_other_schemes_are_refused(address):
    with pytest.raises(UserError, match="must be http or https"):
        source.read_bytes(address)


# Names


@pytest.mark.parametrize(
    ("item", "name"),
    [
        ("a/b.jpg", "a/b.jpg"),
        (Path("a.jpg"), "a.jpg"),
        ("a\nb.jpg", "a?b.jpg"),
        (b"123", "bytes (3)"),
        (np.zeros((2, 3)), "ndarray (2, 3) float64"),
        ({"path": "x.wav", "array": np.zeros(3), "sampling_rate": 1}, "x.wav"),
        (Image.new("L", (2, 3)), "Image"),
        ({"image": "a.jpg"}, "dict"),
        ("data:image/png;base64," + "A" * 10000, "data:image/png;base64,AAA..."),
    ],
)
def test_description_of_an_item(item, name):
    assert source.describe(item) == name


@pytest.mark.parametrize(
    ("item", "ending"),
    [
        ("a.JPG", ".jpg"),
        ("https://example.org/x/y.Wav?a=b.png", ".wav"),
        (Path("a.tar.gz"), ".gz"),
        ("http://[::1/a.jpg", ".jpg"),
        (b"a.jpg", ""),
    ],
)
def test_ending_of_an_item(item, ending):
    assert source.suffix(item) == ending
