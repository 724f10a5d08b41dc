"""The best vectors by structures against a ranking that sees all; what is kept in the index's folder."""

from dataclasses import replace

import numpy as np
import pytest
from support.two_towers import WIDTH, labelled, pairs, unit

from onepeace.index import candidates as module
from onepeace.index import nearest
from onepeace.index.calibration import FILE, MODALITIES
from onepeace.index.fitting import fit
from onepeace.index.index import Index
from onepeace.index.query import Part
from onepeace.index.ranking import RANKINGS, PartVector, Pool, QueryVector
from onepeace.index.search import Filter
from onepeace.index.store import Item, Span, Store

ABOUT = {"model": "two towers", "model_hash": "two towers", "preprocessing": "1"}
ITEMS = 150


@pytest.fixture(scope="module")
def calibration():
    return fit(labelled(), prior=0.01, model="two towers", about={}).calibration


@pytest.fixture
def folder(tmp_path, calibration):
    """An index of pictures and sounds, of which each tenth was removed."""
    store = Store.create(tmp_path / "i", WIDTH, ABOUT)
    add(store, "image", 7)
    add(store, "audio", 8)
    store.remove(range(1, 2 * ITEMS, 10))
    store.close()
    calibration.save(tmp_path / "i" / FILE)
    return tmp_path / "i"


def add(store, modality, seed):
    vectors = pairs(modality, ITEMS, seed)[1]
    store.add([(Item(f"/p/{seed}-{i}", modality), [Span(modality)]) for i in range(ITEMS)], vectors)


def add_more(folder):
    store = Store(folder, write=True)
    add(store, "audio", 9)
    store.close()


def a_query(*parts, seed=0):
    vectors = unit(np.random.default_rng(seed).normal(size=(len(parts), WIDTH)))
    return QueryVector.of([PartVector(key, vector, w) for (key, w), vector in zip(parts, vectors, strict=True)])


def of_all(index, query, rank, allowed=None):
    """(places, z) of the best by a ranking that sees all."""
    rows = index.rows
    places = np.arange(len(rows.row)) if allowed is None else np.flatnonzero(allowed)
    vectors = rows.vectors[rows.row[places]]
    pool = Pool.of(vectors, rows.modality[places], index.calibration)
    z = RANKINGS[rank](query, vectors @ query.vector, pool)
    order = np.argsort(-z, kind="stable")
    return places[order], z[order]


QUERIES = {
    "one text": a_query(("text", 1.0)),
    "two sounds": a_query(("audio", 1.0), ("audio", -0.4)),
    "more away than towards": a_query(("text", 0.4), ("text", -1.0)),
    "a mix": a_query(("text", 1.0), ("image", 0.7)),
}


@pytest.mark.parametrize("rank", RANKINGS)
@pytest.mark.parametrize("name", QUERIES)
def test_best_are_those_of_a_ranking_that_sees_all(folder, name, rank):
    with Index.open(folder) as index:
        allowed = np.arange(len(index.rows.row)) % 3 > 0
        for mask in (None, allowed):
            got = index.candidates.best(QUERIES[name], rank, mask)(20)
            places, z = of_all(index, QUERIES[name], rank, mask)
            assert got.z == pytest.approx(z[:20], abs=1e-4)
            assert got.places.tolist() == places[:20].tolist()
            assert got.match.shape == (20,)
            fitted = {key for key, _ in QUERIES[name].weights} == {"text"}  # no pair has a sound on its left
            assert np.isfinite(got.match).all() == fitted


@pytest.mark.parametrize("structure", [name for name in nearest.NEAREST if name != "exact"])
def test_kept_structure_serves_queries_and_what_came_later(folder, structure):
    pytest.importorskip(nearest.MODULES[structure])
    with Index.open(folder) as index:
        index.candidates.keep(structure)
    add_more(folder)
    with Index.open(folder) as index:
        assert index.candidates.nearest("text", structure).name == structure
        got = index.candidates.best(QUERIES["one text"], "znorm", None, structure)(20)
        places, z = of_all(index, QUERIES["one text"], "znorm")
        assert len(set(got.places) & set(places[:20])) >= 18
        assert (got.places >= len(index.rows.row) - ITEMS).any()
        known = dict(zip(places.tolist(), z.tolist(), strict=True))
        assert got.z == pytest.approx([known[place] for place in got.places.tolist()], abs=1e-4)


def test_statistics_are_computed_once_for_each_row(folder, monkeypatch):
    computed = []

    def counted(query, vectors, *rest):
        computed.append(len(vectors))
        return real(query, vectors, *rest)

    real = module.statistics_of
    monkeypatch.setattr(module, "statistics_of", counted)
    monkeypatch.setattr(nearest, "LATER", 100)
    kept = 2 * ITEMS - len(range(1, 2 * ITEMS, 10))
    with Index.open(folder) as index:
        index.candidates.keep()
    assert computed == [kept] * len(MODALITIES)
    computed.clear()
    with Index.open(folder) as index:
        index.candidates.best(QUERIES["one text"], "znorm")(20)
    assert computed == []
    add_more(folder)
    with Index.open(folder) as index:
        got = index.candidates.best(QUERIES["one text"], "znorm")(20)
        assert got.places.tolist() == of_all(index, QUERIES["one text"], "znorm")[0][:20].tolist()
    assert computed == [ITEMS]


@pytest.mark.parametrize("change", ["calibration", "compaction", "damage"])
def test_what_was_kept_of_another_state_is_not_used(folder, calibration, change, monkeypatch):
    monkeypatch.setattr(nearest, "LATER", 100)
    with Index.open(folder) as index:
        index.candidates.keep()
    if change == "calibration":
        others = {key: replace(bank, mean=-bank.mean) for key, bank in calibration.banks.items()}
        replace(calibration, banks=others).save(folder / FILE)
    elif change == "compaction":
        store = Store(folder, write=True)
        store.compact()
        store.close()
    else:
        for path in (folder / "derived").glob("*.bin"):
            path.write_bytes(path.read_bytes()[:-1] + b"?")
    with Index.open(folder) as index:
        got = index.candidates.best(QUERIES["one text"], "znorm")(20)
        places, z = of_all(index, QUERIES["one text"], "znorm")
    assert got.places.tolist() == places[:20].tolist()
    assert got.z == pytest.approx(z[:20], abs=1e-4)


def test_few_vectors_have_nothing_kept(folder):
    with Index.open(folder) as index:
        index.candidates.keep()
    assert not (folder / "derived").exists()


def test_hits_are_the_same_with_and_without_a_structure(folder):
    pytest.importorskip("faiss")
    part = Part("vector", unit(np.random.default_rng(3).normal(size=WIDTH)))
    with Index.open(folder) as index:
        want = index.search([part], only=["audio"], nearest="exact")
        index.candidates.keep("faiss-ivf")
    with Index.open(folder) as index:
        got = index.search([part], only=["audio"], nearest="faiss-ivf")
    assert [hit.item.path for hit in got.hits] == [hit.item.path for hit in want.hits]
    assert len(want.hits) == 10
    assert want.compared == got.compared == ITEMS - ITEMS // 10


def test_match_goes_by_files_and_not_by_their_vectors(folder, tmp_path, calibration):
    part = Part("vector", unit(np.random.default_rng(3).normal(size=WIDTH)))
    matches = []
    for windows in (1, ITEMS):
        store = Store.create(tmp_path / f"{windows}", WIDTH, ABOUT)
        store.add([(Item("/p/a.jpg", "image"), [Span("image")])], pairs("image", 1, 7)[1])
        store.add([(Item("/p/long.ogg", "audio"), [Span("audio")] * windows)], pairs("audio", ITEMS, 8)[1][:windows])
        store.close()
        calibration.save(tmp_path / f"{windows}" / FILE)
        with Index.open(tmp_path / f"{windows}") as index:
            matches += [hit.match for hit in index.search([part], only="image").hits]
    assert matches[0] == pytest.approx(matches[1])


def test_hits_of_unknown_match_are_kept_when_sorted_by_date(folder, calibration):
    fits = {pair: own for pair, own in calibration.platt.items() if pair != ("text", "audio")}
    replace(calibration, platt=fits).save(folder / FILE)
    part = Part("vector", unit(np.random.default_rng(3).normal(size=WIDTH)))
    with Index.open(folder) as index:
        hits = index.search([part], sort="date", min_match=1.0, top=2 * ITEMS).hits
    assert {(hit.modality, hit.match) for hit in hits} == {("audio", None)}


def test_filters_count_files_and_leave_out_those_of_the_query(folder):
    with Index.open(folder) as index:
        filters = index._filters
        assert filters.allowed(Filter()) is None
        assert filters.count(None) == len(index)
        audio = filters.allowed(Filter(("audio",)))
        assert filters.count(audio) == audio.sum() == ITEMS - ITEMS // 10
        own = filters.allowed(Filter(("audio",), exclude=frozenset({"/p/8-1", "/p/7-1", "/p/none"})))
        assert own.sum() == audio.sum() - 1
        assert filters.allowed(Filter(("audio",))).sum() == audio.sum()
        assert filters.allowed(Filter(exclude=frozenset({"/p/none"}))) is None
