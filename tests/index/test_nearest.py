"""The matrix of an index: what it finds is what comparing everything finds, whatever state its file is in."""

from contextlib import closing

import numpy as np
import pytest
from support.indexes import fabricate

from onepeace.index import nearest
from onepeace.index.items import Item, Span
from onepeace.index.nearest import LISTS, Matrix, derived
from onepeace.index.store import Store

E = 32


def files(count, seed=0):
    """Vectors around fifty middles, as those of pictures and sounds lie."""
    rng = np.random.default_rng(seed)
    middles = 1.5 * np.random.default_rng(0).normal(size=(50, E))
    vectors = middles[rng.integers(50, size=count)] + rng.normal(size=(count, E))
    return [(Item(f"/{seed}/{i}", ("image", "audio", "text")[i % 3]), vector) for i, vector in enumerate(vectors)]


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
        for code, name in enumerate(store.kinds):
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


def test_a_writer_makes_the_matrix_of_each_state_anew(index):
    with closing(Store(index, write=True)) as store:
        for removed, some in (([], files(40, 1)), ([1, 2], files(40, 2))):
            vectors = np.array([vector / np.linalg.norm(vector) for _, vector in some], np.float32)
            with store.transaction():
                store.remove(removed)
                store.add([(item, [Span(item.modality)]) for item, _ in some], vectors)
            assert Matrix(store).path is None
            nearest.keep(store)
            assert Matrix(store).path is not None
            assert len(derived(index)) == 1
    found, expected = best(index, query(), 9)
    assert found == expected
    assert sum(map(len, best(index, query(), 500)[0].values())) == 378


def test_matrix_of_another_state_or_damaged_is_not_used(index, caplog):

    with closing(Store(index, write=True)) as store, store.transaction():
        store.remove([1])
    assert sum(map(len, best(index, query(), 500)[0].values())) == 299
    with closing(Store(index, write=True)) as store:
        nearest.keep(store)
    (matrix,) = derived(index)
    content = matrix.read_bytes()
    size = len(content) // 299
    for damaged in (content[:-1], content[:-size], content[size:], b"", b"x" * 5000, content[:-3] + b"abc"):
        matrix.write_bytes(damaged)
        found, expected = best(index, query(), 9)
        assert found == expected
        assert sum(map(len, best(index, query(), 500)[0].values())) == 299
    assert "not what was written" in caplog.text


def test_lists_name_candidates_that_are_compared_exactly(tmp_path, monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setattr(nearest, "LARGE", 1000)
    folder = fabricate(tmp_path / "i", files(3000))
    (lists,) = folder.glob(f"{LISTS}-*")
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
    with closing(Store(folder, write=True)) as store:  # the newest is gone, which the lists do not know
        with store.transaction():
            store.remove([3000, 3001])
        nearest.keep(store)
    assert best(folder, files(3000)[-1][1].astype(np.float32), 1)[0].keys() == {"image", "audio", "text"}
    (lists,) = folder.glob(f"{LISTS}-*")
    lists.write_bytes(b"damaged")
    assert best(folder, query(), 10)[0] == best(folder, query(), 10)[1]
