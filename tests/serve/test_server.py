"""A server in a process of its own: many clients at once, and a kill."""

import json
import os
import platform
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx2 as httpx
import numpy as np
import pytest
from serve.conftest import serving_index
from support.api import encoded

from onepeace.errors import UsageError
from onepeace.index import Index
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
        np.testing.assert_allclose(vectors[0], vectors_of_texts[number], rtol=0, atol=1e-5)
        np.testing.assert_allclose(vectors[1:], vectors_of_media, rtol=0, atol=1e-5)
        assert client.post("/search", json={"image": picture[:4000]}).status_code == 422
        hits = client.post("/search", json={"text": texts[number], "top": 3}).json()["hits"]
        assert client.get(f"/{hits[0]['file']}").status_code == 200
        return number

    limits = httpx.Limits(max_connections=None)
    with httpx.Client(base_url=server, timeout=600.0, limits=limits, trust_env=False) as client:
        with ThreadPoolExecutor(NUM_CLIENTS) as pool:
            assert [*pool.map(use, range(NUM_CLIENTS))] == [*range(NUM_CLIENTS)]


@pytest.mark.slow  # the quick one: the fixture `server` looks for files that are left
def test_killed_server_leaves_nothing_of_what_was_sent(index_folder, collection, tmp_path):
    temporary = tmp_path / "temporary"
    body = {"image": encoded(collection / "cat.jpg")}
    data = json.dumps(body).encode()
    headers = (
        "POST /search HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"Content-Length: {len(data)}\r\nContent-Type: application/json\r\n\r\n"
    )
    with serving_index(index_folder, temporary) as (process, address):
        assert httpx.post(f"{address}/search", json=body, timeout=600).status_code == 200
        url = urlsplit(address)
        with socket.create_connection((url.hostname, url.port)) as connection:
            connection.sendall(headers.encode() + data[: len(data) // 2])
            os.kill(process.pid, signal.SIGKILL)
            process.wait()

        assert not list(temporary.iterdir())


DECODE = """
import base64, io, resource
from concurrent.futures import ThreadPoolExecutor
from PIL import Image
from onepeace.serve.uploads import Limits, Request

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

def decode(side):
    picture = io.BytesIO()
    Image.new("RGB", (side, side)).save(picture, "PNG")
    data = base64.b64encode(picture.getvalue()).decode()
    Request(Limits(), lambda: {}).decode("image", data, "a picture")

with ThreadPoolExecutor(4) as pool:
    list(pool.map(decode, [100] * 4))
    before = resident()
    list(pool.map(decode, [7000] * 4))
    print(resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists() or platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_memory_of_large_pictures_is_given_back():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DECODE],
        check=True,
        capture_output=True,
        text=True,
    )

    assert int(done.stdout) < 256 << 20  # a picture takes 392 MB, and without giving back 600 to 1,100 MB stay


def test_port_that_is_taken(index, server):
    port = urlsplit(server).port

    with pytest.raises(UsageError, match=str(port)):
        run(index, port=port)


def test_address_that_is_open_to_others(index):
    with pytest.raises(UsageError, match=r"0\.0\.0\.0"):
        run(index, host="0.0.0.0")  # noqa: S104


def test_loading_of_the_model_is_logged_once(index_folder, monkeypatch, caplog):
    monkeypatch.setattr("uvicorn.Server.run", lambda *_, **__: None)

    with Index.open(index_folder, device="cpu") as opened, caplog.at_level("INFO"):
        assert run(opened, port=0) == 0

    assert [record.name for record in caplog.records].count("onepeace.progress") == 1
