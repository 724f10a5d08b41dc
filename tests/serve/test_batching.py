"""Requests of many threads are encoded together; what each gets does not depend on the others."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support.embedding import RATE, TEXTS, assert_same

from onepeace.errors import UserError
from onepeace.serve.batching import Asked, Batching


class Counting:
    """The embedder, with a note of how many items came at once."""

    def __init__(self, embedder):
        self.embedder, self.counts = embedder, []

    def encode(self, items, **options):
        self.counts.append(len(items))
        return self.embedder.encode(items, **options)


@pytest.fixture
def counting(model):
    return Counting(model)


@pytest.fixture
def batching(counting):
    """Makes one that waits for so many items, however long it takes until they are there."""
    made = []

    def make(size):
        made.append(Batching(counting, wait=600.0, size=size))
        return made[-1]

    yield make
    for each in made:
        each.close()


def at_once(functions):
    """The results of functions that start together, each in a thread of its own."""
    barrier = threading.Barrier(len(functions))

    def run(function):
        barrier.wait()
        try:
            return function()
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(len(functions)) as pool:
        return list(pool.map(run, functions))


def asked():
    generator = np.random.default_rng(0)
    pictures = [generator.integers(0, 256, (20 + 9 * i, 30, 3), dtype=np.uint8) for i in range(4)]
    sounds = [(generator.normal(0, 0.1, 9600 + 5000 * i).astype(np.float32), RATE) for i in range(4)]
    values = [("text", text) for text in TEXTS] + [("image", each) for each in pictures]
    return [Asked(f"item {i}", *each) for i, each in enumerate(values + [("audio", each) for each in sounds])]


def test_requests_are_encoded_together_and_vectors_do_not_depend_on_company(batching, counting, model):
    items = asked()
    alone = [model.encode([{item.modality: item.value}], output="numpy")[0] for item in items]
    encode = batching(len(items)).encode
    together = at_once([lambda item=item: encode([item]) for item in items])
    assert counting.counts == [len(items)]
    for one, other in zip(alone, together, strict=True):
        assert other.shape == (1, model.embed_dim)
        assert other.dtype == np.float32
        assert_same(other[0], one)


def test_request_of_several_items_keeps_their_order(batching, model):
    items = asked()
    expected = model.encode([{item.modality: item.value} for item in items], output="numpy")
    encode = batching(len(items)).encode
    halves = at_once([lambda: encode(items[:7]), lambda: encode(items[7:])])
    assert_same(np.concatenate(halves), expected)


def test_item_that_fails_fails_its_own_request_only(batching):
    texts = [Asked("a", "text", "a dog"), Asked("b", "text", "rain")]
    broken = Asked("the picture", "image", b"no picture")
    encode = batching(6).encode
    first, second, third = at_once([lambda: encode(texts), lambda: encode([texts[0], broken]), lambda: encode(texts)])
    assert second.startswith("the picture: not a picture of a known format")
    assert_same(first, third)
    assert np.isfinite(first).all()


def test_error_of_a_whole_batch_reaches_everyone_and_the_next_is_answered(batching, counting, monkeypatch):
    def no_memory(items, **options):
        raise UserError("no memory")

    text, encode = Asked("a", "text", "a dog"), batching(3).encode
    with monkeypatch.context() as patch:
        patch.setattr(counting, "encode", no_memory)
        assert at_once([lambda: encode([text])] * 3) == ["no memory"] * 3
    assert encode([text] * 3).shape[0] == 3


def test_closing_answers_what_waits_and_takes_no_more(model):
    batching = Batching(model, wait=600.0)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(batching.encode, [Asked("a", "text", "a dog")])
        while not batching._requests.unfinished_tasks:
            time.sleep(0.001)
        batching.close()
        assert waiting.result().shape[0] == 1
    with pytest.raises(UserError, match="the server is stopping"):
        batching.encode([Asked("a", "text", "a dog")])
