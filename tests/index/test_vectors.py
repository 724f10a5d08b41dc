"""The matrix of an index: what it finds is what comparing everything finds, whatever state its files are in."""

import os
import shutil
from contextlib import closing
from itertools import combinations

import numpy as np
import pytest
from support.indexes import add, fabricate, unit

from onepeace.index import check, lists, vectors
from onepeace.index.database import DATABASE, Store
from onepeace.index.items import Item
from onepeace.index.vectors import Matrix, derived, keep

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
        rows = store.select("SELECT files.id, path, kind, vector FROM vectors JOIN files ON files.id = file")
    ranked = {}
    for id_, path, modality, vector in rows:
        if id_ in allowed_ids:
            cosine = np.frombuffer(vector, np.float32).astype(np.float64) @ query
            ranked.setdefault(modality, []).append((-cosine, os.fsdecode(path)))
    return {modality: [path for _, path in sorted(pairs)[:count]] for modality, pairs in ranked.items()}


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
    with closing(Store(folder, write=True)) as store, store.transaction():
        store.remove(removed)
        add(store, added)


def keep_matrix(folder):
    with closing(Store(folder, write=True)) as store:
        keep(store)


def is_mapped(folder):
    """Whether all vectors are in the files."""
    with closing(Store(folder)) as store:
        return Matrix(store).is_mapped


def flipped(content):
    """With another bit in one of the vectors."""
    return content[:5000] + bytes([content[5000] ^ 1]) + content[5001:]


def num_found(folder):
    return sum(map(len, nearest(folder, query_of(), 5000).values()))


def test_writer_takes_in_what_is_new_and_leaves_out_what_is_gone(index):
    before = derived(index)
    change(index, files(40, seed=1))
    change(index, files(9, seed=2), removed=[1, 2])
    assert not is_mapped(index)
    assert num_found(index) == 347
    check_nearest(index, query_of(), 9, is_even)

    keep_matrix(index)

    assert is_mapped(index)
    assert len(derived(index)) == 1
    assert not {*derived(index)} & {*before}
    assert num_found(index) == 347
    check_nearest(index, query_of(), 9, is_even)


def test_reader_of_an_earlier_state(index, caplog):
    with closing(Store(index)) as reader, reader.snapshot():
        change(index, files(40, seed=1), removed=[1])
        keep_matrix(index)

        assert len(Matrix(reader)) == 300
        assert not caplog.messages  # nothing is damaged
    assert num_found(index) == 339


def test_database_that_was_replaced_by_its_older_copy(index, tmp_path):
    shutil.copy(index / DATABASE, tmp_path)
    change(index, files(40, seed=1), removed=[1, 2])
    keep_matrix(index)
    shutil.copy(tmp_path / DATABASE, index)
    change(index, files(7, seed=2))

    keep_matrix(index)

    assert is_mapped(index)
    assert num_found(index) == 307
    check_nearest(index, query_of(), 9)


@pytest.mark.parametrize("verified", [1 << 23, 0])
@pytest.mark.parametrize("damage", [lambda content: content[:2000], lambda content: b"", flipped])
def test_damaged_file_is_seen_by_check_and_written_again_by_update(index, monkeypatch, caplog, damage, verified):
    """A large one with a flipped bit is used until then."""
    monkeypatch.setattr(vectors, "VERIFIED", verified)
    (path,) = derived(index)
    path.write_bytes(damage(path.read_bytes()))

    report = check(index)
    assert not report.damaged
    assert report.lost
    assert str(report).endswith(f"write it again: onepeace index update {index}")
    if verified or damage is not flipped:
        assert num_found(index) == 300

    caplog.clear()
    keep_matrix(index)
    assert check(index).ok
    assert caplog.messages == [f"{index}: {path.name} is not what was written; it is written again"]


def test_vectors_that_differ_from_what_was_written_are_seen_by_check(index):
    with closing(Store(index, write=True)) as store, store.transaction():
        store.connection.execute("UPDATE vectors SET modality = 1 - modality WHERE id = 7")

    assert check(index).damaged == ["what it has of /0/6 is not what was written"]


def test_large_matrix_is_not_read_when_it_is_opened(index, monkeypatch):
    monkeypatch.setattr(vectors, "VERIFIED", 0)
    (path,) = derived(index)
    path.write_bytes(flipped(path.read_bytes()))

    assert is_mapped(index)


def test_changed_rows_are_read_as_those_of_one_array():
    rng = np.random.default_rng(0)
    old, added = rng.normal(size=(9, 2)), rng.normal(size=(3, 2))
    kept = np.array([0, 1, 4, 5, 8])
    whole = np.concatenate([old[kept], added])

    changed = vectors._Changed(old, kept, added)

    for first, end in combinations(range(len(whole) + 2), 2):
        np.testing.assert_array_equal(changed[first:end], whole[first:end])
    rows = rng.permutation(len(whole))
    np.testing.assert_array_equal(changed[rows], whole[rows])


@pytest.fixture(scope="module")
def small_lists():
    """Lists that few vectors fill."""
    pytest.importorskip("faiss")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "LARGE", 300)
        patch.setattr(lists, "LISTS", 64)
        patch.setattr(lists, "PROBED", 24)
        yield


@pytest.fixture(scope="module")
def made_large(small_lists, tmp_path_factory):
    return fabricate(tmp_path_factory.mktemp("large") / "index", files(3000))


@pytest.fixture
def large(made_large, tmp_path):
    """An index with inverted lists."""
    return shutil.copytree(made_large, tmp_path / "index")


def recall(folder, mask_of=no_mask):
    """Share of the nearest rows that are found."""
    num_hits = num_wanted = 0
    with closing(Store(folder)) as store:
        matrix = Matrix(store)
        mask = mask_of(matrix)
        is_allowed = np.ones(len(matrix), bool) if mask is None else mask
        for query in map(query_of, range(5)):
            cosines = np.where(is_allowed, matrix.vectors[:] @ query, -2)
            for modality, found in matrix.nearest(query, 10, mask).items():
                is_of_modality = matrix.modality == store.modalities.index(modality)
                nearest_rows = np.argsort(np.where(is_of_modality, -cosines, 2))[:10]
                num_hits += len({*nearest_rows.tolist()} & {*found.rows.tolist()})
                num_wanted += len(nearest_rows)
    return num_hits / num_wanted


def num_listed(folder):
    """Number of vectors in all lists, and of those that the index has."""
    with closing(Store(folder)) as store:
        matrix = Matrix(store)
        present = [lists.num_rows(matrix.id[matrix.rows[code]]) for code, lists in matrix.lists.items()]
        return sum(map(len, matrix.lists.values())), sum(present)


def test_lists_propose_candidates_that_are_compared_exactly(large):
    assert num_listed(large) == (3000, 3000)
    assert recall(large) > 0.95


@pytest.mark.parametrize("is_kept", [False, True])
def test_lists_are_used_on_after_an_update(large, is_kept):
    lists_before = [*large.glob("lists-*")]
    change(large, files(40, seed=1), removed=[1, 2, 700, 1500])
    if is_kept:
        keep_matrix(large)

    assert num_listed(large) == (3000, 2996)
    assert [*large.glob("lists-*")] == lists_before
    assert check(large).ok
    for mask_of in (no_mask, is_even):
        assert recall(large, mask_of) > 0.95


def apart(count, name, modality, seed, centre):
    """Files with vectors on one side of the space, as a model with a gap between modalities makes them."""
    side = 3 * np.random.default_rng(centre).normal(size=WIDTH)
    vectors = side + np.random.default_rng(seed).normal(size=(count, WIDTH))
    return [(Item(f"/{name}/{i}", modality), vector) for i, vector in enumerate(vectors)]


@pytest.mark.parametrize("modality", ["image", "text"])
def test_new_vectors_are_not_all_that_is_found_far_from_the_query(small_lists, tmp_path, modality):
    """Files of another modality, or of another folder that a filter chooses, lie far from the query."""
    folder = fabricate(
        tmp_path / "index",
        [*apart(1000, "near", modality, 1, centre=7), *apart(600, "far", "image", 2, centre=8)],
    )
    change(folder, apart(10, "far/new", "image", 3, centre=8))
    keep_matrix(folder)

    with closing(Store(folder)) as store:
        far = store.ids("path >= X'2F666172' AND path < X'2F666173'")

    def is_far(matrix):
        return np.isin(matrix.file, far)

    query = apart(1, "query", modality, 4, centre=7)[0][1]
    found = nearest(folder, unit(query), 10, is_far)["image"]

    assert len({*found} & {*plain_nearest(folder, unit(query), 10, is_far)["image"]}) >= 9


def test_new_vectors_are_found_before_they_are_in_the_lists(large):
    (item, vector), *_ = files(1, seed=1)
    change(large, [(item, vector)])
    keep_matrix(large)

    assert nearest(large, unit(vector), 1)[item.kind] == [item.path]


def test_lists_are_made_anew_once_they_lack_too_much(large):
    lists_before = [*large.glob("lists-*")]
    change(large, files(100, seed=1), removed=[1])
    keep_matrix(large)

    assert num_listed(large) == (3099, 3099)
    assert [*large.glob("lists-*")] != lists_before


@pytest.mark.parametrize("damage", [lambda content: b"damaged" + content[7:], lambda content: content[:-1]])
def test_damaged_lists_are_not_used_until_update_writes_them_again(large, damage):
    for path in large.glob("lists-*"):
        path.write_bytes(damage(path.read_bytes()))

    assert num_listed(large) == (0, 0)
    check_nearest(large, query_of(), 10)
    assert check(large).lost

    keep_matrix(large)
    assert num_listed(large) == (3000, 3000)
    assert check(large).ok


def test_damage_anywhere_in_the_lists_is_seen_by_check(large):
    path = next(large.glob("lists-*"))
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)

    assert num_listed(large) == (3000, 3000)  # they only propose
    assert check(large).lost == [f"{path.name} is not what was written"]


def test_update_makes_lists_once_faiss_is_installed(large, monkeypatch):
    with monkeypatch.context() as without:
        without.setattr(vectors, "faiss", lambda: None)
        folder = fabricate(large.parent / "other", files(1000))
        assert not [*folder.glob("lists-*")]

    keep_matrix(folder)

    assert [*folder.glob("lists-*")]
