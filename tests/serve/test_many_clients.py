"""A server under 64 clients at once, some of which send what cannot be read: every request is answered, and rightly."""

import base64
import json
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("gradio", reason="the page needs gradio")
httpx = pytest.importorskip("httpx", reason="comes with gradio")

CLIENTS = 64
HITS = "op-card"


class Page:
    """The page's search, as a browser asks for it."""

    def __init__(self, client):
        self.client = client
        config = client.get("/config").json()
        values = {entry["id"]: entry["props"].get("value") for entry in config["components"]}
        find = max(config["dependencies"], key=lambda dependency: len(dependency["inputs"]))
        self.number, self.data = find["id"], [values[id_] for id_ in find["inputs"]]

    def upload(self, name, content):
        path = self.client.post("/gradio_api/upload", files={"files": (name, content)}).json()[0]
        return {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}

    def search(self, session, words="", picture=None, sound=None):
        """The HTML of the hits."""
        data = [words, picture, sound, *self.data[3:]]
        body = {"data": data, "fn_index": self.number, "session_hash": session}
        self.client.post("/gradio_api/queue/join", json=body).raise_for_status()
        with self.client.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as answer:
            for line in answer.iter_lines():
                event = json.loads(line.removeprefix("data: ")) if line else {}
                if event.get("msg") == "process_completed":
                    assert event["success"], event
                    return event["output"]["data"][0]
        raise AssertionError("the page did not answer")


@pytest.fixture(scope="module")
def client(server):
    limits = httpx.Limits(max_connections=None)
    with httpx.Client(base_url=server, timeout=600.0, limits=limits, trust_env=False) as made:
        yield made


def test_64_clients_at_once_lose_nothing(client, model, collection, ids):
    picture, sound = (collection / "cat.jpg").read_bytes(), (collection / "dog.ogg").read_bytes()
    texts = [f"a dog and {number} cats" for number in range(CLIENTS)]
    expected = model.encode([*texts, {"image": picture}, {"audio": sound}], output="numpy")
    written = [base64.b64encode(data).decode() for data in (picture, sound)]
    page, seconds = Page(client), []
    broken = page.upload("broken.jpg", picture[: len(picture) // 2])

    def timed(function, *given, **options):
        start = time.perf_counter()
        answer = function(*given, **options)
        seconds.append(time.perf_counter() - start)
        return answer

    def run(number):
        body = {"input": [texts[number], {"image": written[0]}, {"audio": written[1]}]}
        answer = timed(client.post, "/v1/embeddings", json=body).json()
        vectors = np.array([entry["embedding"] for entry in answer["data"]], np.float32)
        np.testing.assert_allclose(vectors, expected[[number, CLIENTS, CLIENTS + 1]], rtol=0, atol=1e-5)
        refused = timed(client.post, "/search", json={"image": written[0][:4000]})
        assert refused.status_code == 400
        assert "cannot be decoded" in refused.json()["error"]["message"]
        hits = timed(client.post, "/search", json={"audio": written[1], "top": 3}).json()["hits"]
        assert hits[0]["id"] in (ids["dog.ogg"], ids["cat.ogg"])
        assert timed(client.get, hits[0]["file"]).status_code == 200
        if number % 8 == 0:
            assert HITS in timed(page.search, f"words{number}", words=texts[number])
            assert "cannot be decoded" in timed(page.search, f"broken{number}", picture=broken)
        return number

    with ThreadPoolExecutor(CLIENTS) as pool:
        assert list(pool.map(run, range(CLIENTS))) == list(range(CLIENTS))
    assert len(seconds) == 4 * CLIENTS + 2 * (CLIENTS // 8)
    half, most, all_ = np.percentile(seconds, [50, 95, 100])
    print(f"{len(seconds)} requests of {CLIENTS} clients: median {half:.2f} s, 95 % {most:.2f} s, slowest {all_:.2f} s")


def test_page_answers_after_what_it_cannot_read(client, collection):
    page = Page(client)
    silent = page.upload("empty.wav", b"")
    assert "op-problem" in page.search("a", sound=silent)
    assert "op-problem" in page.search("b", words="a" * 30_000)
    assert "op-problem" in page.search("c", picture=page.upload("text.png", b"no picture"))
    assert client.post("/gradio_api/upload", files={"files": ("big.png", bytes((20 << 20) + 1))}).status_code == 413
    assert client.post("/gradio_api/queue/join", json={"data": []}).status_code in (400, 422)
    again = page.search("d", picture=page.upload("cat.jpg", (collection / "cat.jpg").read_bytes()))
    assert "1.000" in again
    assert again.count(HITS) > 5


def test_page_escapes_names_and_texts(client):
    shown = Page(client).search("a", words="<b>dog</b>")
    assert "a &lt;b&gt;dog&lt;/b&gt; barks" in shown
    assert "<b>" not in shown
