"""A server in a process of its own: many clients at once, and a kill."""

import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPConnection
from threading import Thread
from urllib.parse import urlsplit

import httpx2 as httpx
import numpy as np
import pytest
import uvicorn
from fastapi.testclient import TestClient
from support.api import encoded

from onepeace.errors import UsageError
from onepeace.serve.server import run

NUM_CLIENTS = 32


def test_many_clients_at_once_lose_nothing(server, model, collection):
    picture = encoded(collection / "cat.jpg")
    sound = encoded(collection / "dog.ogg")
    texts = [f"a dog and {number} cats" for number in range(NUM_CLIENTS)]
    vectors_of_texts = model.encode(texts).numpy()
    vectors_of_media = model.encode([collection / "cat.jpg", collection / "dog.ogg"]).numpy()

    def use(number):
        body = {"input": [texts[number], {"image": picture}, {"audio": sound}]}
        entries = client.post("/v1/embeddings", json=body).json()["data"]
        vectors = np.array([entry["embedding"] for entry in entries], np.float32)
        np.testing.assert_allclose(vectors, [vectors_of_texts[number], *vectors_of_media], rtol=0, atol=1e-5)
        hits = client.post("/search", json={"text": texts[number], "top": 3}).json()["hits"]
        assert client.get(f"/{hits[0]['file']}").status_code == 200

    with httpx.Client(base_url=server, timeout=600.0, trust_env=False) as client:
        with ThreadPoolExecutor(NUM_CLIENTS) as pool:
            list(pool.map(use, range(NUM_CLIENTS)))


def configuration(index, **options):
    """How `run` configures uvicorn."""
    configurations = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("uvicorn.Server.run", lambda server, **_: configurations.append(server.config))
        run(index, port=0, **options)
    return configurations[0]


@pytest.fixture(scope="module")
def impatient(index):
    """The host and port of a server in this process that waits half a second for a request."""
    server = uvicorn.Server(configuration(index))
    with pytest.MonkeyPatch.context() as patch, socket.create_server(("127.0.0.1", 0)) as listener:
        patch.setattr("onepeace.serve.server.ARRIVAL_SECONDS", 0.5)
        thread = Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield listener.getsockname()
        server.should_exit = True
        thread.join()


@pytest.mark.parametrize(
    ("start", "is_second"),
    [
        ("", False),
        ("GET /health HTTP/1.1\r\n", False),
        ("POST /search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\n{", False),
        ("GET /health", True),
    ],
)
def test_request_that_does_not_arrive_is_ended(impatient, start, is_second):
    connection = HTTPConnection(*impatient, timeout=60)
    connection.connect()
    if is_second:
        connection.request("GET", "/health")
        assert connection.getresponse().read()
    connection.sock.sendall(start.encode())

    with suppress(ConnectionResetError):
        assert connection.sock.recv(1) == b""
    connection.close()


def test_port_that_is_taken(index, server):
    port = urlsplit(server).port

    with pytest.raises(UsageError, match=str(port)):
        run(index, port=port)


def test_address_that_is_open_to_others(index):
    with pytest.raises(UsageError, match=r"0\.0\.0\.0"):
        run(index, host="0.0.0.0")  # noqa: S104


@pytest.mark.parametrize(("password", "is_answered"), [(None, False), ("battery staple", True)])
def test_host_name_of_a_proxy_needs_a_password(index, password, is_answered):
    app = configuration(index, auth=password).app

    with TestClient(app, base_url="https://photos.example.org") as client:
        assert client.get("/health").is_success == is_answered
