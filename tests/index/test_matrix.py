"""The matrix of an index: what it finds is what comparing everything finds, whatever state its file is in."""

import shutil
import subprocess
import sys
from contextlib import closing

import numpy as np
import pytest
from support.indexes import fabricate

from onepeace.index import array_files, check, lists
from onepeace.index import matrix as matrix_module
from onepeace.index.database import DATABASE
from onepeace.index.items import Item, Span
from onepeace.index.matrix import Matrix, derived, keep
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


def change(folder, added, removed=()):
    """A commit, of which the matrix does not know yet."""
    vectors = np.array([vector / np.linalg.norm(vector) for _, vector in added], np.float32).reshape(-1, E)
    with closing(Store(folder, write=True)) as store, store.transaction():
        store.remove(removed)
        store.add([(item, [Span(item.modality)]) for item, _ in added], vectors)


def keep_matrix(folder):
    with closing(Store(folder, write=True)) as store:
        keep(store)


def is_mapped(folder):
    with closing(Store(folder)) as store:
        return Matrix(store).mapped is not None


def counted(folder):
    return sum(map(len, best(folder, query(), 5000)[0].values()))


def test_writer_adds_what_is_new_and_leaves_out_what_is_gone(index):
    (before,) = index.glob("*.vectors")
    content = before.read_bytes()
    change(index, files(40, 1))
    change(index, files(9, 2), removed=[1, 2])
    assert not is_mapped(index)
    assert counted(index) == 347
    keep_matrix(index)
    assert is_mapped(index)
    (after,) = index.glob("*.vectors")
    assert (after, after.read_bytes()[: len(content)]) == (before, content)
    assert counted(index) == 347
    found, expected = best(index, query(), 9, lambda matrix: matrix.file % 2 == 0)
    assert found == expected


def test_files_are_written_anew_if_much_is_gone(index):
    change(index, [], removed=range(1, 60))
    keep_matrix(index)
    (path,) = index.glob("*.vectors")
    assert path.stat().st_size == 241 * E * 4
    assert counted(index) == 241


def test_reader_of_an_earlier_state_is_served_by_the_files_of_a_later_one(index):
    with closing(Store(index)) as reader:
        change(index, files(40, 1))
        keep_matrix(index)
        matrix = Matrix(reader)
        assert (matrix.mapped is not None, len(matrix)) == (True, 300)
        change(index, [], removed=[1])
        keep_matrix(index)
        matrix = Matrix(reader)
        assert (matrix.mapped is not None, len(matrix)) == (False, 300)


@pytest.mark.parametrize("place", ["add", "commit", "header"])
def test_killed_writer_leaves_an_earlier_state_or_the_whole_new_one(index, monkeypatch, place):
    change(index, files(40, 1), removed=[1, 2])

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        if place == "header":
            stopped.setattr(array_files, "write_text_atomic", stop)
        else:
            stopped.setattr(array_files.ArrayWriter, place, stop)
        with pytest.raises(KeyboardInterrupt):
            keep_matrix(index)
    assert not is_mapped(index)
    assert counted(index) == 338
    assert check(index).ok
    change(index, files(7, 2), removed=[3])
    keep_matrix(index)
    assert is_mapped(index)
    assert check(index).ok
    assert counted(index) == 344
    found, expected = best(index, query(), 9)
    assert found == expected


@pytest.mark.parametrize("removed", [[], [1, 2]])
def test_files_of_a_database_that_was_replaced_by_its_older_copy_are_written_anew(index, tmp_path, removed):
    shutil.copy(index / DATABASE, tmp_path)
    change(index, files(40, 1), removed)
    keep_matrix(index)
    shutil.copy(tmp_path / DATABASE, index)
    change(index, files(7, 2))
    keep_matrix(index)
    assert is_mapped(index)
    assert counted(index) == 307
    found, expected = best(index, query(), 9)
    assert found == expected
    with closing(Store(index)) as store:
        matrix = Matrix(store)
        assert (store.intact([307])[307][2] == matrix.vectors_of(306)).all()


def test_matrix_of_another_database_is_not_used(index, tmp_path):
    other = fabricate(tmp_path / "other", files(300, 3), id="another")
    for path in derived(other):
        path.unlink()
    for path in derived(index):
        shutil.copy(path, other)
    assert not is_mapped(other)
    keep_matrix(other)
    assert is_mapped(other)
    assert best(other, query(), 9)[0] == best(other, query(), 9)[1]


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("is_small", [True, False])
def test_damaged_file_is_seen_by_check_and_small_ones_are_not_used(index, monkeypatch, number, is_small):
    change(index, [], removed=[1])
    keep_matrix(index)
    paths = derived(index)
    assert [path.suffix for path in paths] == [".gone", ".rows", ".vectors", ".json"]
    monkeypatch.setattr(array_files, "VERIFIED", 1 << 23 if is_small else 0)
    content = paths[number].read_bytes()
    for damaged in (content[:-1], b"", b"x" * len(content), content[:-3] + b"abc"):
        paths[number].write_bytes(damaged)
        assert not check(index).ok
        if is_small or len(damaged) < len(content):
            assert not is_mapped(index)
            assert counted(index) == 299
    paths[number].write_bytes(content)
    assert check(index).ok
    assert is_mapped(index)


def test_large_matrix_is_not_read_when_it_is_opened(index, monkeypatch):
    monkeypatch.setattr(array_files, "VERIFIED", 0)
    read = []
    monkeypatch.setattr(array_files, "_checksum", lambda array: read.append(array) or 0)
    monkeypatch.setattr(matrix_module, "read", lambda store: read.append(store))
    assert is_mapped(index)
    assert not read


@pytest.fixture
def large(tmp_path, monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setattr(matrix_module, "LARGE", 1000)
    return fabricate(tmp_path / "i", files(3000))


def test_lists_name_candidates_that_are_compared_exactly(large):
    with closing(Store(large)) as store:
        assert Matrix(store).inverted_lists is not None
    hits = total = 0
    for seed in range(10):
        found, expected = best(large, query(seed), 10)
        for name, paths in expected.items():
            hits += len({*paths} & {*found[name]})
            total += len(paths)
    assert hits / total > 0.95
    found, expected = best(large, query(), 10, lambda matrix: matrix.file % 2 == 0)
    assert [len(each) for each in found.values()] == [10, 10, 10]


def test_lists_may_be_older_than_the_matrix(large):
    change(large, [(Item("/new", "image"), query())], removed=[2999, 3000])
    before = derived(large)
    keep_matrix(large)
    assert {path for path in derived(large) if path.name.startswith("lists")} < {*before}
    assert best(large, query(), 1)[0]["image"] == ["/new"]
    assert best(large, files(3000)[-1][1].astype(np.float32), 1)[0].keys() == {"image", "audio", "text"}


@pytest.mark.parametrize(("added", "removed"), [(100, 50), (0, 400)])
def test_lists_take_in_what_is_new_and_drop_what_is_gone(large, added, removed):
    change(large, files(added, 1), removed=range(1, removed + 1))
    keep_matrix(large)
    with closing(Store(large)) as store:
        matrix = Matrix(store)
        assert sorted(matrix.inverted_lists.ids) == matrix.id.tolist()
        vectors = matrix.vectors_of(np.searchsorted(matrix.id, matrix.inverted_lists.ids))
        inverted = matrix.inverted_lists
        estimates = (inverted.codes.astype(np.float32) - lists.MIDDLE) * inverted.steps
        np.testing.assert_allclose(estimates, vectors, atol=0.02)


def test_damaged_lists_are_not_used(large):
    for path in large.glob("lists-*"):
        path.write_bytes(b"damaged")
    assert best(large, query(), 10)[0] == best(large, query(), 10)[1]


def test_lists_that_are_cut_short_are_noticed_before_they_are_read(large):
    with closing(Store(large)) as store:
        matrix = Matrix(store)
        assert matrix.is_whole()
        (codes,) = large.glob("lists-*.codes")
        codes.write_bytes(codes.read_bytes()[:-1])
        assert not matrix.is_whole()


OPEN_WHILE_CUT = """
import os, sys
import numpy as np
from onepeace.index import Index, Query
from onepeace.index.matrix import derived
query = Query(vector=np.ones(32))
with Index.open(sys.argv[1]) as index:
    before = [hit.item.path for hit in index.search(query)]
    for path in derived(index.folder):
        os.truncate(path, 0)
        assert [hit.item.path for hit in index.search(query)] == before
"""


def test_files_cut_short_under_a_reader_are_no_bus_error(index):
    done = subprocess.run([sys.executable, "-c", OPEN_WHILE_CUT, str(index)], check=False)
    assert done.returncode == 0
