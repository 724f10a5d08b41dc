"""Searching an index: one hit for each file, near copies together, filters, order, pages of hits."""

import sqlite3
from contextlib import ExitStack, closing

import numpy as np
import pytest
from support.indexes import META, modality_of, put, unit

from onepeace.errors import UserError
from onepeace.index import Index, Query
from onepeace.index.database import Store
from onepeace.index.items import Item, Span
from onepeace.index.match import Banks
from onepeace.index.query import vector_of
from onepeace.index.vectors import keep

WIDTH = 8


def at(degrees):
    """The direction so far from that of QUERY."""
    radians = np.radians(degrees)
    return unit(
        [
            np.cos(radians),
            np.sin(radians),
            *[0] * (WIDTH - 2),
        ]
    )


QUERY = Query(vector=at(0))
FIFTY_WINDOWS = np.linspace(0, 26, 50)


def content_of(name, directions, fields):
    """(item, spans, vectors) of a file; directions are degrees, a list of them for windows of a sound, or vectors."""
    item = Item(f"/p/{name}", modality_of(name), **fields)
    if np.ndim(directions) == 0:
        return item, [Span(item.kind)], [at(directions)]
    if np.ndim(directions) == 1:
        spans = [Span(item.kind, 5.0 * number, 5.0 * number + 10) for number in range(len(directions))]
        return item, spans, [at(degrees) for degrees in directions]
    return item, [Span(item.kind)], directions


@pytest.fixture
def fill(tmp_path):
    """Makes an index of files by their names, and opens it; fields of their items are by name too."""
    with ExitStack() as opened:

        def make(files, **fields):
            with closing(Store.create(tmp_path / "index", WIDTH, META)) as store:
                with store.transaction():
                    for name, directions in files.items():
                        values = {field: by_name[name] for field, by_name in fields.items()}
                        item, spans, vectors = content_of(name, directions, values)
                        store.add(item, spans, np.array(vectors, np.float32))
                keep(store)
            return opened.enter_context(Index.open(tmp_path / "index"))

        yield make


@pytest.fixture
def two(fill):
    """An index of two pictures."""
    return fill({"a.jpg": 6, "b.jpg": 45})


def banks_over(index, vectors, modalities):
    """Unrelated queries of an index, scored against its vectors, which are of these modalities."""
    banks = Banks(vectors)
    with index.reading() as state:
        banks.add(state.matrix.vectors, modalities)
    put(index, "banks", banks)
    return banks


def likelihoods(index, **options):
    return {hit.item.path[3:]: hit.likelihood for hit in index.search(QUERY, **options)}


@pytest.mark.parametrize(
    ("likely", "other"),
    [
        ({"a.jpg": 0, "b.jpg": 8}, "alike"),
        ({"a.jpg": 0}, "weak"),
        ({"a.jpg": 0, "b.jpg": 1}, "weak"),  # near copies
    ],
    ids=str,
)
def test_files_just_below_possible_are_alike_where_several_of_their_kind_are_likely(fill, likely, other):
    files = {**likely, "c.jpg": 18, "d.jpg": 25, "e.jpg": 60}
    index = fill(files)
    banks = banks_over(index, {"sentence": [at(degrees) for degrees in range(45, 85, 2)]}, [*map(modality_of, files)])
    banks.best[:] = np.linspace(0.85, 0.985, 20)[:, None]  # possible: 18 degrees, likely: 10

    found = likelihoods(index)

    assert found == {**dict.fromkeys(found, "likely"), "c.jpg": "possible", "d.jpg": other, "e.jpg": "weak"}
    assert likelihoods(index, top=1, offset=len(found) - 2) == {"d.jpg": other}
    by_path = likelihoods(index, sort="path")
    assert ("d.jpg" in by_path) == (other == "alike")
    assert "e.jpg" not in by_path


def names(results):
    """Names of the files that were found, the best first."""
    return " ".join(hit.item.path.removeprefix("/p/") for hit in results)


def search(index, query=QUERY, **options):
    return names(index.search(query, **options))


def test_long_sound_is_one_hit_at_its_nearest_window(fill):
    index = fill({"long.ogg": [90, 18, 45], "far.jpg": 63, "near.jpg": 6})

    results = index.search(QUERY, top=5)

    assert names(results) == "near.jpg long.ogg far.jpg"
    assert [hit.start for hit in results] == [None, 5.0, None]
    assert [hit.end for hit in results] == [None, 15.0, None]
    assert [hit.score for hit in results] == pytest.approx([at(6)[0], at(18)[0], at(63)[0]])
    assert [hit.rank for hit in results] == [1, 2, 3]
    assert results.compared == 3
    assert results.relevant is None  # there is no calibration


def test_photograph_is_no_copy_of_a_video(fill):
    index = fill({"a.jpg": 6, "b.jpg": 6.1})
    with closing(Store(index.folder, write=True)) as store, store.transaction():
        store.connection.execute("UPDATE files SET kind = 'video' WHERE id = 2")

    with Index.open(index.folder) as reopened:
        assert search(reopened) == "a.jpg b.jpg"
        assert search(reopened, only="image") == "a.jpg"
        assert search(reopened, only=["video"]) == "b.jpg"
        assert search(reopened, only="text") == ""


def test_near_copies_across_blocks(fill, monkeypatch):
    monkeypatch.setattr("onepeace.index.search.BLOCK", 2)
    # From one to the next the cosine is 0.998, over two 0.990; of the last one 0.996, as of different printed pages.
    index = fill({"0.jpg": 6, "1.jpg": 10, "2.jpg": 14, "3.jpg": 18, "4.jpg": 6.1, "5.jpg": 23})

    results = index.search(QUERY)

    assert names(results) == "0.jpg 2.jpg 5.jpg"
    assert [hit.copies for hit in results] == [("/p/4.jpg", "/p/1.jpg"), ("/p/3.jpg",), ()]


def test_pages_are_parts_of_one_list(fill):
    rng = np.random.default_rng(0)
    index = fill({f"{number}.jpg": unit(rng.normal(size=(1, WIDTH))) for number in range(60)})

    whole = search(index, top=60)
    pages = [search(index, top=7, offset=offset) for offset in range(0, 60, 7)]

    assert len(set(whole.split())) == 60
    assert " ".join(pages) == whole
    assert search(index, top=5, offset=60) == ""


def test_many_windows_or_copies_hide_no_better_file_of_their_modality(fill):
    texts = {f"{number}.txt": 84 for number in range(5)}
    copies = {f"{number}.jpg": 1 for number in range(50)}
    index = fill({"long.ogg": FIFTY_WINDOWS, "near.ogg": 45, **texts, **copies, "near.jpg": 42})

    assert search(index, top=4) == "long.ogg 0.jpg near.jpg near.ogg"


@pytest.mark.parametrize(
    ("below", "expected"),
    [
        ("/p/a", "a/1.jpg a/b/2.jpg"),
        (["/p/a/b/", "/p/ab/3.jpg", "/p/none"], "a/b/2.jpg ab/3.jpg"),
        (["/p/a.tar"], "a.tar::4.jpg"),
        ("/", "a/1.jpg a/b/2.jpg ab/3.jpg a.tar::4.jpg"),
    ],
)
def test_below_keeps_files_at_and_inside_paths(fill, below, expected):
    index = fill({"a/1.jpg": 0, "a/b/2.jpg": 6, "ab/3.jpg": 12, "a.tar::4.jpg": 18})

    results = index.search(QUERY, below=below, collapse=False)

    assert names(results) == expected
    assert results.compared == len(expected.split())


def test_sort_by_date_leaves_out_unlikely_hits_if_there_are_likely_ones(fill):
    index = fill({"a.jpg": 6, "b.jpg": 18, "c.jpg": 90}, date={"a.jpg": 1.0, "b.jpg": 2.0, "c.jpg": 3.0})
    banks = banks_over(index, {"sentence": [at(degrees) for degrees in range(45, 85, 5)]}, ["image"] * 3)
    banks.best[:] = np.linspace(0.1, 0.9, 8)[:, None]
    far_from_all = Query(vector=np.eye(WIDTH)[2])

    assert search(index) == "a.jpg b.jpg c.jpg"
    assert search(index, sort="date") == "b.jpg a.jpg"
    assert search(index, sort="date", min_match=0) == "c.jpg b.jpg a.jpg"
    assert search(index, far_from_all, sort="date") == "c.jpg b.jpg a.jpg"


def test_sort_by_path_has_pages_of_one_list(fill, monkeypatch):
    monkeypatch.setattr("onepeace.index.search.POOL", 2)
    index = fill({"d.jpg": 0, "b.jpg": 6, "c.jpg": 12, "a.jpg": 18, "e.jpg": 24})

    def page(top, offset=0):
        return search(index, sort="path", collapse=False, top=top, offset=offset)

    whole = page(top=9)
    assert whole == "b.jpg d.jpg a.jpg c.jpg e.jpg"  # two at once, the best first
    for top in (1, 2, 3):
        assert " ".join(page(top, offset) for offset in range(0, 5, top)) == whole


def test_calls_see_the_latest_state_and_those_inside_reading_one(two):
    with two.reading():
        assert search(two) == "a.jpg b.jpg"
        with closing(Store(two.folder, write=True)) as store, store.transaction():
            store.remove([1])

        assert search(two) == "a.jpg b.jpg"
        assert len(two) == 2
    assert search(two) == "b.jpg"
    assert len(two) == 1


def test_parts_of_a_query_are_one_vector_with_weights(fill):
    index = fill({"a.jpg": 0, "b.jpg": 90})
    query = Query(
        like=["/p/a.jpg", "/p/b.jpg"],
        vector=at(0),
        weights={"like": 2.0},
    )

    with index.reading() as state:
        encoded = vector_of(query, [], state)

    np.testing.assert_allclose(encoded.vector, unit(3 * at(0) + 2 * at(90)), atol=1e-6)
    assert [part.bank for part in encoded.parts] == ["image", "image", "sentence"]
    assert [part.weight for part in encoded.parts] == [2.0, 2.0, 1.0]


def test_copy_of_the_query_has_a_match_of_1(fill):
    index = fill({"a.jpg": 45, "b.jpg": 45})
    banks = banks_over(index, {"image": [at(45), at(0)]}, ["image", "image"])
    banks.best += 1e-3  # unrelated queries that are nearer than the copy itself

    results = index.search(Query(like="/p/a.jpg"))

    assert results[0].score == pytest.approx(1.0)
    assert results[0].match == 1.0
    assert str(results[0]).split()[-1] == "/p/b.jpg"
    assert {"rank", "path", "kind", "modality", "match", "likelihood", "score"} <= {*results.to_dict()["hits"][0]}


@pytest.fixture
def mixed(fill):
    """Twelve pictures, twelve sounds and one text, at random around the query, beside 60 unrelated queries."""
    rng = np.random.default_rng(0)

    def around(closeness):
        return unit([[closeness, *rng.normal(size=WIDTH - 1)]])

    endings = ["jpg"] * 12 + ["ogg"] * 12 + ["txt"]
    files = {f"{'ab'[number % 2]}/{number}.{ending}": around(2.5) for number, ending in enumerate(endings)}
    sizes = {name: number for number, name in enumerate(files)}
    index = fill(files, size=sizes)
    unrelated = np.concatenate([around(1.5) for _ in range(60)])
    banks_over(index, {"sentence": unrelated}, [modality_of(name) for name in files])
    return index


@pytest.mark.parametrize(
    "options",
    [
        {"only": "text"},
        {"where": "size > 9"},
        {"below": "/p/a"},
        {"top": 3, "offset": 4},
        {"min_match": 0.4},
    ],
)
def test_match_depends_on_no_filter_and_no_other_hit(mixed, options):
    every_hit = mixed.search(QUERY, top=25, collapse=False)
    match_by_path = {hit.item.path: hit.match for hit in every_hit}

    results = mixed.search(QUERY, collapse=False, **options)

    assert len(set(match_by_path.values())) > 5
    assert 0 < len(results) < 25
    for hit in results:
        assert hit.match == match_by_path[hit.item.path]


class SoundsMatchBetter:
    """A scale on which a sound has a higher match than a picture of the same z."""

    def __init__(self, *_):
        pass

    def score(self, modality, cosines):
        cosines = cosines.astype(float)
        if modality == "audio":
            return cosines, np.minimum(cosines + 0.2, 1)
        return cosines, cosines

    def are_close(self, _, cosines):
        return cosines > 0.4


def test_order_is_by_likelihood_then_by_match_and_of_weak_ones_by_z(fill, monkeypatch):
    monkeypatch.setattr("onepeace.index.search.Scale", SoundsMatchBetter)
    angles = {"a.jpg": 0.8, "b.jpg": 0.6, "c.ogg": 0.78, "d.ogg": 0.65, "e.ogg": 0.45}
    index = fill({name: float(np.degrees(np.arccos(cosine))) for name, cosine in angles.items()})

    results = index.search(QUERY, collapse=False)

    assert names(results) == "c.ogg d.ogg a.jpg b.jpg e.ogg"
    assert [hit.likelihood for hit in results] == ["likely", "possible", "possible", "weak", "weak"]
    assert [hit.match for hit in results] == pytest.approx([0.98, 0.85, 0.8, 0.6, 0.65])


def test_pictures_are_not_alike_because_sounds_are_likely(fill, monkeypatch):
    monkeypatch.setattr("onepeace.index.search.Scale", SoundsMatchBetter)
    angles = {"a.ogg": 0.8, "b.ogg": 0.78, "c.jpg": 0.6, "d.ogg": 0.45}
    index = fill({name: float(np.degrees(np.arccos(cosine))) for name, cosine in angles.items()})

    found = likelihoods(index, collapse=False)

    assert found == {"a.ogg": "likely", "b.ogg": "likely", "c.jpg": "weak", "d.ogg": "alike"}


@pytest.mark.parametrize("seed", range(2))
def test_pages_of_two_modalities_are_parts_of_one_list(fill, monkeypatch, seed):
    """Files of many windows, near copies and what does not reach the minimum take the places of others that are fetched
    first, of one modality more than of the other."""
    rng = np.random.default_rng(seed)
    shift = {"image": 0.0, "audio": rng.uniform(-0.4, 0.4)}

    class Shifted:
        """A scale that is another one for each modality."""

        def __init__(self, *_):
            pass

        def score(self, modality, cosines):
            z_scores = cosines.astype(float) + shift[modality]
            return z_scores, np.clip(z_scores, 0, 1)

        def are_close(self, modality, cosines):
            return np.zeros(len(cosines), bool)

    monkeypatch.setattr("onepeace.index.search.Scale", Shifted)
    files = {}
    for number in range(60):
        middle = rng.choice([rng.uniform(0, 20), rng.uniform(0, 90)])
        if rng.random() < 0.4:
            files[f"{number}.ogg"] = middle + rng.uniform(0, 5, rng.choice([1, 3, 30]))
        else:
            files[f"{number}.jpg"] = middle
    index = fill(files)

    for collapse in (True, False):
        for min_match in (None, rng.uniform(0.3, 0.9)):
            for top in (1, 4):
                options = {"collapse": collapse, "min_match": min_match}
                whole = names(index.search(QUERY, top=len(files), **options)).split()
                pages = [search(index, top=top, offset=offset, **options) for offset in range(0, len(whole), top)]
                assert " ".join(pages).split() == whole


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ({}, "nothing"),
        ({"text": " "}, "text is ' '"),
        ({"without": "people"}, "nothing"),
        ({"like": ["/p/a.jpg", "/p/b.jpg"]}, "cancel"),
        ({"like": "/p/none.jpg"}, "/p/none.jpg"),
        ({"vector": np.ones(WIDTH + 1)}, r"\(9,\)"),
        ({"text": "a", "weights": {"vector": 2.0}}, "vector"),
        ({"text": "a", "weights": {"text": float("nan")}}, "weight of text"),
    ],
)
def test_query_that_cannot_be_searched_for(fill, query, word):
    index = fill({"a.jpg": 0, "b.jpg": 180})

    with pytest.raises(UserError, match=word):
        index.search(Query(**query))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"only": ["pictur"]}, "picture"),
        ({"sort": "dat"}, "'dat'"),
        ({"top": 2.5}, r"2\.5"),
        ({"min_match": float("nan")}, "nan"),
        ({"where": "widht > 3"}, "width"),
    ],
)
def test_option_that_cannot_be_read(two, options, word):
    with pytest.raises(UserError, match=word):
        two.search(QUERY, **options)


def test_index_of_an_earlier_version_is_refused(tmp_path):
    with sqlite3.connect(tmp_path / "index.sqlite") as connection:
        connection.execute("CREATE TABLE meta (key TEXT, value TEXT)")

    with pytest.raises(UserError, match="tables are not those of this version"):
        Index.open(tmp_path)


def test_index_of_another_format_names_both_and_what_made_it(fill):
    index = fill({"a.jpg": 0})
    with closing(Store(index.folder, write=True)) as store:
        with store.transaction():
            store.meta.update(format_version="9", made_by="onepeace 0.1")
        store.connection.execute("ALTER TABLE files RENAME kind TO modality")

    with pytest.raises(UserError, match=r"made in format 9 by onepeace 0\.1, and .* reads 10; build it again"):
        Index.open(index.folder)
