"""The queue of a model: what waits together is computed together, and nobody's vector depends on others."""

import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection

import numpy as np
import pytest
import uvicorn
from support.embedding import assert_same, varied_texts

pytest.importorskip("fastapi", reason="the API comes with the extra web")

from support.api import assert_error, client_of, encoded, model_client, search, serving_in_thread

from onepeace.embed.encode import Encoding
from onepeace.index import Index
from onepeace.serve import queue
from onepeace.serve.limits import Limits
from onepeace.serve.model import Queues

TEXT = "a dog in the snow"
SECONDS = 120
"""How long a test waits for what has to come."""


class Gate:
    """Batches that wait until they may be computed: those of the modalities that are closed."""

    def __init__(self, monkeypatch, *closed):
        self.closed = set(closed)
        self.batches = []
        self.sizes = []
        self.reached = threading.Semaphore(0)
        self._open = threading.Event()
        compute = Encoding.compute

        def wait(encoding, batch):
            self.batches.append((batch[0].modality, len(batch)))
            self.sizes.append([len(sample.tensor) for sample in batch])
            if batch[0].modality in self.closed:
                self.reached.release()
                assert self._open.wait(SECONDS)
            return compute(encoding, batch)

        monkeypatch.setattr(Encoding, "compute", wait)

    def await_batch(self):
        assert self.reached.acquire(timeout=SECONDS)

    def open(self):
        self._open.set()


@contextmanager
def gated(monkeypatch, *closed):
    gate = Gate(monkeypatch, *closed)
    try:
        yield gate
    finally:
        gate.open()


def vectors_of(client, inputs, **options):
    answer = client.post("/v1/embeddings", json={"input": inputs, **options})
    assert answer.status_code == 200, answer.text
    return np.array([entry["embedding"] for entry in answer.json()["data"]], np.float32)


def has(condition):
    """Wait for something that another thread does."""
    waiting = threading.Event()
    for _ in range(SECONDS * 100):
        if condition():
            return True
        waiting.wait(0.01)
    return False


def test_vector_does_not_depend_on_its_company(model, collection):
    picture = {"image": encoded(collection / "cat.jpg")}
    sound = {"audio": encoded(collection / "dog.ogg")}
    asked = [TEXT, picture, sound, {"text": TEXT, **picture}]
    others = [*varied_texts(64), "word " * 40, picture, sound, {**sound, **picture}, *asked]
    random.shuffle(others)
    expected = model.encode([TEXT, collection / "cat.jpg", collection / "dog.ogg"])

    with model_client(model) as client, ThreadPoolExecutor(8) as pool:
        alone = [vectors_of(client, [item])[0] for item in asked]
        together = vectors_of(client, others)
        pieces = [others[start : start + 9] for start in range(0, len(others), 9)]
        at_once = np.concatenate(list(pool.map(lambda items: vectors_of(client, items), pieces)))

    assert_same(np.array(alone[:3]), expected)
    for vectors in (together, at_once):
        for item, vector in zip(asked, alone, strict=True):
            assert_same(vectors[others.index(item)], vector)


def test_what_waits_is_computed_together_with_what_is_as_long(model, monkeypatch):
    monkeypatch.setattr(queue, "BATCH", 4)
    texts = ["a", "b", "word " * 9, "c", "word " * 9 + "d", "e"]
    expected = model.encode(texts)
    client = model_client(model)
    with client, gated(monkeypatch, "text") as gate, ThreadPoolExecutor(12) as pool:
        first = pool.submit(vectors_of, client, [TEXT])
        gate.await_batch()
        others = []
        for number, text in enumerate(texts):
            others.append(pool.submit(vectors_of, client, [text]))
            assert has(lambda count=number + 1: client.app_service.queues.waiting()["text"] == count)
        gate.open()
        assert_same(np.concatenate([answer.result(SECONDS) for answer in others]), expected)
        assert len(first.result(SECONDS)) == 1

    assert [count for _, count in gate.batches] == [1, 4, 2]
    assert max(gate.sizes[1]) < min(gate.sizes[2])


def test_request_of_many_is_overtaken_by_one_of_few(model, monkeypatch):
    monkeypatch.setattr(queue, "BATCH", 8)
    client = model_client(model)
    service = client.app_service
    with client, gated(monkeypatch, "text") as gate, ThreadPoolExecutor(3) as pool:
        pool.submit(vectors_of, client, [TEXT])
        gate.await_batch()
        many = pool.submit(vectors_of, client, ["a"] * 80)
        assert has(lambda: service.queues.waiting()["text"] == 80)
        few = pool.submit(vectors_of, client, ["b"])
        assert has(lambda: service.queues.waiting()["text"] == 81)
        places = [waiting.job.num_items for waiting in service.queue().lanes["text"].waiting]
        turn = places.index(1)
        gate.open()
        assert len(few.result(SECONDS)) == 1
        assert len(many.result(SECONDS)) == 80

    assert turn <= 2 * queue.IN_TURN


def test_queries_of_searches_are_computed_together(index_folder, monkeypatch):
    queues = Queues()
    with Index.open(index_folder, device="cpu", encode=queues.encode) as index, ThreadPoolExecutor(5) as pool:
        _ = index.embedder
        client = client_of(index, queues=queues)
        expected = [hit["path"] for hit in search(client, text=TEXT)["hits"]]
        with gated(monkeypatch, "text") as gate:
            first = pool.submit(search, client, text=TEXT)
            gate.await_batch()
            others = [pool.submit(search, client, text=TEXT) for _ in range(4)]
            assert has(lambda: queues.waiting()["text"] == 4)
            gate.open()
            for answer in [first, *others]:
                assert [hit["path"] for hit in answer.result(SECONDS)["hits"]] == expected

    assert [count for _, count in gate.batches] == [1, 4]


def test_texts_do_not_wait_for_pictures(model, collection, monkeypatch):
    picture = encoded(collection / "cat.jpg")
    with model_client(model) as client, gated(monkeypatch, "image") as gate, ThreadPoolExecutor(1) as pool:
        slow = pool.submit(vectors_of, client, [{"image": picture}])
        gate.await_batch()
        assert len(vectors_of(client, [TEXT])) == 1
        assert not slow.done()
        gate.open()
        assert len(slow.result(SECONDS)) == 1


def test_client_that_hangs_up_leaves_the_queue(model, collection, monkeypatch):
    body = json.dumps({"input": [{"image": encoded(collection / "cat.jpg")}] * 5})
    monkeypatch.setattr(queue, "BATCH", 1)
    client = model_client(model)
    service = client.app_service
    with gated(monkeypatch, "image") as gate, serving_in_thread(uvicorn.Server(uvicorn.Config(client.app))) as address:
        connections = [HTTPConnection(*address, timeout=SECONDS) for _ in range(3)]
        for connection in connections:
            connection.request("POST", "/v1/embeddings", body, {"content-type": "application/json"})
        gate.await_batch()
        assert has(lambda: service.queues.waiting()["image"] == 14)
        for connection in connections:
            connection.close()
        assert has(lambda: service.queues.waiting()["image"] == 0)
        assert has(lambda: not service.queue().jobs)
        gate.open()
        assert len(vectors_of(client, [TEXT])) == 1

    assert gate.batches == [("image", 1), ("text", 1)]


@pytest.mark.parametrize("limits", [Limits(queue=2), Limits(requests=2), Limits(bodies=200)])
def test_beyond_the_limit_is_503_at_once_and_probes_are_answered(model, monkeypatch, limits):
    client = model_client(model, limits)
    with client, gated(monkeypatch, "text") as gate, ThreadPoolExecutor(3) as pool:
        padding = "x" * 40
        jobs = client.app_service.queue().jobs
        accepted = [pool.submit(vectors_of, client, [f"{padding}{number}"]) for number in range(2)]
        assert has(lambda: len(jobs) == 2)
        asked = pool.submit(client.post, "/v1/embeddings", json={"input": [padding + padding]})
        has(lambda: asked.done() or len(jobs) > 2)
        is_at_once = asked.done()
        probes = [client.get(path).status_code for path in ("/health", "/ready", "/metrics")]
        gate.open()
        assert is_at_once
        assert probes == [200] * 3
        refused = asked.result()
        assert "try again" in assert_error(refused, 503)
        assert refused.headers["retry-after"] == "1"
        assert [len(answer.result(SECONDS)) for answer in accepted] == [1, 1]
        assert len(vectors_of(client, [TEXT])) == 1


def test_item_that_cannot_be_computed_fails_alone(model, monkeypatch):
    compute = Encoding.compute
    texts = ["good", "bad word", "fine"]
    bad = model.processors["text"].decode("bad word")

    def fail(encoding, batch):
        if any(sample.tensor.equal(bad) for sample in batch):
            raise RuntimeError("cannot")
        return compute(encoding, batch)

    monkeypatch.setattr(Encoding, "compute", fail)
    with model_client(model) as client:
        answer = client.post("/v1/embeddings", json={"input": texts, "on_error": "skip"}).json()
        assert_error(client.post("/v1/embeddings", json={"input": texts}), 422)

    assert [entry["index"] for entry in answer["data"]] == [0, 2]
    assert answer["errors"] == [{"index": 1, "message": "input[1]: RuntimeError: cannot"}]
