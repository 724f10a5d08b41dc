"""A server in a process of its own: many clients at once, and a kill."""

import json
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from urllib.parse import urlsplit

import httpx2 as httpx
import numpy as np
import pytest
import uvicorn
from fastapi.testclient import TestClient
from support.api import encoded, serving_in_thread

from onepeace.embed.encode import Encoding
from onepeace.errors import UsageError
from onepeace.serve.app import create_app
from onepeace.serve.model import ModelService
from onepeace.serve.server import Server, run
from onepeace.serve.service import Service

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
        run(Service(index), port=0, **options)
    return configurations[0]


@pytest.fixture(scope="module")
def impatient(index):
    """The host and port of a server in this process that waits half a second for a request."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onepeace.serve.server.ARRIVAL_SECONDS", 0.5)
        with serving_in_thread(uvicorn.Server(configuration(index))) as address:
            yield address


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
        run(Service(index), port=port)


def test_address_that_is_open_to_others(index):
    with pytest.raises(UsageError, match=r"0\.0\.0\.0"):
        run(Service(index), host="0.0.0.0")  # noqa: S104


@pytest.mark.parametrize(("keys", "is_answered"), [((), False), (("battery staple",), True)])
def test_host_name_of_a_proxy_needs_a_password(index, keys, is_answered):
    app = configuration(index, keys=keys).app

    with TestClient(app, base_url="https://photos.example.org") as client:
        assert client.get("/health").is_success == is_answered


@contextmanager
def under_way(model, monkeypatch, drain):
    """A server in this process, an event that lets its model compute, and the future answer of an accepted request."""
    may_compute = threading.Event()
    is_computing = threading.Event()
    compute = Encoding.compute

    def wait(encoding, batch):
        is_computing.set()
        assert may_compute.wait(120)
        return compute(encoding, batch)

    def ask(address):
        connection = HTTPConnection(*address, timeout=120)
        connection.request("POST", "/v1/embeddings", '{"input": ["a"]}', {"content-type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())

    monkeypatch.setattr(Encoding, "compute", wait)
    service = ModelService(lambda: model)
    server = Server(uvicorn.Config(create_app(service), timeout_graceful_shutdown=drain), service)
    with ThreadPoolExecutor(1) as pool, serving_in_thread(server) as address:
        answer = pool.submit(ask, address)
        assert is_computing.wait(120)
        yield server, may_compute, answer
        may_compute.set()


def test_what_is_accepted_is_answered_after_a_signal(model, monkeypatch):
    is_waiting = threading.Event()
    wait = uvicorn.Server._wait_tasks_to_complete

    async def wait_for_tasks(server):
        is_waiting.set()
        await wait(server)

    monkeypatch.setattr(uvicorn.Server, "_wait_tasks_to_complete", wait_for_tasks)
    with under_way(model, monkeypatch, drain=100) as (server, may_compute, answer):
        server.handle_exit(signal.SIGTERM, None)
        assert is_waiting.wait(120)
        assert not answer.done()
        may_compute.set()
        status, body = answer.result(120)

    assert (status, len(body["data"])) == (200, 1)


def test_what_takes_longer_than_the_drain_is_told_so(model, monkeypatch):
    with under_way(model, monkeypatch, drain=0) as (server, _, answer):
        server.handle_exit(signal.SIGTERM, None)
        status, body = answer.result(120)

    assert (status, body) == (503, {"error": {"message": "the server is being stopped"}})


def test_second_signal_ends_at_once(model, monkeypatch):
    codes = []
    monkeypatch.setattr("os._exit", codes.append)
    service = ModelService(lambda: model)
    server = Server(uvicorn.Config(create_app(service)), service)

    server.handle_exit(signal.SIGTERM, None)
    assert codes == []
    server.handle_exit(signal.SIGTERM, None)
    assert codes == [1]


def test_connections_that_are_idle_keep_nobody_out(impatient, monkeypatch):
    monkeypatch.setattr("onepeace.serve.server.ARRIVAL_SECONDS", 120.0)
    idle = [socket.create_connection(impatient) for _ in range(150)]
    connection = HTTPConnection(*impatient, timeout=120)
    for path in ("/health", "/v1/models"):
        connection.request("GET", path)
        response = connection.getresponse()
        assert response.status == 200
        response.read()
    for other in [*idle, connection]:
        other.close()


def test_proxy_that_offers_the_server_at_a_path(index):
    with serving_in_thread(uvicorn.Server(configuration(index, root_path="/photos", keys=["a password"]))) as address:
        connection = HTTPConnection(*address, timeout=120)
        for path, status in (("/health", 200), ("/about", 401)):
            connection.request("GET", path)
            response = connection.getresponse()
            assert response.status == status
            response.read()
        connection.request("GET", "/page/app.js", headers={"authorization": "Bearer a password"})
        assert connection.getresponse().status == 200
        connection.close()
