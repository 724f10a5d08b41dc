"""The matrix of an index: what it finds is what comparing everything finds, whatever state its file is in."""

import shutil
from contextlib import closing

import numpy as np
import pytest
from support.indexes import fabricate, unit
from support.python_process import run_python

from onepeace.index import array_files, check, lists
from onepeace.index import matrix as matrix_module
from onepeace.index.database import DATABASE
from onepeace.index.items import Item, Span
from onepeace.index.matrix import Matrix, derived, keep
from onepeace.index.store import Store

WIDTH = 32
MODALITIES = ("image", "audio", "text")


def files(count, seed=0):
    """Vectors around fifty middles, as those of pictures and sounds lie."""
    rng = np.random.default_rng(seed)
    middles = 1.5 * np.random.default_rng(0).normal(size=(50, WIDTH))
    vectors = middles[rng.integers(50, size=count)] + rng.normal(size=(count, WIDTH))
    return [(Item(f"/{seed}/{i}", MODALITIES[i % 3]), vector) for i, vector in enumerate(vectors)]


@pytest.fixture
def index(tmp_path):
    return fabricate(tmp_path / "index", files(300))


def query_of(seed=5):
    return unit(np.random.default_rng(seed).normal(size=WIDTH))


def no_mask(matrix):
    return None


def is_even(matrix):
    return matrix.file % 2 == 0


def nearest(folder, query, count, mask_of=no_mask):
    """Paths of the nearest files as the matrix finds them, by modality."""
    with closing(Store(folder)) as store:
        paths = {item.id: item.path for item in store.items()}
        matrix = Matrix(store)
        candidates = matrix.nearest(query, count, mask_of(matrix))
        paths_by_modality = {}
        for modality, nearest_rows in candidates.items():
            paths_by_modality[modality] = [paths[id_] for id_ in matrix.file[nearest_rows.rows]]
    return paths_by_modality


def plain_nearest(folder, query, count, mask_of=no_mask):
    """The same by comparing everything that the database has."""
    with closing(Store(folder)) as store:
        matrix = Matrix(store)
        allowed_ids = {*matrix.file[mask_of(matrix)].ravel().tolist()}
        items = [item for item in store.items() if item.id in allowed_ids]
        contents = store.intact([item.id for item in items])
    ranked = {}
    for item in items:
        _, _, vectors = contents[item.id]
        cosine = float(vectors[0].astype(np.float64) @ query)
        ranked.setdefault(item.modality, []).append((-cosine, item.path))
    nearest_by_modality = {}
    for modality, pairs in ranked.items():
        nearest_by_modality[modality] = [path for _, path in sorted(pairs)[:count]]
    return nearest_by_modality


def check_nearest(folder, query, count, mask_of=no_mask):
    assert nearest(folder, query, count, mask_of) == plain_nearest(folder, query, count, mask_of)


@pytest.mark.parametrize("share", [None, 0.9, 0.1, 0.0])
@pytest.mark.parametrize("count", [1, 7, 500])
def test_nearest_of_each_modality(index, share, count):
    def mask_of(matrix):
        if share is None:
            return None
        return np.random.default_rng(1).random(len(matrix)) < share

    check_nearest(index, query_of(), count, mask_of)


def change(folder, added, removed=()):
    """A commit, of which the matrix does not know yet."""
    vectors = unit([vector for _, vector in added]).reshape(-1, WIDTH)
    items = [(item, [Span(item.modality)]) for item, _ in added]
    with closing(Store(folder, write=True)) as store, store.transaction():
        store.remove(removed)
        store.add(items, vectors)


def keep_matrix(folder):
    with closing(Store(folder, write=True)) as store:
        keep(store)


def is_mapped(folder):
    with closing(Store(folder)) as store:
        return Matrix(store).mapped is not None


def num_found(folder):
    return sum(map(len, nearest(folder, query_of(), 5000).values()))


def test_writer_adds_what_is_new_and_leaves_out_what_is_gone(index):
    (path,) = index.glob("*.vectors")
    content = path.read_bytes()
    change(index, files(40, seed=1))
    change(index, files(9, seed=2), removed=[1, 2])
    assert not is_mapped(index)
    assert num_found(index) == 347

    keep_matrix(index)

    assert is_mapped(index)
    assert [*index.glob("*.vectors")] == [path]
    assert path.read_bytes().startswith(content)
    assert num_found(index) == 347
    check_nearest(index, query_of(), 9, is_even)


def test_writer_begins_anew_if_much_is_gone(index):
    change(index, [], removed=range(1, 60))

    keep_matrix(index)

    (path,) = index.glob("*.vectors")
    assert path.stat().st_size == 241 * WIDTH * 4
    assert num_found(index) == 241


def test_reader_of_an_earlier_state(index):
    """A reader may use the matrix files of a later state as long as all its rows are in them."""
    with closing(Store(index)) as reader:
        change(index, files(40, seed=1))
        keep_matrix(index)
        matrix = Matrix(reader)
        assert len(matrix) == 300
        assert matrix.mapped is not None

        change(index, [], removed=[1])
        keep_matrix(index)
        matrix = Matrix(reader)
        assert len(matrix) == 300
        assert matrix.mapped is None


@pytest.mark.parametrize(
    ("owner", "function"),
    [(array_files.ArrayWriter, "add"), (array_files.ArrayWriter, "commit"), (array_files, "write_text_atomic")],
)
def test_killed_writer_leaves_an_earlier_state_or_the_whole_new_one(index, monkeypatch, owner, function):
    def stop(*_):
        raise KeyboardInterrupt

    change(index, files(40, seed=1), removed=[1, 2])
    with monkeypatch.context() as stopped:
        stopped.setattr(owner, function, stop)
        with pytest.raises(KeyboardInterrupt):
            keep_matrix(index)
    assert not is_mapped(index)
    assert num_found(index) == 338
    assert check(index).ok

    change(index, files(7, seed=2), removed=[3])
    keep_matrix(index)

    assert is_mapped(index)
    assert num_found(index) == 344
    assert check(index).ok
    check_nearest(index, query_of(), 9)


@pytest.mark.parametrize("removed", [[], [1, 2]])
def test_database_that_was_replaced_by_its_older_copy(index, tmp_path, removed):
    shutil.copy(index / DATABASE, tmp_path)
    change(index, files(40, seed=1), removed)
    keep_matrix(index)
    shutil.copy(tmp_path / DATABASE, index)
    change(index, files(7, seed=2))

    keep_matrix(index)

    assert is_mapped(index)
    assert num_found(index) == 307
    check_nearest(index, query_of(), 9)
    with closing(Store(index)) as store:
        _, _, vectors = store.intact([307])[307]
        assert (Matrix(store).vectors_of(306) == vectors).all()


def test_matrix_of_another_database_is_not_used(index, tmp_path):
    other = fabricate(tmp_path / "other", files(300, seed=3), id="another")
    for path in derived(other):
        path.unlink()
    for path in derived(index):
        shutil.copy(path, other)
    assert not is_mapped(other)

    keep_matrix(other)

    assert is_mapped(other)
    check_nearest(other, query_of(), 9)


@pytest.mark.parametrize("number", range(4), ids=["gone", "rows", "vectors", "json"])
@pytest.mark.parametrize("is_small", [True, False])
def test_damaged_file_is_seen_by_check_and_small_ones_are_not_used(index, monkeypatch, number, is_small):
    change(index, [], removed=[1])
    keep_matrix(index)
    path = derived(index)[number]
    content = path.read_bytes()
    monkeypatch.setattr(array_files, "VERIFIED", 1 << 23 if is_small else 0)

    cut = content[:-1]
    overwritten = b"x" * len(content)
    other_end = content[:-3] + b"abc"
    for damaged in (cut, b"", overwritten, other_end):
        path.write_bytes(damaged)
        assert not check(index).ok
        if is_small or len(damaged) < len(content):
            assert not is_mapped(index)
            assert num_found(index) == 299

    path.write_bytes(content)
    assert check(index).ok
    assert is_mapped(index)


def test_large_matrix_is_not_read_when_it_is_opened(index, monkeypatch):
    read = []
    monkeypatch.setattr(array_files, "VERIFIED", 0)
    monkeypatch.setattr(array_files, "_checksum", lambda array: read.append(array) or 0)
    monkeypatch.setattr(matrix_module, "read", read.append)

    assert is_mapped(index)
    assert not read


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


def test_open_index_survives_that_its_files_are_cut(index):
    """Reading beyond the end of a mapped file would be a bus error, which ends the process."""
    run_python(OPEN_WHILE_CUT, index)


@pytest.fixture
def large(tmp_path, monkeypatch):
    """An index with inverted lists."""
    pytest.importorskip("faiss")
    monkeypatch.setattr(matrix_module, "LARGE", 1000)
    return fabricate(tmp_path / "index", files(3000))


def test_lists_name_candidates_that_are_compared_exactly(large):
    with closing(Store(large)) as store:
        assert Matrix(store).inverted_lists is not None
    num_hits = 0
    for seed in range(5):
        candidates = nearest(large, query_of(seed), 10)
        for modality, paths in plain_nearest(large, query_of(seed), 10).items():
            num_hits += len({*paths} & {*candidates[modality]})

    assert num_hits / (5 * 10 * len(MODALITIES)) > 0.95


def test_lists_name_enough_candidates_with_a_filter(large):
    candidates = nearest(large, query_of(), 10, is_even)

    assert [len(paths) for paths in candidates.values()] == [10, 10, 10]


def test_lists_may_be_older_than_the_matrix(large):
    removed = files(3000)[-1][1].astype(np.float32)
    paths_before = derived(large)
    change(large, [(Item("/new", "image"), query_of())], removed=[2999, 3000])

    keep_matrix(large)

    assert {path for path in derived(large) if path.name.startswith("lists")} < {*paths_before}
    assert nearest(large, query_of(), 1)["image"] == ["/new"]
    assert nearest(large, removed, 1).keys() == {*MODALITIES}


@pytest.mark.parametrize(
    ("num_added", "num_removed"),
    [
        (100, 50),
        (0, 400),
    ],
)
def test_lists_take_in_what_is_new_and_drop_what_is_gone(large, num_added, num_removed):
    change(large, files(num_added, seed=1), removed=range(1, num_removed + 1))

    keep_matrix(large)

    with closing(Store(large)) as store:
        matrix = Matrix(store)
        inverted = matrix.inverted_lists
        vectors = matrix.vectors_of(np.searchsorted(matrix.id, inverted.ids))
    estimates = (inverted.codes.astype(np.float32) - lists.MIDDLE) * inverted.steps
    assert sorted(inverted.ids) == matrix.id.tolist()
    np.testing.assert_allclose(estimates, vectors, atol=0.02)


def test_damaged_lists_are_not_used(large):
    for path in large.glob("lists-*"):
        path.write_bytes(b"damaged")

    check_nearest(large, query_of(), 10)


def test_lists_that_are_cut_short_are_noticed_before_they_are_read(large):
    with closing(Store(large)) as store:
        matrix = Matrix(store)
        assert matrix.is_whole()
        (codes,) = large.glob("lists-*.codes")
        codes.write_bytes(codes.read_bytes()[:-1])

        assert not matrix.is_whole()
