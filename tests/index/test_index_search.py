"""Searching an index: one hit for each file, near copies together, filters, order, pages of hits."""

import sqlite3

import numpy as np
import pytest

from onepeace.errors import UserError
from onepeace.index import Index, Query
from onepeace.index.banks import Banks
from onepeace.index.items import Item, Span
from onepeace.index.matrix import derived, keep
from onepeace.index.query import QueryVector, encode
from onepeace.index.rank import FetchedRows, rank
from onepeace.index.store import Store

E = 8
ABOUT = {"model": "fake", "model_hash": "0", "preprocessing": "1", "modalities": "image audio text"}


def unit(*numbers):
    vector = np.zeros(E, np.float32)
    vector[: len(numbers)] = numbers
    return vector / np.linalg.norm(vector)


QUERY = Query(vector=unit(1))


@pytest.fixture
def fill(tmp_path):
    """Makes an index of (item, spans, vectors) and opens it."""
    opened = []

    def make(*files):
        store = Store.create(tmp_path / "i", E, ABOUT)
        items = [(item, spans) for item, spans, _ in files]
        with store.transaction():
            store.add(items, np.concatenate([np.stack(vectors) for *_, vectors in files]))
        keep(store)
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
    results = index.search(QUERY, top=5)
    assert names(results) == ["near.jpg", "long.ogg", "far.jpg"]
    assert [(hit.start, hit.end) for hit in results.hits] == [(None, None), (5.0, 15.0), (None, None)]
    assert [hit.score for hit in results.hits] == pytest.approx([unit(9, 1)[0], unit(3, 1)[0], unit(1, 2)[0]])
    assert [hit.rank for hit in results.hits] == [1, 2, 3]
    assert results.compared == 3
    assert results.relevant is None  # there is no calibration


def test_near_copies_are_one_hit_unless_they_are_of_another_kind(fill):
    sound = Item("/p/a.ogg", "audio"), [Span("audio")], [unit(9, 1)]
    index = fill(picture("a.jpg", 9, 1), picture("a.png", 9, 1.05), sound, picture("b.jpg", 1, 1))
    collapsed = index.search(QUERY)
    assert names(collapsed) == ["a.jpg", "a.ogg", "b.jpg"]
    assert [hit.copies for hit in collapsed.hits] == [("/p/a.png",), (), ()]
    assert names(index.search(QUERY, collapse=False)) == ["a.jpg", "a.ogg", "a.png", "b.jpg"]


def test_names_that_are_not_utf8_are_text_in_json(fill):
    hit = fill(picture("a\udcff.jpg", 9, 1), picture("b\udcff.jpg", 9, 1)).search(QUERY)[0].to_dict()
    assert (hit["path"], hit["copies"]) == ("/p/a\ufffd.jpg", ["/p/b\ufffd.jpg"])


def test_near_copies_are_found_across_blocks(fill, monkeypatch):
    monkeypatch.setattr("onepeace.index.rank.BLOCK", 2)
    # From one to the next the cosine is 0.985, over two 0.94.
    angles = 0.1 + 0.1736 * np.array([0, 1, 2, 3, 0.01])
    index = fill(*(picture(f"{i}.jpg", np.cos(angle), np.sin(angle)) for i, angle in enumerate(angles)))
    found = index.search(QUERY)
    assert [(hit.item.path, *hit.copies) for hit in found.hits] == [
        ("/p/0.jpg", "/p/4.jpg", "/p/1.jpg"),
        ("/p/2.jpg", "/p/3.jpg"),
    ]


def test_pages_of_hits_are_parts_of_one_list(fill):
    rng = np.random.default_rng(0)
    files = [picture(f"{i}.jpg", *rng.normal(size=E)) for i in range(60)]
    index = fill(*files)
    whole = names(index.search(QUERY, top=60))
    assert len({*whole}) == 60
    assert [name for start in range(0, 60, 7) for name in names(index.search(QUERY, top=7, offset=start))] == whole
    assert names(index.search(QUERY, top=5, offset=60)) == []


def test_hits_are_asked_for_until_there_are_enough_files(fill):
    spans = [Span("audio", float(i), float(i + 1)) for i in range(50)]
    sound = Item("/p/long.ogg", "audio"), spans, [unit(100, i) for i in range(50)]
    index = fill(sound, picture("a.jpg", 1, 3), picture("b.jpg", 1, 4))
    assert names(index.search(QUERY, top=2)) == ["long.ogg", "a.jpg"]


def test_many_windows_or_copies_hide_no_better_file_of_their_kind(fill):
    spans = [Span("audio", float(i), float(i + 1)) for i in range(50)]
    long = Item("/p/long.ogg", "audio"), spans, [unit(100, i) for i in range(50)]
    near = Item("/p/near.ogg", "audio"), [Span("audio")], [unit(1, 1)]
    words = [(Item(f"/p/{i}.txt", "text"), [Span("text")], [unit(1, 9, i)]) for i in range(5)]
    index = fill(long, near, *words, *(picture(f"{i}.jpg", 100, 1) for i in range(50)), picture("near.jpg", 1, 0.9))
    assert names(index.search(QUERY, top=4)) == ["long.ogg", "0.jpg", "near.jpg", "near.ogg"]


def test_kinds_and_own_files_are_left_out(fill):
    sound = Item("/p/a.ogg", "audio"), [Span("audio")], [unit(9, 1)]
    index = fill(picture("a.jpg", 9, 2), sound, picture("b.jpg", 1, 1))
    assert names(index.search(QUERY, only=["audio"])) == names(index.search(QUERY, only="audio")) == ["a.ogg"]
    assert index.search(QUERY, only=["audio"]).compared == 1
    assert names(index.search(Query(like="/p/a.jpg"))) == ["a.ogg", "b.jpg"]
    assert index.search(QUERY, only=["text"]).hits == ()


def test_below_keeps_files_at_and_inside_paths(fill):
    paths = ("a/1.jpg", "a/b/2.jpg", "ab/3.jpg", "a.tar::4.jpg")
    index = fill(*(picture(path, 9, number) for number, path in enumerate(paths)))

    def below(*folders):
        return names(index.search(QUERY, below=folders, collapse=False))

    assert below("/p/a") == ["1.jpg", "2.jpg"]
    assert below("/p/a/b/", "/p/ab/3.jpg") == ["2.jpg", "3.jpg"]
    assert below("/p/a.tar") == ["a.tar::4.jpg"]
    assert below("/") == ["1.jpg", "2.jpg", "3.jpg", "a.tar::4.jpg"]
    assert index.search(QUERY, below="/p/none").compared == 0


def test_dates_and_paths_order_the_best(fill):
    index = fill(
        picture("b.jpg", 9, 1, date=10.0), picture("c.jpg", 3, 1, date=30.0), picture("a.jpg", 1, 1, date=20.0)
    )
    assert names(index.search(QUERY)) == ["b.jpg", "c.jpg", "a.jpg"]
    assert names(index.search(QUERY, sort="date")) == ["c.jpg", "a.jpg", "b.jpg"]
    assert names(index.search(QUERY, sort="path")) == ["a.jpg", "b.jpg", "c.jpg"]


def test_dates_order_no_unlikely_hits_if_others_are_there(fill):
    index = fill(picture("a.jpg", 9, 1, date=1.0), picture("b.jpg", 9, 3, date=2.0), picture("c.jpg", 0, 1, date=3.0))
    index.__dict__["banks"] = Banks({"sentence": np.stack([unit(1, i) for i in range(1, 9)])})
    index.banks.add(index.matrix.vectors, ["image"] * 3)
    index.banks.best[:] = np.linspace(0.1, 0.9, 8)[:, None]
    assert names(index.search(QUERY, sort="date")) == ["b.jpg", "a.jpg"]
    assert names(index.search(QUERY, sort="date", min_match=0)) == ["c.jpg", "b.jpg", "a.jpg"]
    assert names(index.search(Query(vector=unit(0, 0, 1)), sort="date")) == ["c.jpg", "b.jpg", "a.jpg"]


def test_pages_by_path_are_parts_of_one_list(fill, monkeypatch):
    monkeypatch.setattr("onepeace.index.search.POOL", 2)
    index = fill(*(picture(f"{name}.jpg", 9, number) for number, name in enumerate("dbcae")))
    options = {"sort": "path", "collapse": False}
    assert names(index.search(QUERY, top=1, **options)) == ["b.jpg"]
    whole = names(index.search(QUERY, top=9, **options))
    assert whole == ["b.jpg", "d.jpg", "a.jpg", "c.jpg", "e.jpg"]  # two at once, the best first
    for top in (1, 2, 3):
        pages = [names(index.search(QUERY, top=top, offset=offset, **options)) for offset in range(0, 5, top)]
        assert [name for page in pages for name in page] == whole


def test_removed_files_are_not_found_and_a_reader_keeps_its_state(fill):
    index = fill(picture("a.jpg", 9, 1), picture("b.jpg", 1, 1))
    assert names(index.search(QUERY)) == ["a.jpg", "b.jpg"]
    store = Store(index.store.folder, write=True)
    with store.transaction():
        store.remove([1])
    store.close()
    with Index.open(index.store.folder) as later:
        assert names(later.search(QUERY)) == ["b.jpg"]
        assert len(later) == 1


def test_parts_are_one_vector_with_weights(fill):
    index = fill(picture("a.jpg", 1), picture("b.jpg", 0, 1))
    asked = Query(like=["/p/a.jpg", "/p/b.jpg"], vector=unit(1), weights={"like": 2.0})
    query = encode(asked, index.store, pytest.fail, pytest.fail)
    np.testing.assert_allclose(query.vector, unit(3, 2), atol=1e-6)
    assert [(part.bank, part.weight) for part in query.parts] == [("image", 2.0), ("image", 2.0), ("sentence", 1.0)]
    sound = (np.zeros(9), np.int64(16000))  # one sound, not a list of two
    assert Query(audio=sound).parts() == [("audio", sound, 1.0)]


def test_copy_of_the_query_has_a_match_of_1_and_a_hit_formats_itself(fill):
    index = fill(picture("a.jpg", 1, 1), picture("b.jpg", 1, 1))
    banks = Banks({"image": np.stack([unit(1, 1), unit(1)])})
    banks.add(index.matrix.vectors, ["image", "image"])
    banks.best += 1e-3  # unrelated queries that are nearer than the copy itself
    index.__dict__["banks"] = banks
    found = index.search(Query(like="/p/a.jpg"))
    assert found[0].score == pytest.approx(1.0)
    assert found[0].match == 1.0
    assert str(found[0]).split()[-1] == "/p/b.jpg"
    assert set(found.to_dict()["hits"][0]) >= {"rank", "path", "kind", "modality", "match", "likelihood", "score"}


@pytest.fixture
def mixed(fill):
    """Pictures, sounds and one text, at random around the query, beside 60 unrelated queries."""
    rng = np.random.default_rng(0)
    kinds = ["image"] * 12 + ["audio"] * 12 + ["text"]
    names_of_files = [f"{number}.file" for number in range(24)] + ["invoice 2023.txt"]
    files = []
    for number, (name, kind) in enumerate(zip(names_of_files, kinds, strict=True)):
        item = Item(f"/p/{'ab'[number % 2]}/{name}", kind, size=number)
        files.append((item, [Span(kind)], [unit(2.5, *rng.normal(size=E - 1))]))
    index = fill(*files)
    banks = Banks({"sentence": np.stack([unit(1.5, *rng.normal(size=E - 1)) for _ in range(60)])})
    banks.add(index.matrix.vectors, kinds)
    index.__dict__["banks"] = banks
    return index


@pytest.mark.parametrize(
    "options",
    [
        {"only": "audio"},
        {"only": "text"},
        {"where": "size > 9"},
        {"below": "/p/a"},
        {"top": 2},
        {"top": 3, "offset": 4},
        {"min_match": 0.4},
        {"sort": "path", "min_match": 0},
    ],
)
def test_match_of_a_file_depends_on_no_filter_and_no_other_hit(mixed, options):
    every_hit = mixed.search(QUERY, top=25, collapse=False)
    assert len({hit.match for hit in every_hit}) > 5
    match_by_path = {hit.item.path: hit.match for hit in every_hit}
    hits = mixed.search(QUERY, collapse=False, **options).hits
    assert 0 < len(hits) < 25
    for hit in hits:
        assert hit.match == match_by_path[hit.item.path]


class SoundsMatchBetter:
    """A scale on which a sound has a higher match than a picture of the same z."""

    def score(self, modality, cosines):
        return cosines, cosines + (0.2 if modality == "audio" else 0.0)


def test_rows_are_ordered_by_tier_then_by_the_match_as_a_word_then_by_z():
    pictures = FetchedRows(tier=0, modality="image", rows=np.array([0, 1]), cosines=np.array([0.8, 0.6]))
    sounds = FetchedRows(tier=0, modality="audio", rows=np.array([2, 3]), cosines=np.array([0.78, 0.55]))
    of_next_tier = FetchedRows(tier=1, modality="image", rows=np.array([4]), cosines=np.array([0.9]))
    ranked = rank(SoundsMatchBetter(), QueryVector(unit(1), ()), [of_next_tier, pictures, sounds])
    assert ranked.rows.tolist() == [2, 0, 3, 1, 4]
    assert ranked.matches == pytest.approx([0.98, 0.8, 0.75, 0.6, 0.9])


@pytest.mark.parametrize(
    ("query", "field"),
    [
        (Query(), "nothing to search for"),
        (Query(text=" "), "text is empty"),
        (Query(text=7), "text is int"),
        (Query(without="people"), "nothing to search for"),
        (Query(like=["/p/a.jpg", "/p/b.jpg"]), "cancel out"),
        (Query(like="/p/none.jpg"), "/p/none.jpg: not in the index"),
        (Query(vector=np.zeros(E)), "8 finite numbers, not all 0"),
        (Query(vector=np.ones(E + 1)), r"got \(9,\)"),
        (Query(text="a", weights={"txt": 1.0}), "weights has 'txt'"),
        (Query(text="a", weights={"vector": 2.0}), "weights has vector"),
        (Query(text="a", weights={"text": 10**400}), "weight of text"),
        (Query(text="a", weights={"text": float("nan")}), "weight of text"),
    ],
)
def test_queries_that_cannot_be_searched_for(fill, query, field):
    index = fill(picture("a.jpg", 1), picture("b.jpg", -1))
    with pytest.raises(UserError, match=field):
        index.search(query)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"only": ["pictur"]}, "did you mean picture"),
        ({"sort": "dat"}, "sort is 'dat'"),
        ({"rank": "best"}, "rank is 'best'"),
        ({"top": 2.5}, "top is 2.5"),
        ({"min_match": float("nan")}, "min_match is nan"),
        ({"where": "widht > 3"}, "did you mean width"),
    ],
)
def test_options_that_cannot_be_read(fill, options, field):
    index = fill(picture("a.jpg", 1))
    with pytest.raises(UserError, match=field):
        index.search(QUERY, **options)


def test_damage_is_noticed_and_a_matrix_that_was_cut_is_not_read_past_its_end(fill):
    index = fill(picture("a.jpg", 1), picture("b.jpg", 0, 1))
    assert names(index.search(QUERY)) == ["a.jpg", "b.jpg"]
    derived(index.folder)[0].write_bytes(b"")
    assert names(index.search(QUERY)) == ["a.jpg", "b.jpg"]
    with Index.open(index.folder) as again:
        assert names(again.search(QUERY)) == ["a.jpg", "b.jpg"]
    with sqlite3.connect(index.folder / "index.sqlite") as connection:
        connection.execute("UPDATE vectors SET vector = zeroblob(32) WHERE file = 1")
    with Index.open(index.folder) as damaged, pytest.raises(UserError, match=r"check .* --repair"):
        damaged.search(QUERY)


def test_index_of_an_earlier_form_is_refused_by_name(tmp_path):
    (tmp_path / "old").mkdir()
    with sqlite3.connect(tmp_path / "old" / "index.sqlite") as connection:
        connection.execute("CREATE TABLE meta (key TEXT, value TEXT)")
        connection.execute("INSERT INTO meta VALUES ('format_version', '1')")
    with pytest.raises(UserError, match="made by an earlier version; build it again"):
        Index.open(tmp_path / "old")
