"""Streams of items: batches of like lengths, results in order, and no more in memory than needed."""

import io
import itertools
import threading
import tracemalloc
from contextlib import closing

import numpy as np
import pytest
import torch
from PIL import Image
from support.embedding import TEXTS, assert_same

from onepeace.embed.assembly import Assembly
from onepeace.embed.parts import Part
from onepeace.embed.stream import Batcher, Waiting, decode_ahead
from onepeace.errors import UserError


def batches_of(sizes, batch_size, window):
    """What a Batcher makes of samples of one modality: batches of (row, size), and how many came before the rest."""
    batcher = Batcher(batch_size, window)
    nothing = torch.empty(0), Assembly(0, "")
    early = [*filter(None, [batcher.add(Waiting("text", size, *nothing, row)) for row, size in enumerate(sizes)])]
    return [[(entry.row, entry.size) for entry in entries] for entries in [*early, *batcher.rest()]], len(early)


def test_batches_are_full_and_hold_like_lengths():
    sizes = torch.randint(1, 1000, (2000,), generator=torch.Generator().manual_seed(0)).tolist()
    batches, early = batches_of(sizes, 16, 256)
    assert sorted(entry for batch in batches for entry in batch) == list(enumerate(sizes))
    assert all(len(batch) == 16 for batch in batches)  # 2000 is a multiple
    assert early == (2000 - 256) // 16 + 1
    padded = sum(len(batch) * max(size for _, size in batch) for batch in batches)
    assert padded < 1.1 * sum(sizes)


def test_no_sample_waits_for_ever():
    sizes = [5000, *range(1, 999)]  # nothing is like the first
    batches, _ = batches_of(sizes, 8, 64)
    (when,) = [number for number, batch in enumerate(batches) if (0, 5000) in batch]
    assert when == 0
    assert batches[-1][0][1] <= batches[-2][-1][1]  # of the rest the largest come first


def test_samples_of_one_size_do_not_wait():
    batches, early = batches_of([7] * 40, 8, 256)
    assert early == len(batches) == 5


def texts_with_one_of_its_kind(count):
    """Texts of one size behind one of another, which no full batch comes for."""
    yield "a text that is longer than all of the others"
    yield from itertools.repeat("a dog", count - 1)


def test_stream_gives_results_in_order_while_the_input_goes_on(model):
    taken = 0

    def texts():
        nonlocal taken
        for taken in range(3000):
            yield f"{'word ' * (taken * 7 % 5)}{taken}" if taken % 10 else 7  # every tenth is no text

    lead = []
    for index, result in enumerate(model.stream(texts(), modality="text", batch_size=8)):
        assert result.index == index
        assert (result.vector is None) == (index % 10 == 0) == (result.reason is not None)
        lead.append(taken - index)
    assert len(lead) == 3000
    assert max(lead) <= 4 * 256 + 3 * 8
    with pytest.raises(UserError, match="batch_size is 0"):
        model.stream(texts(), batch_size=0)  # before the first result is asked for


@pytest.mark.parametrize("kind", ["alike", "one of its kind", "failures"])
def test_stream_holds_a_bounded_number_of_items(model, monkeypatch, kind):
    class Counted(Assembly):
        alive = most = 0

        def __init__(self, *args):
            super().__init__(*args)
            Counted.alive += 1
            Counted.most = max(Counted.most, Counted.alive)

        def __del__(self):
            Counted.alive -= 1

    monkeypatch.setattr("onepeace.embed.embedder.Assembly", Counted)
    texts = enumerate(texts_with_one_of_its_kind(4000))
    items = ({"text": text, **({"smell": 1} if kind == "failures" and index else {})} for index, text in texts)
    results = model.stream(itertools.islice(items, kind == "alike", None), batch_size=64)
    assert sum(result.reason is None for result in results) == {"alike": 3999, "failures": 1}.get(kind, 4000)
    assert Counted.most <= (64 if kind == "alike" else 4 * 256) + 2


def test_stream_gives_windows_with_their_seconds(model, sounds, long_sound):
    given = list(model.stream([sounds[0], "a", long_sound], long="windows", window=1, hop=0.5))
    expected = model.encode_audio([sounds[0], long_sound], long="windows", window=1, hop=0.5)
    for result, windows in zip([given[0], given[2]], expected, strict=True):
        assert torch.equal(result.windows.vectors, windows.vectors)
        assert (result.windows.starts, result.windows.ends) == (windows.starts, windows.ends)
    assert (given[1].windows.starts, given[1].windows.ends) == ([0], [0])
    assert torch.equal(given[1].vector, given[1].windows.vectors[0])
    assert torch.equal(given[2].vector, model.encode_audio([long_sound], long="mean", window=1, hop=0.5)[0])


def test_a_stream_that_is_given_up_ends_its_threads(model):
    before = threading.active_count()
    with closing(model.stream(itertools.repeat("a dog"), batch_size=4)) as results:
        assert next(results).name == "a dog"
        assert threading.active_count() > before
        assert not torch.is_inference_mode_enabled()
    assert threading.active_count() == before


def test_generator_is_read_no_further_than_needed(model, monkeypatch):
    computed, lead = 0, []
    forward = model.module.forward

    def count(inputs):
        nonlocal computed
        computed += len(inputs["text"]["ids"])
        return forward(inputs)

    monkeypatch.setattr(model.module, "forward", count)

    def texts():
        for index in range(600):
            lead.append(index - computed)
            yield "word " * (index % 11)

    assert model.encode_text(texts(), batch_size=16).shape[0] == 600
    assert max(lead) <= 256 + 3 * 16


def test_memory_is_bounded_for_large_items(model):
    """60 pictures of 1.5 MB each, made as they are asked for: never more than a few batches of them at once."""
    pictures = (np.full((500, 1000, 3), index, np.uint8) for index in range(60))
    tracemalloc.start()
    model.encode_image(pictures, batch_size=2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6


def test_decoding_runs_in_threads(model, pictures, monkeypatch):
    threads = set()
    decode = model.processors["image"].decode
    monkeypatch.setattr(
        model.processors["image"], "decode", lambda item: threads.add(threading.current_thread()) or decode(item)
    )
    before = threading.active_count()
    model.encode_image(pictures)
    assert threading.main_thread() not in threads
    assert threading.active_count() == before


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
    assembly = Assembly(0, "a")
    pieces = [(start, start + 1, torch.zeros(1)) for start in range(2)]
    rows = [row for _, _, row in assembly.samples([Part("audio", 1.0, pieces)])]
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

    for pieces, reason in [(nothing(), "broken at once"), ([], "nothing in it to embed")]:
        assembly = Assembly(0, "a")
        assert list(assembly.samples([Part("audio", 1.0, pieces)])) == []
        assert assembly.done
        assert reason in assembly.result().reason


def test_threads_that_decode_leave_openmp_to_the_model():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = {count for _, _, count in decode_ahead(range(50), lambda _: torch.get_num_threads(), ahead=8)}
        assert found == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_opened_picture_may_be_given_several_times():
    file = io.BytesIO()
    Image.effect_noise((1500, 1000), 90).save(file, "JPEG")
    for _ in range(3):
        picture = Image.open(file)
        items = [picture, {"image": picture}, ("a", {"image": [picture]}), picture] * 2
        found = [array for _, _, array in decode_ahead(items, lambda _, one=picture: np.array(one), ahead=8)]
        assert all(np.array_equal(array, np.asarray(Image.open(file))) for array in found)
