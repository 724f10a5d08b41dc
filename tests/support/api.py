"""Clients of the JSON API in this process, and contents to send."""

import base64
import io
import json
import os
import socket
from contextlib import contextmanager
from threading import Thread

import numpy as np
import pytest
import soundfile
from PIL import Image

pytest.importorskip("fastapi", reason="the API comes with the extra web")

from fastapi.testclient import TestClient

from onepeace.serve.app import create_app
from onepeace.serve.limits import Limits
from onepeace.serve.model import ModelService
from onepeace.serve.service import Service

HOSTS = ("127.0.0.1", "localhost", "[::1]")
LIMITS = Limits(
    upload=200_000,
    pixels=1_000_000,
    seconds=12.0,
    items=5,
    parts=5,
    characters=200,
    labels=3,
)
LIMITS_OF_MANY = Limits()


def client_of(index, queues=None, **options):
    app = create_app(Service(index, limits=LIMITS, queues=queues), **options)
    return TestClient(app, base_url="http://127.0.0.1:7860", raise_server_exceptions=False)


def model_client(model, limits=LIMITS_OF_MANY, **options):
    """A client of a server of a model alone, with its `app_service`."""
    service = ModelService(lambda: model, limits)
    client = TestClient(create_app(service, **options), raise_server_exceptions=False)
    client.app_service = service
    return client


@contextmanager
def serving_in_thread(server):
    """The host and port of a server in this process, which ends with the context."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            server.should_exit = True
            thread.join()


def post(client, path, body):
    """Any JSON, also what clients of Python do not send."""
    return client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})


def encoded(path):
    return base64.b64encode(path.read_bytes()).decode()


def png(width, height):
    buffer = io.BytesIO()
    Image.new("1", (width, height)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def wav(seconds):
    buffer = io.BytesIO()
    soundfile.write(buffer, np.sin(np.arange(int(8000 * seconds))), 8000, format="WAV")
    return base64.b64encode(buffer.getvalue()).decode()


def search(client, **body):
    """The answer of the index to a search."""
    answer = client.post("/search", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def names(client, **body):
    """Names of the files that a search finds, the best first."""
    return [os.path.basename(hit["path"]) for hit in search(client, **body)["hits"]]


def status_of(client, path, **body):
    return client.post(path, json=body).status_code


def assert_error(answer, status):
    """The answer is an error with this status and a message of one line, which is returned."""
    assert answer.status_code == status, answer.text
    text = answer.json()["error"]["message"]
    assert text
    assert "\n" not in text
    assert len(text) < 400
    return text
