"""A server in a process of its own: many clients at once, and a kill."""

import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from urllib.parse import urlsplit

import httpx2 as httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from serve.conftest import serving_index
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


@pytest.fixture(scope="module")
def impatient(index_folder, tmp_path_factory):
    """The address of a server that waits half a second for a request."""
    hasty = "Index.embedder = None; server.ARRIVAL_SECONDS = 0.5"
    with serving_index(index_folder, tmp_path_factory.mktemp("server") / "temporary", hasty) as (_, address):
        yield address


@pytest.mark.parametrize(
    ("start", "num_answers"),
    [
        ("", 0),
        ("GET /health HTTP/1.1\r\n", 0),
        ("POST /search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\n{", 0),
        ("GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET /health", 1),
    ],
)
def test_request_that_does_not_arrive_is_ended(impatient, start, num_answers):
    url = urlsplit(impatient)
    received = b""
    with socket.create_connection((url.hostname, url.port), timeout=60) as connection, suppress(ConnectionResetError):
        connection.sendall(start.encode())
        received = connection.makefile("rb").read()

    assert received.count(b"HTTP/1.1 200") == num_answers
    assert httpx.get(f"{impatient}/health", timeout=60, trust_env=False).status_code == 200


def test_port_that_is_taken(index, server):
    port = urlsplit(server).port

    with pytest.raises(UsageError, match=str(port)):
        run(index, port=port)


def test_address_that_is_open_to_others(index):
    with pytest.raises(UsageError, match=r"0\.0\.0\.0"):
        run(index, host="0.0.0.0")  # noqa: S104


@pytest.mark.parametrize(("password", "is_answered"), [(None, False), ("battery staple", True)])
def test_host_name_of_a_proxy_needs_a_password(index, monkeypatch, password, is_answered):
    apps = []
    monkeypatch.setattr("uvicorn.Server.run", lambda server, **_: apps.append(server.config.app))

    run(index, port=0, auth=password)

    with TestClient(apps[0], base_url="https://photos.example.org") as client:
        assert client.get("/health").is_success == is_answered
