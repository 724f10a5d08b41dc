"""Clients that do not finish what they begin: they end, and keep nobody out."""

import os
import socket
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx2 as httpx
import pytest
from serve.conftest import serving_index
from support.indexes import fabricate, item_of

from onepeace.serve.guard import UPLOADS
from onepeace.serve.uploads import Limits

POST = "POST /search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"
NO_MODEL = "Index.embedder = None"
"""Nothing here is embedded, and loading the model takes longest."""
FEW_FILES = f"{NO_MODEL}; import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))"
IMPATIENT = f"""
{NO_MODEL}
from onepeace.serve import connections
connections.HEAD_SECONDS = connections.IDLE_SECONDS = connections.UNREAD_SECONDS = 0.5
"""


@pytest.fixture
def connect():
    """Opens a connection to an address, which is closed at the end."""
    with ExitStack() as stack:

        def open_one(address, start=b""):
            url = urlsplit(address)
            connection = stack.enter_context(socket.create_connection((url.hostname, url.port), timeout=60))
            connection.sendall(start)
            return connection

        yield open_one


def is_healthy(address):
    return httpx.get(f"{address}/health", timeout=60, trust_env=False).status_code == 200


def test_unfinished_requests_keep_nobody_out(index_folder, tmp_path, connect):
    with serving_index(index_folder, tmp_path / "temporary", FEW_FILES) as (_, address):
        for _ in range(300):
            connect(address, b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        assert is_healthy(address)


@pytest.fixture(scope="module")
def impatient(index_folder, tmp_path_factory):
    with serving_index(index_folder, tmp_path_factory.mktemp("server") / "temporary", IMPATIENT) as (_, address):
        yield address


def read_to_the_end(connection):
    """What comes until the server closes the connection."""
    received = b""
    with suppress(ConnectionResetError):
        data = connection.recv(1000)
        while data:
            received += data
            data = connection.recv(1000)
    return received


@pytest.mark.parametrize(
    ("start", "num_answers"),
    [
        (b"", 0),
        (b"GET /health HTTP/1.1\r\n", 0),
        (POST.format(1000).encode() + b'{"text": ', 0),
        (b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET /health", 1),
    ],
)
def test_request_that_does_not_go_on_is_ended(impatient, connect, start, num_answers):
    received = read_to_the_end(connect(impatient, start))

    assert received.count(b"HTTP/1.1 200") == num_answers
    assert is_healthy(impatient)


def test_response_that_is_not_read_is_ended(tmp_path, connect):
    path = tmp_path / "a.jpg"
    path.write_bytes(bytes(64 << 20))
    index = fabricate(tmp_path / "index", [(item_of(path), [1, 0])])
    with serving_index(index, tmp_path / "temporary", IMPATIENT) as (process, address):
        connection = connect(address, b"GET /files/1 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        connection.recv(1)
        while _has_open(process.pid, path):
            time.sleep(0.05)
        assert is_healthy(address)


def _has_open(pid, path):
    """Whether a process has a file open."""
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            if os.readlink(link) == str(path):
                return True
    return False


def wait_for_status(address, expected, former):
    """Search until the status changes."""
    status = former
    while status == former:
        status = httpx.post(f"{address}/search", json={}, timeout=60, trust_env=False).status_code
    assert status == expected


def test_uploads_are_bounded_together(index_folder, tmp_path, connect):
    body = Limits().body
    start = POST.format(body).encode() + b"{"
    with serving_index(index_folder, tmp_path / "temporary", NO_MODEL) as (_, address):
        uploads = [connect(address, start) for _ in range(UPLOADS)]
        wait_for_status(address, 503, former=200)  # until the server has read what was sent

        for upload in uploads:
            upload.close()
        wait_for_status(address, 200, former=503)
