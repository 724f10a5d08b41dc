"""Streams of items: batches of like lengths, results in order, and no more in memory than needed."""

import io
import itertools
import signal
import threading
import tracemalloc
from contextlib import closing

import numpy as np
import pytest
import torch
from PIL import Image
from support.embedding import TEXTS, assert_same

from onepeace.embed.parts import Part
from onepeace.embed.stream import Assembly, Sample, batches_of
from onepeace.errors import UserError
from onepeace.processors import ImageProcessor
from onepeace.threads import decode_ahead


def sizes_of_batches(sizes, batch_size, workers=1):
    """The sizes in each batch that samples of one modality, of these sizes, are divided into."""
    assembly = Assembly(0, "", torch.float32)
    samples = [Sample("text", torch.empty(size), assembly, row) for row, size in enumerate(sizes)]
    batches = batches_of(samples, lambda sample: len(sample.values), batch_size, workers)
    return [[len(sample.values) for sample in batch] for batch in batches]


def test_batches_are_full_and_hold_similar_sizes():
    sizes = torch.randint(1, 1000, (256,), generator=torch.Generator().manual_seed(0)).tolist()
    batches = sizes_of_batches(sizes, 16)
    assert sorted(size for batch in batches for size in batch) == sorted(sizes)
    assert all(len(batch) == 16 for batch in batches)
    padded = sum(len(batch) * max(batch) for batch in batches)
    assert padded < 1.1 * sum(sizes)
    assert batches[0][0] == max(sizes)  # a batch too large for memory fails early


def test_batches_are_divided_evenly_among_workers():
    assert [len(batch) for batch in sizes_of_batches([7] * 40, 16, workers=3)] == [14, 14, 12]
    assert [len(batch) for batch in sizes_of_batches([7] * 6, 16, workers=3)] == [4, 2]


def texts_with_one_of_its_kind(count):
    """Texts of one size behind one of another, which no full batch comes for."""
    yield "a text that is longer than all of the others"
    yield from itertools.repeat("a dog", count - 1)


def test_stream_gives_results_in_order_while_the_input_goes_on(model):
    taken = 0

    def texts():
        nonlocal taken
        for taken in range(1500):
            yield f"{'word ' * (taken * 7 % 5)}{taken}" if taken % 10 else 7  # every tenth is no text

    lead = []
    for index, result in enumerate(model.stream(texts(), modality="text", batch_size=8)):
        assert result.index == index
        assert (result.vector is None) == (index % 10 == 0) == (result.reason is not None)
        lead.append(taken - index)
    assert len(lead) == 1500
    assert max(lead) <= 2 * 128 + 5 * 8
    with pytest.raises(UserError, match="batch_size is 0"):
        model.stream(texts(), batch_size=0)  # before the first result is asked for


@pytest.mark.parametrize(("kind", "workers"), [("alike", 1), ("one of its kind", 3), ("failures", 3)])
def test_stream_holds_a_bounded_number_of_items(model, monkeypatch, side_by_side, kind, workers):
    class Counted(Assembly):
        alive = most = 0

        def __init__(self, *args):
            super().__init__(*args)
            Counted.alive += 1
            Counted.most = max(Counted.most, Counted.alive)

        def __del__(self):
            Counted.alive -= 1

    monkeypatch.setattr("onepeace.embed.run.Assembly", Counted)
    texts = enumerate(texts_with_one_of_its_kind(4000))
    items = ({"text": text, **({"smell": 1} if kind == "failures" and index else {})} for index, text in texts)
    side_by_side(workers)
    results = model.stream(itertools.islice(items, kind == "alike", None), batch_size=64)
    assert sum(result.reason is None for result in results) == {"alike": 3999, "failures": 1}.get(kind, 4000)
    under_way = 0 if workers == 1 else 2 * 64 + 2 * workers
    assert Counted.most <= (1024 if kind == "alike" else 2 * 1024) + 2 + under_way


def test_a_stream_that_is_given_up_ends_its_threads(model):
    before = threading.active_count()
    with closing(model.stream(itertools.repeat("a dog"), batch_size=4)) as results:
        assert next(results).name == "a dog"
        assert threading.active_count() > before
        assert not torch.is_inference_mode_enabled()
    assert threading.active_count() == before


def test_memory_is_bounded_for_large_items(model):
    """60 pictures of 1.5 MB each, made as they are asked for: never more than a few batches of them at once."""
    pictures = (np.full((500, 1000, 3), index, np.uint8) for index in range(60))
    tracemalloc.start()
    model.encode_image(pictures, batch_size=2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6


def test_error_in_the_callers_generator_is_his_own(model):
    def texts():
        yield "a"
        raise KeyError("mine")

    before = threading.active_count()
    with pytest.raises(KeyError, match="mine"):
        model.encode_text(texts())
    assert threading.active_count() == before


def test_progress_bar_goes_to_stderr_when_asked_for(model, capsys):
    model.encode_text(TEXTS)
    assert capsys.readouterr() == ("", "")
    model.encode_text(TEXTS, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "7/7" in err


def test_assembly_is_done_when_all_its_rows_are_filled():
    assembly = Assembly(0, "a", torch.float32)
    pieces = [(start, start + 1, torch.zeros(1)) for start in range(2)]
    rows = [sample.row for sample in assembly.samples([Part("audio", pieces)])]
    for row in reversed(rows):
        assert not assembly.done
        assembly.fill(row, torch.eye(2)[row])
    assert assembly.done
    result = assembly.result(windows=True)
    assert_same(result.vector, torch.full((2,), 0.5**0.5))
    assert_same(result.windows.vectors, torch.eye(2))
    assert (result.windows.starts, result.windows.ends, result.reason) == ([0, 1], [1, 2], None)


def test_item_without_anything_to_compute_fails():
    def nothing():
        raise UserError("broken at once")
        yield

    for pieces, reason in [(nothing(), "broken at once"), ([], "contains nothing to embed")]:
        assembly = Assembly(0, "a", torch.float32)
        assert list(assembly.samples([Part("audio", pieces)])) == []
        assert assembly.done
        assert reason in assembly.result().reason


# Several batches at once


@pytest.fixture
def two_threads():
    """torch takes two threads for an operator, as on two cores; the fixture of all tests sets one again."""
    torch.set_num_threads(2)


def test_every_thread_of_ours_computes_alone(model, monkeypatch, two_threads):
    """Those that decode and those that compute; the caller's stays as it is."""
    found, forward = [], model.module.forward

    def noted(inputs):
        found.append((threading.current_thread(), torch.get_num_threads()))
        return forward(inputs)

    monkeypatch.setattr(model.module, "forward", noted)
    model.encode_text(f"a {'word ' * (i % 9)}" for i in range(200))
    assert {count for _, count in found} == {1}
    assert len({thread for thread, _ in found}) == 2
    found.clear()
    model.encode_text(["a dog"])
    assert [count for _, count in found] == [1]
    assert {count for _, _, count in decode_ahead(range(50), lambda _: torch.get_num_threads(), ahead=8)} == {1}
    assert torch.get_num_threads() == 2


def test_vectors_do_not_depend_on_the_number_of_threads(model, side_by_side, pictures, sounds):
    items = [*pictures, *sounds, *TEXTS, 7, *(f"{'word ' * (i * 7 % 13)}{i}" for i in range(150))]
    expected, failed = model.encode(items, on_error="skip")
    side_by_side(3)
    for batch_size in (3, 32):
        vectors, failures = model.encode(items, batch_size=batch_size, on_error="skip")
        assert_same(vectors, expected)
        assert [each.index for each in failures] == [each.index for each in failed]


def test_failure_of_a_batch_is_raised_and_ends_the_threads(model, monkeypatch, side_by_side):
    def overflow(inputs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    before = threading.active_count()
    monkeypatch.setattr(model.module, "forward", overflow)
    side_by_side(3)
    with pytest.raises(UserError, match="lower batch_size"):
        model.encode_text(["a dog"] * 99)
    assert threading.active_count() == before


def test_ctrl_c_does_not_wait_for_batches_under_way(model, monkeypatch, side_by_side):
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
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background of a script ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            list(model.stream(itertools.repeat("a dog"), batch_size=8))
        assert not ended.is_set()
    finally:
        stopped.set()
        signal.signal(signal.SIGINT, before)


def test_opened_picture_may_be_given_several_times():
    file, processor = io.BytesIO(), ImageProcessor()
    Image.effect_noise((1500, 1000), 90).save(file, "JPEG")
    for _ in range(3):
        found = [array for _, _, array in decode_ahead([Image.open(file)] * 6, processor.load, ahead=8)]
        assert all(np.array_equal(array, Image.open(file).convert("RGB")) for array in found)
