"""Where bytes come from: paths, addresses (of a server on this machine), values; and what is refused."""

from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.server import serving

from onepeace.errors import UserError
from onepeace.files import source
from onepeace.processors import ImageProcessor

LOCATIONS = {"file": "file:///etc/passwd", "ftp": "ftp://localhost/a", "here": "/ok"}
ANSWERS = {
    **{f"/to/{name}": (302, {"Location": target}, b"") for name, target in LOCATIONS.items()},
    "/missing": (404, {}, b""),
    "/short": (200, {"Content-Length": "100"}, b"x" * 10),
    "/endless": (200, {}, b"x" * 5000),  # no length given
    "/claims": (200, {"Content-Length": "5000"}, b""),
}
"""Status, headers and body by path; other pages hold their own path."""


class Site(BaseHTTPRequestHandler):
    def do_GET(self):
        status, headers, body = ANSWERS.get(self.path.partition("?")[0], (200, {}, self.path.encode()))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def site():
    with serving(Site) as address:
        yield address


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_path_bytes_and_address_are_read(tmp_path, site):
    (tmp_path / "a b.bin").write_bytes(b"content")
    assert source.read_bytes(tmp_path / "a b.bin") == b"content"
    assert source.read_bytes(str(tmp_path / "a b.bin")) == b"content"
    for value in (b"content", bytearray(b"content"), memoryview(b"content")):
        assert source.read_bytes(value) == b"content"
    assert source.read_bytes(f"{site}/page?x=1") == b"/page?x=1"
    assert source.read_bytes(f" {site}/a b/ä%20c\n") == b"/a%20b/%C3%A4%20c"


def test_redirect_within_http_is_followed(site):
    assert source.read_bytes(f"{site}/to/here") == b"/ok"


@pytest.mark.parametrize(("target", "reason"), [("file", "is not allowed"), ("ftp", "unknown url type: ftp")])
def test_redirect_out_of_http_is_refused(site, target, reason):
    with pytest.raises(UserError, match=f"/to/{target}: .*{reason}"):
        source.read_bytes(f"{site}/to/{target}")


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("missing", "answered 404"),
        ("short", "ended after 10 of 100 bytes|cannot be fetched"),
        ("endless", "more than the limit of 1000 bytes"),
        ("claims", "5000 bytes are above the limit of 1000"),
    ],
)
def test_bad_answer_names_the_address(site, page, message):
    with pytest.raises(UserError, match=f"{site}/{page}: .*({message})"):
        source.read_bytes(f"{site}/{page}?token=secret", max_bytes=1000)


def test_secrets_of_an_address_stay_out_of_messages():
    name = source.describe("https://user:password@example.org/a.jpg?token=secret#part")
    assert name == "https://example.org/a.jpg"


def test_no_server_and_no_name():
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:1/a\.jpg: cannot be fetched"):
        source.read_bytes("http://127.0.0.1:1/a.jpg")
    for bad in ("http://", "http:///a.jpg", "http://[::1/a.jpg", "http://127.0.0.1:port/a", "http://a..b/"):
        with pytest.raises(UserError):
            source.read_bytes(bad)


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
    with pytest.raises(UserError, match="must be http or https, not "):
        source.read_bytes(address)
    with pytest.raises(UserError, match="must be http or https, not "):
        ImageProcessor().decode(address)


def test_paths_with_a_colon_are_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a:b.bin").write_bytes(b"content")
    assert source.read_bytes("a:b.bin") == b"content"
    assert source.scheme("C:\\pictures\\a.jpg") is None
    assert source.scheme("note: a dog") is None
    assert source.scheme(Path("http://example.org")) is None


def test_file_problems_are_named(tmp_path):
    path = tmp_path / "large.bin"
    path.write_bytes(b"12345")
    with pytest.raises(UserError, match=r"large\.bin: 5 bytes are above the limit of 4"):
        source.read_bytes(path, max_bytes=4)
    with pytest.raises(UserError, match="is a folder"):
        source.read_bytes(tmp_path)
    with pytest.raises(UserError, match=r"none\.bin: no such file"):
        source.read_bytes(tmp_path / "none.bin")


@pytest.mark.parametrize(
    ("item", "name"),
    [
        ("a/b.jpg", "a/b.jpg"),
        (Path("a.jpg"), "a.jpg"),
        ("a\nb.jpg", "a?b.jpg"),
        (b"123", "bytes (3)"),
        (np.zeros((2, 3)), "ndarray (2, 3) float64"),
        ({"path": "x.wav", "array": np.zeros(3), "sampling_rate": 1}, "x.wav"),
        (Image.new("L", (2, 3)), "L picture (2, 3)"),
        (None, "NoneType"),
        ({"image": "a.jpg"}, "dict"),
        ("data:image/png;base64," + "A" * 10000, "data:image/png;base64,AAA..."),
    ],
)
def test_describe(item, name):
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
def test_suffix(item, ending):
    assert source.suffix(item) == ending
