"""An index whose vectors are in Milvus Lite too: the same hits as without, after every change and every stop."""

import logging
from contextlib import closing

import numpy as np
import pytest
from support.indexes import add, fabricate, put, unit

from onepeace.errors import UsageError, UserError
from onepeace.index import Index, Item, Query, build, remove, update, vectors
from onepeace.index.database import Store
from onepeace.index.search import VECTORS_PER_HIT
from onepeace.index.vectors import Matrix

pytest.importorskip("milvus_lite", reason='needs Milvus Lite: pip install "onepeace[milvus]"')

from onepeace.plugins import milvus

WIDTH = 16
TOP = 2
LITE = "milvus://vectors.db"
"""A file in the folder of the index."""
NO_SERVER = "milvus://127.0.0.1:1"
RANDOM = np.random.default_rng(0)


def unit_vectors(count):
    return unit(RANDOM.normal(size=(count, WIDTH)))


QUERIES = unit_vectors(5)


def make_items(first, count):
    items = []
    for number in range(first, first + count):
        modality = ("image", "audio", "text")[number % 3]
        items.append(Item(f"/p/{number}", modality, size=number))
    return items


def write_index(folder, store, count):
    files = list(zip(make_items(0, count), unit_vectors(count), strict=True))
    return fabricate(folder, files, store=store, id="1")


def send(folder):
    with closing(Store(folder)) as store:
        with closing(milvus.open_store(LITE, store, Matrix(store))) as collection:
            collection.send()


def search_all(folder, *, use_milvus):
    """(path, score) of the hits of each query."""
    hits_by_query = []
    with Index.open(folder) as index:
        if not use_milvus:
            put(index, "vector database", None)
        for vector in QUERIES:
            for conditions in ({}, {"where": "size >= 20", "only": "image"}):
                hits = index.search(Query(vector=vector), top=TOP, **conditions)
                hits_by_query.append([(hit.item.path, hit.score) for hit in hits])
    return hits_by_query


@pytest.fixture
def check_hits(caplog):
    """Hits with Milvus are those without; without a ``warning``, it was asked. Gives the paths of the hits."""

    def run(folder, warning=""):
        with caplog.at_level(logging.WARNING):
            hits_by_query = search_all(folder, use_milvus=True)
        assert hits_by_query == search_all(folder, use_milvus=False)
        assert warning in caplog.text
        assert bool(warning) == bool(caplog.text)
        caplog.clear()
        return {path for hits in hits_by_query for path, _ in hits}

    return run


@pytest.fixture(autouse=True)
def fewest_candidates(monkeypatch):
    """Milvus is asked for as many candidates as are wanted; ten times as many would be all vectors of a modality."""
    monkeypatch.setattr(vectors, "CANDIDATES", 1)


@pytest.fixture
def candidate_counts(monkeypatch):
    """The number of candidates that Milvus gave for each query; None where it did not answer."""
    counts = []
    real_candidates = milvus.Collection.candidates

    def candidates(self, query, count, code):
        ids = real_candidates(self, query, count, code)
        counts.append(None if ids is None else len(ids))
        return ids

    monkeypatch.setattr(milvus.Collection, "candidates", candidates)
    return counts


@pytest.fixture
def folder(tmp_path):
    """An index of 90 files that are in Milvus."""
    folder = write_index(tmp_path / "index", LITE, 90)
    send(folder)
    return folder


def test_hits_after_a_change(folder, candidate_counts, check_hits):
    check_hits(folder)
    assert set(candidate_counts) == {TOP * VECTORS_PER_HIT}

    with Index.open(folder) as index:
        removed = [item.id for item in index.items()][:20]
    added = make_items(100, 20)  # as many as are removed
    with closing(Store(folder, write=True)) as store, store.transaction():
        store.remove(removed)
        add(store, zip(added, unit_vectors(20), strict=True))
    paths = check_hits(folder, warning=LITE)  # as after a crash
    assert not paths.isdisjoint(item.path for item in added)

    send(folder)
    assert check_hits(folder) == paths


def test_no_answer_warns_queries_and_fails_sending(tmp_path, monkeypatch, check_hits):
    monkeypatch.setattr(milvus, "TIMEOUT", 1.0)
    folder = write_index(tmp_path / "index", NO_SERVER, 30)

    assert check_hits(folder, warning=NO_SERVER)

    with Index.open(folder) as index, pytest.raises(UserError, match=f"^{NO_SERVER}: "):
        with index.reading() as state:
            milvus.open_store(NO_SERVER, state.store, state.matrix).send()


@pytest.fixture
def text_folder(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number}.txt").write_text(f"{number} words")
    return folder


def test_commands_keep_the_collection_up_to_date(random_folder, text_folder, tmp_path, candidate_counts):
    from milvus_lite.server_manager import server_manager_instance
    from pymilvus import MilvusClient

    index = tmp_path / "index"
    build(index, [text_folder], random_folder, device="cpu", store=LITE, progress=False)
    remove(index, [text_folder / "3.txt"])
    (text_folder / "5.txt").write_text("other words")
    update(index, device="cpu", progress=False)

    with Index.open(index) as opened:
        opened.search(Query(vector=QUERIES[0]), top=1)
        assert len(opened) == 11
    assert None not in candidate_counts
    address = str(index / "vectors.db")
    with closing(MilvusClient(address)) as client:
        (name,) = client.list_collections()
        assert client.query(name, output_fields=["count(*)"])[0]["count(*)"] == 11
    server_manager_instance.release_server(address)


@pytest.mark.parametrize(
    ("address", "error"),
    [
        (NO_SERVER, UserError),
        ("nobody://host", UsageError),
    ],
)
def test_wrong_address_is_refused_and_not_kept(address, error, random_folder, text_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(milvus, "TIMEOUT", 1.0)
    index = tmp_path / "index"
    build(index, [text_folder / "0.txt"], random_folder, device="cpu", progress=False)

    with pytest.raises(error, match=address.partition(":")[0]):
        build(index, [text_folder], random_folder, device="cpu", store=address, progress=False)

    with Index.open(index) as opened:
        assert len(opened) == 1
        with opened.reading() as state:
            assert state.vector_database is None
