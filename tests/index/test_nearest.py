"""Search structures against plain comparison of everything, on both sides of every size at which something changes."""

import subprocess
import sys
from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onepeace.errors import UserError
from onepeace.index import approximate, exact, lists, nearest, write
from onepeace.index.approximate import Approximate, recall, sums_of_rows
from onepeace.index.derived import Origin
from onepeace.index.exact import Exact, Neighbours, Scored
from onepeace.index.nearest import APPROXIMATE, choose, measure_recall
from onepeace.index.nearest import build as build_structure

resource = pytest.importorskip("resource", reason="needs the limits of POSIX")

EVERY = Origin(0, -1, 1, "", "")


def compare_all(scored, queries, k, allowed=None):
    """What `search` should give: every score in higher precision, a full sort."""
    mask = np.ones(scored.rows, bool) if scored.alive is None else scored.alive.copy()
    if allowed is not None:
        chosen = np.zeros(scored.rows, bool)
        chosen[np.asarray(allowed)] = True
        mask &= chosen
    rows, scores = np.full((len(queries), k), -1), np.full((len(queries), k), -np.inf, np.float32)
    for i, query in enumerate(queries):
        every = scores_of(scored, query, np.arange(scored.rows))
        fit = np.flatnonzero(mask & np.isfinite(every))
        found = fit[np.lexsort((fit, -every[fit]))][:k]
        rows[i, : len(found)], scores[i, : len(found)] = found, every[found]
    return Neighbours(rows, scores)


def scores_of(scored, query, rows):
    with np.errstate(invalid="ignore"):
        scores = (scored.vectors[rows].astype(np.longdouble) * query).sum(axis=1)
        if scored.factor is not None:
            scores = (scores - scored.mean[rows]) * scored.factor[rows]
    return scores.astype(np.float32)


def assert_same(found, expected):
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-6)
    assert found.rows.dtype == np.int64
    assert found.scores.dtype == np.float32


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def clusters(rows, dim=24, seed=0, queries=30):
    """(rows, dim) and (queries, dim) vectors of the same topics."""
    random = np.random.default_rng(seed)
    topics = random.standard_normal((20, dim))
    every = topics[random.integers(20, size=rows + queries)] + 0.6 * random.standard_normal((rows + queries, dim))
    return unit(every[:rows]), unit(every[rows:])


# --- exact ---


@st.composite
def cases(draw):
    """Vectors of a few values, so that many scores are equal, and sizes around every limit of the search."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    k = draw(st.sampled_from([0, 1, 2, 5]))
    rows = draw(st.sampled_from([0, 1, 2, k, k + 1, 3, 4, 5, 7, 8, 9, 16, 17, 40]))
    counts = rows, draw(st.integers(0, 5))
    vectors, queries = (random.choice([-0.5, 0.0, 0.5], (count, 4)).astype(np.float32) for count in counts)
    z = draw(st.booleans())
    mean, factor = (random.choice(values, rows).astype(np.float32) for values in ([0, 0.25], [1, 2, 4]))
    alive = draw(st.sampled_from([None, random.random(rows) < 0.7]))
    scored = Scored(vectors, mean if z else None, factor if z else None, alive)
    mask = random.random(rows) < draw(st.sampled_from([0.1, 0.35, 0.5, 0.9]))
    one = random.integers(rows, size=min(rows, 1))
    allowed = draw(st.sampled_from([None, mask, np.flatnonzero(mask), np.zeros(rows, bool), mask | True, [], one]))
    return scored, queries, k, allowed


@given(cases())
@settings(max_examples=150, deadline=None)
def test_exact_is_exact(case):
    scored, queries, k, allowed = case
    with mock.patch.multiple(exact, PIECE=8, QUERIES=3, GATHERED=3, FEW=1, BLOCK=3):
        found = Exact(scored).search(queries, k, allowed)
    mask = np.asarray(allowed, int) if isinstance(allowed, list) else allowed
    assert_same(found, compare_all(scored, queries, k, mask))


def test_equal_rows_are_equal_wherever_they_are():
    """A product's last bits depend on a row's place in it; the last rows, for one, are computed in another way."""
    vectors, queries = clusters(5001, dim=67)
    copies = np.random.default_rng(0).choice(5001, 300, replace=False)
    vectors[copies] = unit(queries[0] + 0.1 * queries[1])
    found = Exact(Scored(vectors)).search(queries, 40)
    assert_same(found, compare_all(Scored(vectors), queries, 40))
    assert found.rows[0].tolist() == sorted(copies)[:40]
    for dim in (67, 100, 256, 257):
        one, queries = clusters(1, dim)
        for rows in (5, 10, 17, 33):
            same = Exact(Scored(np.repeat(one, rows, axis=0)))
            for count in (1, 2, 3, 30):
                for start in range(0, 31 - count, 3):
                    assert (same.search(queries[start : start + count], 1).rows == 0).all()


def test_all_rows_equal():
    vectors = np.repeat(clusters(1)[0], 70_000, axis=0)
    assert Exact(Scored(vectors)).search(vectors[:1], 5).rows.tolist() == [[0, 1, 2, 3, 4]]


def test_rows_that_are_not_finite_are_not_found():
    vectors, queries = clusters(50)
    vectors[3], vectors[4, 0], vectors[5, 0] = np.nan, np.inf, -np.inf
    found = Exact(Scored(vectors)).search(queries, 50)
    assert not np.isin([3, 4, 5], found.rows).any()
    assert (found.rows[:, 47:] == -1).all()
    assert (found.scores[:, 47:] == -np.inf).all()
    assert np.isfinite(found.scores[:, :47]).all()
    assert (Exact(Scored(vectors)).search(queries, 2).rows >= 0).all()
    factor = np.ones(50, np.float32)
    factor[7] = np.nan
    assert 7 not in Exact(Scored(vectors, np.zeros(50, np.float32), factor)).search(queries, 50).rows


@pytest.mark.parametrize("dim", [24, 31, 32])
def test_folded_products_are_the_scores(dim):
    vectors, queries = clusters(30, dim)
    random = np.random.default_rng(0)
    scored = Scored(vectors, random.normal(0, 0.1, 30).astype(np.float32), random.uniform(5, 15, 30).astype(np.float32))
    folded = scored.folded_queries(queries) @ scored.folded(slice(0, 30)).T
    assert scored.folded_dim == 32 * (dim < 32) or scored.folded_dim == 48
    found = Exact(scored).search(queries, 30)
    np.testing.assert_allclose(np.take_along_axis(folded, found.rows, axis=1), found.scores, atol=1e-5)
    assert_same(found, compare_all(scored, queries, 30))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((1, 5)), 1), r"queries are \(1, 5\), the vectors have 24 dimensions"),
        ((np.zeros(24), 1), r"queries are \(24,\)"),
        ((np.full((1, 24), np.nan), 1), "a query has numbers that are not finite"),
        ((np.zeros((1, 24)), -1), "k is -1"),
        ((np.zeros((1, 24)), 1, np.ones(9, bool)), r"mask of allowed rows has the shape \(9,\) for 10 rows"),
        ((np.zeros((1, 24)), 1, [0, 10]), "allowed rows go from 0 to 10; there are 10"),
        ((np.zeros((1, 24)), 1, [-1]), "allowed rows go from -1 to -1"),
        ((np.zeros((1, 24)), 1, [0.5]), "neither a mask nor row numbers"),
    ],
)
def test_what_no_search_takes(arguments, message):
    with pytest.raises(ValueError, match=message):
        Exact(Scored(clusters(10)[0])).search(*arguments)


def test_what_no_rows_are():
    vectors = clusters(10)[0]
    with pytest.raises(ValueError, match="float64"):
        Scored(vectors.astype(np.float64))
    with pytest.raises(ValueError, match="belong together"):
        Scored(vectors, np.zeros(10, np.float32))
    with pytest.raises(ValueError, match=r"alive has the shape \(9,\) for 10 rows"):
        Scored(vectors, alive=np.ones(9, bool))


# --- approximate ---


@pytest.fixture(params=list(APPROXIMATE))
def kind(request, monkeypatch):
    monkeypatch.setattr(approximate, "SAMPLES", 50)  # so that building is quick
    pytest.importorskip(nearest.MODULES[request.param])
    return APPROXIMATE[request.param]


@pytest.fixture
def always(kind, monkeypatch):
    """The kind, which never compares everything because that would be cheaper."""
    monkeypatch.setattr(kind, "_work", lambda self, k, share: -1 if share else 0)
    return kind


def assert_sound(found, scored, queries, k, allowed=None):
    """All that is certain of a search that is not exact; returns its recall."""
    expected = compare_all(scored, queries, k, allowed)
    assert ((found.rows >= 0) == (expected.rows >= 0)).all()  # as many as there are
    mask = None if allowed is None else np.isin(np.arange(scored.rows), np.arange(scored.rows)[np.asarray(allowed)])
    for query, rows, scores in zip(queries, found.rows, found.scores, strict=True):
        own = rows[rows >= 0]
        exact_scores = scores_of(scored, query, own)
        np.testing.assert_allclose(scores[: len(own)], exact_scores, rtol=1e-6)
        assert (np.lexsort((own, -exact_scores)) == np.arange(len(own))).all()
        assert len(set(own.tolist())) == len(own)
        assert mask is None or mask[own].all()
        assert scored.alive is None or scored.alive[own].all()
    return recall(found, expected)


def z_norm(vectors):
    """Scored with a bank of forty queries."""
    products = vectors @ clusters(0, vectors.shape[1], seed=3)[1].T
    return Scored(vectors, products.mean(axis=1), 1 / products.std(axis=1))


@pytest.mark.parametrize("z", [False, True], ids=["raw", "z-norm"])
def test_finds_nearly_all_whatever_is_allowed(always, z):
    vectors, queries = clusters(3000)
    random = np.random.default_rng(1)
    vectors[1500:] = unit(vectors[1500:] + unit(random.standard_normal(24)))  # of another modality, so to speak
    scored = z_norm(vectors) if z else Scored(vectors)
    structure = always.build(scored)
    filters = {
        "all": None,
        "all by name": np.ones(3000, bool),
        "nearly all": random.random(3000) < 0.98,
        "half": random.random(3000) < 0.5,
        "some": np.flatnonzero(random.random(3000) < 0.1),
        "few": np.flatnonzero(random.random(3000) < 0.05),
        "of the same kind": np.arange(1500),
        "of the other kind": np.arange(1500, 3000),
        "one": [17],
        "none": np.zeros(3000, bool),
    }
    recalls = {}
    for name, allowed in filters.items():
        found = structure.search(queries, 10, allowed)
        recalls[name] = assert_sound(found, scored, queries, 10, allowed)
    assert min(recalls.values()) > 0.96, recalls
    assert recalls["all"] > 0.98, recalls
    assert measure_recall(structure, queries) == pytest.approx(recalls["all"])


@pytest.mark.parametrize("rows", [1, 2, 9, 10, 11, 40])
def test_few_rows(always, rows):
    vectors, queries = clusters(rows, queries=5)
    scored = Scored(vectors)
    structure = always.build(scored)
    for k in (0, 1, 10):
        assert_sound(structure.search(queries, k), scored, queries, k)
        assert_sound(structure.search(queries, k, [0]), scored, queries, k, [0])
    assert structure.search(queries[:0], 10).rows.shape == (0, 10)


def test_many_hits_of_many_queries(always):
    vectors, queries = clusters(2000, queries=70)
    scored = Scored(vectors)
    structure = always.build(scored)
    assert assert_sound(structure.search(queries, 200), scored, queries, 200) > 0.98
    assert_same(structure.search(queries[:2], 2000), compare_all(scored, queries[:2], 2000))


def test_rows_that_came_later_and_rows_that_are_gone(always, tmp_path):
    vectors, queries = clusters(2500)
    always.build(Scored(vectors[:2000])).save(tmp_path / "file")
    built = always.build(Scored(vectors[:2000]))
    alive = np.random.default_rng(0).random(2500) < 0.8
    best = Exact(Scored(vectors)).search(queries, 1).rows[:, 0]
    alive[best] = False
    scored = Scored(vectors, alive=alive)
    structure = always.load(tmp_path / "file", scored, built.facts())
    found = structure.search(queries, 10)
    assert (found.rows >= 2000).any()
    assert not np.isin(found.rows, best).any()
    assert assert_sound(found, scored, queries, 10) > 0.98
    for allowed in (np.arange(2000, 2500), [2499], np.arange(1990, 2010)):
        assert_same(structure.search(queries, 10, allowed), compare_all(scored, queries, 10, allowed))
    none = always.load(tmp_path / "file", Scored(vectors, alive=np.zeros(2500, bool)), built.facts())
    assert (none.search(queries, 10).rows == -1).all()


def test_copies_of_one_row(always):
    vectors, queries = clusters(1000)
    vectors[100:130] = queries[0]
    found = always.build(Scored(vectors)).search(queries, 10)
    assert (found.scores[0] == found.scores[0, 0]).all()
    assert (np.diff(found.rows[0]) > 0).all()


def test_rows_that_are_not_finite_do_no_harm(always):
    vectors, queries = clusters(1000)
    vectors[3], vectors[4, 0] = np.nan, np.inf
    scored = Scored(vectors)
    structure = always.build(scored)
    for k in (10, 1000):
        assert assert_sound(structure.search(queries, k), scored, queries, k) > 0.98


def test_compares_everything_where_that_is_cheaper(kind, monkeypatch):
    vectors, queries = clusters(1000)
    structure = kind.build(Scored(vectors))
    asked = []
    candidates = kind._candidates
    monkeypatch.setattr(kind, "_candidates", lambda *args: asked.append(args) or candidates(*args))
    monkeypatch.setattr(kind, "_work", lambda self, k, share: 500)
    for count in (0, 1, 499, 500, 501, 1000):
        asked.clear()
        allowed = np.arange(count)
        assert assert_sound(structure.search(queries, 10, allowed), Scored(vectors), queries, 10, allowed) > 0.98
        assert bool(asked) == (count > 500)


def test_saved_and_mapped_it_finds_the_same(always, tmp_path):
    vectors, queries = clusters(2000)
    scored = z_norm(vectors)
    built = always.build(scored)
    built.save(tmp_path / "file")
    found = always.load(tmp_path / "file", scored, built.facts())
    for allowed in (None, np.arange(0, 2000, 2)):
        assert_same(found.search(queries, 10, allowed), built.search(queries, 10, allowed))
    with pytest.raises(ValueError, match="built over 24 dimensions with z-norm, not 24 dimensions without"):
        always.load(tmp_path / "file", Scored(vectors), built.facts())


def test_allowed_rows_are_estimated_by_some(monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setattr(lists.FaissLists, "_work", lambda self, k, share: -1)
    vectors, queries = clusters(3000)
    structure = lists.FaissLists.build(Scored(vectors))
    mask = vectors @ vectors[0] > 0
    counted = structure._sums(mask, *structure._some_rows)
    assert counted.sum() == mask.sum()
    monkeypatch.setattr(lists, "COUNTED", 600)
    some = lists.FaissLists(structure.scored, structure.native, 3000, structure.effort)
    estimated = some._sums(mask, *some._some_rows)
    assert len(some._some_rows[0]) == 600
    assert estimated.sum() == pytest.approx(counted.sum(), rel=0.1)
    assert np.corrcoef(estimated, counted)[0, 1] > 0.8
    assert assert_sound(some.search(queries, 10, mask), some.scored, queries, 10, mask) > 0.95


def test_walks_that_find_too_little():
    for name in ("usearch", "faiss-hnsw"):
        pytest.importorskip(nearest.MODULES[name])
        vectors, queries = clusters(9, dim=32)
        structure = APPROXIMATE[name].build(Scored(vectors))
        for count in (1, 3):
            rows = structure._walk(queries[:count], 20, 32)
            assert [sorted(row[row >= 0]) for row in rows] == [list(range(9))] * count


def test_effort_is_what_the_samples_need(always):
    """Queries far from all rows are hard: their neighbours are everywhere."""
    if always.name == "usearch":
        pytest.skip("its graphs differ from build to build, and an unlucky one needs the largest effort")
    vectors, _ = clusters(3000, dim=64)
    scored = Scored(vectors)
    hard = unit(np.random.default_rng(0).standard_normal((100, 64)))
    easy = always.build(scored, samples=vectors[:50])
    assert easy.effort < always.build(scored, samples=hard).effort
    assert sums_of_rows(scored).shape == (approximate.SAMPLES, 64)


def test_recall_counts_rows_of_the_same_score():
    truth = Neighbours(np.array([[1, 2, 3]]), np.array([[0.9, 0.5, 0.5]], np.float32))
    found = Neighbours(np.array([[1, 7, -1]]), np.array([[0.9, 0.5, -np.inf]], np.float32))
    assert recall(found, truth) == pytest.approx(2 / 3)
    nothing = Neighbours(np.array([[-1]]), np.array([[-np.inf]], np.float32))
    assert recall(nothing, nothing) == 1


@contextmanager
def no_file_above(size):
    """What a full disk does to a file that is being written, in the middle of it."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_full_disk_is_noticed_to_the_last_byte(kind, tmp_path):
    structure = kind.build(Scored(clusters(500)[0]))
    structure.save(tmp_path / "whole")
    size = (tmp_path / "whole").stat().st_size
    for room in (0, size // 2, size - 1):
        with no_file_above(room), pytest.raises(OSError, match=r"."):
            structure.save(tmp_path / "cut")


# --- by name, and kept ---


def test_choice_by_size(monkeypatch, caplog):
    limit = nearest.EXACT_UP_TO
    there = {"faiss", "usearch"}
    monkeypatch.setattr(nearest, "find_spec", lambda name: name if name in there else None)
    assert [choose(rows) for rows in (0, 1, limit - 1, limit, limit + 1)] == ["exact"] * 4 + ["faiss-ivf"]
    there.remove("faiss")
    assert choose(limit + 1) == "usearch"
    there.clear()
    caplog.set_level("INFO")
    assert choose(limit + 1) == "exact"
    assert 'pip install "onepeace[index]"' in caplog.text
    assert [choose(1, name) for name in nearest.NEAREST] == list(nearest.NEAREST)
    assert choose(0, "usearch") == "exact"
    with pytest.raises(UserError, match="no search structure is called 'annoy'; known: auto, exact, usearch,"):
        choose(0, "annoy")


def test_a_structure_that_cannot_be_used_is_refused_before_files_are_embedded(no_model, tmp_path, monkeypatch):
    no_model()
    monkeypatch.setitem(sys.modules, "usearch", None)
    (tmp_path / "a.txt").write_text("a")
    for name, message in (("annoy", "no search structure is called 'annoy'"), ("usearch", "needs usearch: pip")):
        with pytest.raises(UserError, match=message):
            write.build(tmp_path / "i", [tmp_path / "a.txt"], nearest=name)
    assert not (tmp_path / "i").exists()


@pytest.mark.parametrize("name", ["auto", *nearest.NEAREST])
@pytest.mark.parametrize("rows", [0, 1, 59, 60, 61])
def test_kept_and_found_again_on_both_sides_of_the_switch(tmp_path, monkeypatch, rows, name):
    for module in ("faiss", "usearch"):
        pytest.importorskip(module)
    monkeypatch.setattr(nearest, "EXACT_UP_TO", 60)
    vectors, queries = clusters(rows)
    scored, origin = Scored(vectors), Origin(0, rows - 1, 1, "", "")
    kept = nearest.keep(tmp_path, scored, origin, name)
    assert kept.name == choose(rows, name)
    again = nearest.find(tmp_path, scored, origin, name)
    assert again.name == kept.name
    assert len(list(tmp_path.glob("*.bin"))) == (kept.name != "exact")
    for structure in (kept, again, build_structure(scored, name)):
        assert_sound(structure.search(queries, 10), scored, queries, 10)


def test_found_whoever_made_it(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(nearest, "EXACT_UP_TO", 60)
    vectors, _ = clusters(100)
    origin = Origin(0, 99, 1, "", "")
    assert nearest.find(tmp_path, Scored(vectors), origin).name == "exact"
    nearest.keep(tmp_path, Scored(vectors), origin, kind.name, key="text")
    assert nearest.find(tmp_path, Scored(vectors), origin).name == "exact"
    assert nearest.find(tmp_path, Scored(vectors), origin, key="text").name == kind.name


def test_kept_until_too_many_rows_came_later(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(nearest, "LATER", 10)
    vectors, queries = clusters(120)
    built = []
    monkeypatch.setattr(kind, "_made", lambda scored, made=kind._made: built.append(scored.rows) or made(scored))
    for rows in (100, 110, 111, 111):
        scored = Scored(vectors[:rows])
        structure = nearest.keep(tmp_path, scored, Origin(0, rows - 1, 1, "", ""), kind.name)
        assert_sound(structure.search(queries, 10), scored, queries, 10)
    assert built == [100, 111]
    old = nearest.find(tmp_path, Scored(vectors), Origin(0, 119, 1, "", ""), kind.name)
    assert isinstance(old, Approximate)
    assert old.covered == 111


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_damaged_file_never_reaches_the_library(tmp_path, kind, monkeypatch, caplog, damage):
    vectors, queries = clusters(300)
    scored, origin = Scored(vectors), Origin(0, 299, 1, "", "")
    nearest.keep(tmp_path, scored, origin, kind.name)
    (path,) = tmp_path.glob("*.bin")
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    path.write_bytes(content[: {"cut": len(content) - 1, "flipped": None, "empty": 0}[damage]])

    def opened(*args, **kwargs):
        raise AssertionError("the library opened it")

    with monkeypatch.context() as patch:
        patch.setattr("faiss.read_index", opened)
        patch.setattr("usearch.index.Index.restore", opened)
        assert nearest.find(tmp_path, scored, origin, kind.name).name == "exact"
        again = nearest.keep(tmp_path, scored, origin, kind.name)
    assert "the library opened it" not in caplog.text
    assert again.name == kind.name
    assert_sound(again.search(queries, 10), scored, queries, 10)
    assert nearest.find(tmp_path, scored, origin, kind.name).name == kind.name
    assert list(tmp_path.glob("*.bin")) != [path]
    assert len(list(tmp_path.glob("*.bin"))) == 1


def test_import_is_light():
    code = "import sys, onepeace.index.nearest as n; print(n.choose(10**6), *{m.split('.')[0] for m in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert loaded[0] in ("faiss-ivf", "usearch", "exact")
    assert not {"torch", "faiss", "usearch", "filelock"} & set(loaded)
