"""Streams of items: batches of like lengths, results in order, and no more in memory than needed."""

import io
import itertools
import signal
import threading
import tracemalloc
import weakref
from contextlib import closing

import numpy as np
import pytest
import torch
from PIL import Image
from support.embedding import TEXTS, assert_same, varied_texts

from onepeace.embed.encode import BATCHES_PER_BLOCK, Item, Sample, batches_of
from onepeace.embed.items import Part
from onepeace.errors import UserError
from onepeace.processors import ImageProcessor
from onepeace.threads import decode_ahead

BLOCK = 1024
"""Samples in a block of 16 batches of 64."""


@pytest.fixture
def ends_its_threads():
    """Afterwards, as many threads are alive as before."""
    before = threading.active_count()
    yield
    assert threading.active_count() == before


# Batches


def size_of(sample):
    return len(sample.tensor)


def sizes_of_batches(sizes, batch_size, workers=1):
    """The sizes in each batch that samples of one modality, of these sizes, are divided into."""
    samples = [Sample(Item(0, ""), "text", 0, 0, torch.empty(size)) for size in sizes]
    batches = batches_of(samples, size_of, batch_size, workers)
    return [list(map(size_of, batch)) for batch in batches]


def test_batches_are_full_and_hold_similar_sizes():
    sizes = torch.randint(1, 1000, (256,)).tolist()
    batches = sizes_of_batches(sizes, 16)

    assert sorted(itertools.chain.from_iterable(batches)) == sorted(sizes)
    assert {len(batch) for batch in batches} == {16}
    padded = sum(len(batch) * max(batch) for batch in batches)
    assert padded < 1.1 * sum(sizes)
    assert batches[0][0] == max(sizes)  # a batch too large for memory fails early


@pytest.mark.parametrize(
    ("count", "batches"),
    [
        (40, [14, 14, 12]),
        (6, [4, 2]),
    ],
)
def test_batches_are_divided_evenly_among_workers(count, batches):
    sizes = sizes_of_batches([7] * count, 16, workers=3)
    assert list(map(len, sizes)) == batches


# Memory and order


@pytest.mark.parametrize("count", [BATCHES_PER_BLOCK, 4 * BATCHES_PER_BLOCK, 4 * BATCHES_PER_BLOCK + 1])
def test_item_that_fills_the_last_block_has_a_result(model, side_by_side, count):
    side_by_side(1)
    vectors = model.encode_text([f"dog {number}" for number in range(count)], batch_size=1)
    assert len(vectors) == count


def test_stream_gives_results_in_order_while_the_input_goes_on(model):
    taken = 0

    def items():
        nonlocal taken
        for taken, text in enumerate(varied_texts(1500)):
            yield text if taken % 10 else 7  # every tenth is no text

    leads = []
    results = model.stream(items(), modality="text", batch_size=8)
    for index, result in enumerate(results):
        assert result.index == index
        assert (result.vector is None) == (index % 10 == 0)
        assert (result.reason is None) == (index % 10 != 0)
        leads.append(taken - index)
    assert len(leads) == 1500
    assert max(leads) <= 2 * 128 + 5 * 8


@pytest.fixture
def counts_of_items(monkeypatch):
    """How many items were in memory, each time that one came to them."""
    counts = []
    alive = weakref.WeakSet()

    def counted(index, name):
        item = Item(index, name)
        alive.add(item)
        counts.append(len(alive))
        return item

    monkeypatch.setattr("onepeace.embed.encode.Item", counted)
    return counts


LONG = {"text": "a text that is longer than all of the others"}
SHORT = {"text": "a dog"}
BROKEN = {"text": "a dog", "smell": 1}


@pytest.mark.parametrize(
    ("first", "following", "workers", "limit"),
    [
        (SHORT, SHORT, 1, BLOCK + 64),
        (LONG, SHORT, 3, 2 * BLOCK + 2 * 64 + 2 * 3),  # no full batch comes for the first
        (LONG, BROKEN, 3, 2 * BLOCK + 2 * 64 + 2 * 3),
    ],
    ids=["alike", "one of its kind", "failures"],
)
def test_stream_holds_a_bounded_number_of_items(model, counts_of_items, side_by_side, first, following, workers, limit):
    side_by_side(workers)
    items = itertools.chain([first], itertools.repeat(following, 2499))

    for result in model.stream(items, batch_size=64):
        is_broken = following is BROKEN and result.index > 0
        assert (result.vector is None) == is_broken

    assert len(counts_of_items) == 2500
    assert max(counts_of_items) <= limit + 2


def test_memory_is_bounded_for_large_items(model):
    """60 pictures of 1.5 MB each, made as they are asked for: never more than a few batches of them at once."""
    pictures = (np.full((500, 1000, 3), index, np.uint8) for index in range(60))

    tracemalloc.start()
    model.encode_image(pictures, batch_size=2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 30e6


def test_stream_that_is_closed_ends_its_threads(model, ends_its_threads):
    before = threading.active_count()
    with closing(model.stream(itertools.repeat("a dog"), batch_size=4)) as results:
        assert not next(results).vector.is_inference()
        assert threading.active_count() > before
        assert not torch.is_inference_mode_enabled()


def test_error_of_the_callers_generator_is_raised_unchanged(model, ends_its_threads):
    def texts():
        yield "a"
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        model.encode_text(texts())


def test_progress_bar_goes_to_stderr_when_asked_for(model, capsys):
    model.encode_text(TEXTS)
    assert capsys.readouterr() == ("", "")

    model.encode_text(TEXTS, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "7/7" in err


# Assembly of an item


def broken():
    raise UserError("broken at once")
    yield


@pytest.mark.parametrize(
    ("pieces", "word"),
    [
        (broken(), "broken at once"),
        ([], "nothing"),
    ],
)
def test_item_without_anything_to_compute_fails(pieces, word):
    item = Item(0, "a")

    assert list(item.samples([Part("audio", pieces)])) == []
    assert word in item.result().reason


# Several batches at once


@pytest.fixture
def two_threads():
    """torch takes two threads for an operator, as on two cores; the fixture of all tests sets one again."""
    torch.set_num_threads(2)


@pytest.fixture
def computing_threads(model, monkeypatch):
    """The thread of each forward pass, and the number of threads that torch takes in it."""
    threads = []
    forward = model.module.forward

    def noted(inputs):
        threads.append((threading.current_thread(), torch.get_num_threads()))
        return forward(inputs)

    monkeypatch.setattr(model.module, "forward", noted)
    return threads


@pytest.mark.parametrize(
    ("count", "num_threads"),
    [
        (200, 2),
        (1, 1),
    ],
)
def test_threads_that_compute_take_one_thread_each(two_threads, model, computing_threads, count, num_threads):
    model.encode_text(varied_texts(count))

    assert {torch_threads for _, torch_threads in computing_threads} == {1}
    assert len({thread for thread, _ in computing_threads}) == num_threads
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("batch_size", [3, 32])
def test_vectors_do_not_depend_on_the_number_of_threads(model, side_by_side, items, batch_size):
    mixed = [*items, 7, *varied_texts(150)]
    expected, _ = model.encode(mixed, on_error="skip")
    side_by_side(3)

    vectors, (failure,) = model.encode(mixed, batch_size=batch_size, on_error="skip")

    assert_same(vectors, expected)
    assert failure.index == len(items)


def test_failure_of_a_batch_is_raised_and_ends_the_threads(model, monkeypatch, side_by_side, ends_its_threads):
    def overflow(inputs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model.module, "forward", overflow)
    side_by_side(3)

    with pytest.raises(UserError, match="batch_size"):
        model.encode_text(["a dog"] * 99)


@pytest.fixture
def interruptible():
    """Ctrl-C raises, also where a job in the background of a script ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_does_not_wait_for_batches_under_way(model, monkeypatch, side_by_side, interruptible):
    first = threading.Semaphore()
    stopped = threading.Event()
    ended = threading.Event()

    def forward(inputs):
        if first.acquire(blocking=False):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        stopped.wait(10)
        ended.set()

    monkeypatch.setattr(model.module, "forward", forward)
    side_by_side(2)
    try:
        with pytest.raises(KeyboardInterrupt):
            list(model.stream(itertools.repeat("a dog"), batch_size=8))
        assert not ended.is_set()
    finally:
        stopped.set()


def test_opened_picture_may_be_given_several_times():
    file = io.BytesIO()
    Image.effect_noise((1500, 1000), 90).save(file, "JPEG")
    expected = Image.open(file).convert("RGB")

    for _ in range(3):
        opened = Image.open(file)
        for _, _, image in decode_ahead([opened] * 6, ImageProcessor().load, ahead=8):
            assert image.tobytes() == expected.tobytes()
