"""The matrix of an index: what it finds is what comparing everything finds, whatever state its file is in."""

from contextlib import closing

import numpy as np
import pytest
from support.indexes import fabricate

from onepeace.index import nearest
from onepeace.index.nearest import LISTS, MATRIX, Matrix
from onepeace.index.store import MODALITIES, Item, Span, Store

E = 32


def files(count, seed=0):
    """Vectors around fifty middles, as those of pictures and sounds lie."""
    rng = np.random.default_rng(seed)
    middles = 1.5 * np.random.default_rng(0).normal(size=(50, E))
    vectors = middles[rng.integers(50, size=count)] + rng.normal(size=(count, E))
    return [(Item(f"/{seed}/{i}", MODALITIES[i % 3]), vector) for i, vector in enumerate(vectors)]


@pytest.fixture
def index(tmp_path):
    return fabricate(tmp_path / "i", files(300))


def best(folder, query, count, allowed=None):
    """(modality, path) of the best, with the matrix and by comparing everything."""
    with closing(Store(folder)) as store:
        matrix = Matrix(store)
        paths = {item.id: item.path for item in store.items()}
        found = matrix.nearest(query, count, None if allowed is None else allowed(matrix))
        mask = np.ones(len(matrix), bool) if allowed is None else allowed(matrix)
        cosines = matrix.vectors.astype(np.float64) @ query
        expected = {}
        for code, name in enumerate(MODALITIES):
            own = np.flatnonzero(mask & (matrix.modality == code))
            if len(own):
                expected[name] = [paths[matrix.file[row]] for row in own[np.argsort(-cosines[own])][:count]]
        return {name: [paths[matrix.file[row]] for row in each.rows] for name, each in found.items()}, expected


def query(seed=5):
    vector = np.random.default_rng(seed).normal(size=E)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


@pytest.mark.parametrize("share", [None, 0.9, 0.1, 0.0])
@pytest.mark.parametrize("count", [1, 7, 500])
def test_the_nearest_of_each_kind_are_found(index, share, count):
    mask = None if share is None else lambda matrix: np.random.default_rng(1).random(len(matrix)) < share
    found, expected = best(index, query(), count, mask)
    assert found == expected


def test_a_writer_appends_and_makes_anew_after_removals(index):
    def add(seed):
        some = files(40, seed)
        vectors = np.array([vector / np.linalg.norm(vector) for _, vector in some], np.float32)
        with closing(Store(index, write=True)) as store:
            with store.transaction():
                store.add([(item, [Span(item.modality)]) for item, _ in some], vectors)
            nearest.keep(store)

    before = (index / MATRIX).read_bytes()
    add(1)
    assert (index / MATRIX).read_bytes()[nearest.HEADER :].startswith(before[nearest.HEADER :])
    with closing(Store(index)) as store:
        assert Matrix(store).is_mapped
        assert len(Matrix(store)) == 340
    with closing(Store(index, write=True)) as store:
        with store.transaction():
            store.remove([1, 2])
        nearest.keep(store)
        assert len(Matrix(store)) == 338
    add(2)
    found, expected = best(index, query(), 9)
    assert found == expected


def test_matrix_of_another_state_or_damaged_is_not_used(index, caplog):
    stale = (index / MATRIX).read_bytes()
    with closing(Store(index, write=True)) as store, store.transaction():
        store.remove([1])
    for content in (stale, stale[:-1], stale[:100], b"", b"x" * 5000):
        (index / MATRIX).write_bytes(content)
        found, expected = best(index, query(), 9)
        assert found == expected
        assert sum(map(len, best(index, query(), 500)[0].values())) == 299
    with closing(Store(index, write=True)) as store:
        nearest.keep(store)
    content = bytearray((index / MATRIX).read_bytes())
    content[-3] ^= 1
    (index / MATRIX).write_bytes(content)
    found, expected = best(index, query(), 9)
    assert found == expected
    assert "not what was written" in caplog.text


def test_lists_name_candidates_that_are_compared_exactly(tmp_path, monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setattr(nearest, "LARGE", 1000)
    folder = fabricate(tmp_path / "i", files(3000))
    assert (folder / LISTS).is_file()
    with closing(Store(folder)) as store:
        assert Matrix(store)._lists is not None
    hits = total = 0
    for seed in range(10):
        found, expected = best(folder, query(seed), 10)
        for name, paths in expected.items():
            hits += len({*paths} & {*found[name]})
            total += len(paths)
    assert hits / total > 0.95
    found, expected = best(folder, query(), 10, lambda matrix: matrix.file % 2 == 0)
    assert [len(each) for each in found.values()] == [10, 10, 10]
    with closing(Store(folder, write=True)) as store:  # newer vectors are all compared
        with store.transaction():
            store.add([(Item("/new", "image"), [Span("image")])], query()[None])
        nearest.keep(store)
    assert best(folder, query(), 1)[0]["image"] == ["/new"]
    (folder / LISTS).write_bytes(b"damaged")
    assert best(folder, query(), 10)[0] == best(folder, query(), 10)[1]
