"""Searching an index: one hit for each file, near copies together, filters, order, pages of hits."""

import numpy as np
import pytest

from onepeace.errors import UserError
from onepeace.index import search
from onepeace.index.index import Index
from onepeace.index.query import Part, encode
from onepeace.index.store import Item, Span, Store

E = 8
ABOUT = {"model": "fake", "model_hash": "0", "preprocessing": "1"}


def unit(*numbers):
    vector = np.zeros(E, np.float32)
    vector[: len(numbers)] = numbers
    return vector / np.linalg.norm(vector)


QUERY = Part("vector", unit(1))


def no_model():
    raise AssertionError("a query of vectors needs no model")


@pytest.fixture
def fill(tmp_path):
    """Makes an index of (item, spans, vectors) and opens it."""
    opened = []

    def make(*files):
        store = Store.create(tmp_path / "i", E, ABOUT)
        items = [(item, spans) for item, spans, _ in files]
        store.add(items, np.concatenate([np.stack(vectors) for *_, vectors in files]))
        store.close()
        opened.append(Index.open(tmp_path / "i"))
        return opened[-1]

    yield make
    for index in opened:
        index.close()


def picture(name, *numbers, **fields):
    return Item(f"/p/{name}", "image", **fields), [Span("image")], [unit(*numbers)]


def names(results):
    return [hit.item.path.rpartition("/")[2] for hit in results.hits]


def test_a_long_sound_is_one_hit_at_its_nearest_window(fill):
    spans = [Span("audio", 0.0, 10.0), Span("audio", 5.0, 15.0), Span("audio", 10.0, 20.0)]
    sound = Item("/p/long.ogg", "audio"), spans, [unit(0, 1), unit(3, 1), unit(1, 1)]
    index = fill(sound, picture("far.jpg", 1, 2), picture("near.jpg", 9, 1))
    results = index.search([QUERY], top=5)
    assert names(results) == ["near.jpg", "long.ogg", "far.jpg"]
    assert [(hit.start, hit.end) for hit in results.hits] == [(None, None), (5.0, 15.0), (None, None)]
    assert [hit.score for hit in results.hits] == pytest.approx([unit(9, 1)[0], unit(3, 1)[0], unit(1, 2)[0]])
    assert [hit.rank for hit in results.hits] == [1, 2, 3]
    assert results.compared == 3
    assert results.relevant is None  # there is no calibration


def test_near_copies_are_one_hit_unless_they_are_of_another_kind(fill):
    sound = Item("/p/a.ogg", "audio"), [Span("audio")], [unit(9, 1)]
    index = fill(picture("a.jpg", 9, 1), picture("a.png", 9, 1.05), sound, picture("b.jpg", 1, 1))
    collapsed = index.search([QUERY])
    assert names(collapsed) == ["a.jpg", "a.ogg", "b.jpg"]
    assert [hit.copies for hit in collapsed.hits] == [("/p/a.png",), (), ()]
    assert names(index.search([QUERY], duplicates="show")) == ["a.jpg", "a.ogg", "a.png", "b.jpg"]


def test_near_copies_are_found_across_blocks(fill, monkeypatch):
    monkeypatch.setattr(search, "BLOCK", 2)
    # From one to the next the cosine is 0.985, over two 0.94.
    angles = 0.1 + 0.1736 * np.array([0, 1, 2, 3, 0.01])
    index = fill(*(picture(f"{i}.jpg", np.cos(angle), np.sin(angle)) for i, angle in enumerate(angles)))
    found = index.search([QUERY])
    assert [(hit.item.path, *hit.copies) for hit in found.hits] == [
        ("/p/0.jpg", "/p/4.jpg", "/p/1.jpg"),
        ("/p/2.jpg", "/p/3.jpg"),
    ]


def test_pages_of_hits_are_parts_of_one_list(fill):
    rng = np.random.default_rng(0)
    files = [picture(f"{i}.jpg", *rng.normal(size=E)) for i in range(60)]
    index = fill(*files)
    whole = names(index.search([QUERY], top=60))
    assert len({*whole}) == 60
    assert [name for start in range(0, 60, 7) for name in names(index.search([QUERY], top=7, offset=start))] == whole
    assert names(index.search([QUERY], top=5, offset=60)) == []


def test_hits_are_asked_for_until_there_are_enough_files(fill):
    spans = [Span("audio", float(i), float(i + 1)) for i in range(50)]
    sound = Item("/p/long.ogg", "audio"), spans, [unit(100, i) for i in range(50)]
    index = fill(sound, picture("a.jpg", 1, 3), picture("b.jpg", 1, 4))
    assert names(index.search([QUERY], top=2)) == ["long.ogg", "a.jpg"]


def test_kinds_and_own_files_are_left_out(fill):
    sound = Item("/p/a.ogg", "audio"), [Span("audio")], [unit(9, 1)]
    index = fill(picture("a.jpg", 9, 2), sound, picture("b.jpg", 1, 1))
    assert names(index.search([QUERY], only=["audio"])) == names(index.search([QUERY], only="audio")) == ["a.ogg"]
    assert index.search([QUERY], only=["audio"]).compared == 1
    assert names(index.search([Part("like", "/p/a.jpg")])) == ["a.ogg", "b.jpg"]
    assert index.search([QUERY], only=["text"]).hits == ()


def test_dates_and_paths_order_the_best(fill):
    index = fill(
        picture("b.jpg", 9, 1, date=10.0), picture("c.jpg", 3, 1, date=30.0), picture("a.jpg", 1, 1, date=20.0)
    )
    assert names(index.search([QUERY])) == ["b.jpg", "c.jpg", "a.jpg"]
    assert names(index.search([QUERY], sort="date")) == ["c.jpg", "a.jpg", "b.jpg"]
    assert names(index.search([QUERY], sort="path")) == ["a.jpg", "b.jpg", "c.jpg"]


def test_more_hits_than_are_sorted_by_default_can_be_asked_for(fill, monkeypatch):
    monkeypatch.setattr(search, "POOL", 2)
    index = fill(*(picture(f"{name}.jpg", 9, number) for number, name in enumerate("dbcae")))
    options = {"sort": "path", "duplicates": "show"}
    assert names(index.search([QUERY], top=1, **options)) == ["b.jpg"]
    assert names(index.search([QUERY], top=4, **options)) == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert names(index.search([QUERY], top=2, offset=3, **options)) == ["d.jpg", "e.jpg"]


def test_removed_files_are_not_found_and_a_reader_keeps_its_state(fill):
    index = fill(picture("a.jpg", 9, 1), picture("b.jpg", 1, 1))
    assert names(index.search([QUERY])) == ["a.jpg", "b.jpg"]
    store = Store(index.store.folder, write=True)
    store.remove([1])
    store.close()
    with Index.open(index.store.folder) as later:
        assert names(later.search([QUERY])) == ["b.jpg"]
        assert len(later) == 1


def test_parts_are_one_vector_with_weights_relative_to_its_length(fill):
    index = fill(picture("a.jpg", 1), picture("b.jpg", 0, 1))
    query = encode([Part("like", "/p/a.jpg", 3.0), Part("like", "/p/b.jpg", -4.0)], index.store, no_model)
    np.testing.assert_allclose(query.vector, unit(3, -4), atol=1e-6)
    assert query.norm == pytest.approx(5.0)
    assert query.weights == (("image", 3.0), ("image", -4.0))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "nothing to search for"),
        ([QUERY, Part("vector", unit(1), -1.0)], "cancel out"),
        ([Part("like", "/p/none.jpg")], "/p/none.jpg: not in the index"),
        ([Part("vector", np.zeros(E))], "8 finite numbers, not all 0"),
        ([Part("vector", np.ones(E + 1))], r"got \(9,\)"),
    ],
)
def test_queries_that_cannot_be_searched_for(fill, parts, message):
    index = fill(picture("a.jpg", 1))
    with pytest.raises(UserError, match=message):
        index.search(parts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": ["picture"]}, "only is 'picture'; it can be image, audio, text, video"),
        ({"sort": "dat"}, "sort is 'dat'; it can be match, date, path"),
        ({"duplicates": "colapse"}, "duplicates is 'colapse'; it can be collapse, show"),
        ({"rank": "best"}, "rank is 'best'; it can be znorm, raw"),
        ({"nearest": "best"}, "nearest is 'best'; it can be auto, exact"),
        ({"top": 2.5}, "top is 2.5 and offset 0; give whole numbers"),
        ({"min_match": float("nan")}, "min_match is nan; give a number from 0 to 1"),
    ],
)
def test_options_that_cannot_be_read(fill, options, message):
    index = fill(picture("a.jpg", 1))
    with pytest.raises(UserError, match=message):
        index.search([QUERY], **options)
