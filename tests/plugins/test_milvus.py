"""An index whose vectors are in Milvus Lite too: the same hits as without, after every change and every stop."""

import logging
import shutil
import sqlite3
from contextlib import closing

import numpy as np
import pytest
from support.indexes import fabricate

from onepeace.errors import UsageError, UserError
from onepeace.index import Index, Item, Query, build, matrix, remove, update
from onepeace.index.database import DATABASE
from onepeace.index.items import Span
from onepeace.index.matrix import Matrix
from onepeace.index.store import Store
from onepeace.index.verify import check

pytest.importorskip("milvus_lite", reason='needs Milvus Lite: pip install "onepeace[milvus]"')

from onepeace.plugins import milvus
from onepeace.plugins.milvus import open_store

WIDTH = 16
LITE, NOBODY = "milvus://vectors.db", "milvus://127.0.0.1:1"
"""A file in the folder of the index, and where no Milvus answers."""
RANDOM = np.random.default_rng(0)
QUERIES = RANDOM.normal(size=(5, WIDTH)).astype(np.float32)


def items(first, count):
    kinds = ("image", "audio", "text")
    return [(Item(f"/p/{i}", kinds[i % 3], size=i), RANDOM.normal(size=WIDTH)) for i in range(first, first + count)]


@pytest.fixture
def folder(tmp_path):
    """An index of 90 files that are in Milvus."""
    made = fabricate(tmp_path / "index", items(0, 90), store=LITE, id="1")
    send(made)
    return made


def send(folder):
    store = Store(folder)
    collection = open_store(LITE, store, Matrix(store))
    collection.send()
    collection.close()
    store.close()


def hits(folder, caplog, warning=""):
    """What Milvus helps to find is what is found without it; gives the paths."""
    found = []
    for is_helped in (True, False):
        with Index.open(folder) as index, caplog.at_level(logging.WARNING):
            if not is_helped:
                index.service = None
            some = [index.search(Query(vector=query), top=2) for query in QUERIES]
            some += [index.search(Query(vector=query), top=2, where="size >= 20", only="image") for query in QUERIES]
        found.append([[(hit.item.path, hit.score) for hit in results] for results in some])
    assert found[0] == found[1]
    assert warning in caplog.text
    assert bool(warning) == bool(caplog.text)
    caplog.clear()
    return {path for results in found[0] for path, _ in results}


@pytest.fixture(autouse=True)
def named(monkeypatch):
    """Milvus is asked also for few vectors; gives how many it named in each case, None for no answer."""
    counts = []
    real = milvus.Collection.candidates

    def candidates(self, query, count, code):
        found = real(self, query, count, code)
        counts.append(None if found is None else len(found))
        return found

    monkeypatch.setattr(milvus.Collection, "candidates", candidates)
    monkeypatch.setattr(matrix, "CANDIDATES", 1)
    return counts


def test_hits_are_the_same_after_every_change(folder, named, caplog):
    hits(folder, caplog)
    assert {*named} == {8}
    with Index.open(folder) as index:
        gone = [item.id for item in index.items()][:30]
    with_new = Store(folder, write=True)
    with with_new.transaction():
        with_new.remove(gone)
        new = items(100, 20)
        vectors = np.array([vector for _, vector in new], np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        with_new.add([(item, [Span(item.modality)]) for item, _ in new], vectors)
    with_new.close()
    paths = hits(folder, caplog, LITE)  # as after a crash
    assert any(path in paths for path in (f"/p/{i}" for i in range(100, 120)))
    send(folder)
    assert hits(folder, caplog) == paths


def test_what_is_missing_there_is_said_and_sent_again(folder, caplog):
    store = Store(folder)
    collection = open_store(LITE, store, Matrix(store))
    with collection._answering() as client:
        client.delete(collection._name, filter="id in [3, 4]")
    collection.close()
    before = hits(folder, caplog, LITE)
    send(folder)
    assert hits(folder, caplog) == before
    shutil.rmtree(folder / "vectors.db")
    hits(folder, caplog, LITE)
    send(folder)
    assert hits(folder, caplog) == before


def test_a_number_that_is_given_again_after_a_repair_has_its_new_vector(folder, caplog):
    with closing(sqlite3.connect(folder / DATABASE)) as database, database:
        database.execute("UPDATE vectors SET crc = 0 WHERE id = (SELECT max(id) FROM vectors)")
    assert check(folder, repair=True).lost == 1
    store, vector = Store(folder, write=True), RANDOM.normal(size=(1, WIDTH)).astype(np.float32)
    vector /= np.linalg.norm(vector)
    with store.transaction():
        store.add([(Item("/p/new", "text", size=99), [Span("text")])], vector)
    store.close()
    send(folder)
    with Index.open(folder) as index:
        assert index.search(Query(vector=vector[0]), top=1)[0].item.path == "/p/new"
    hits(folder, caplog)


def test_without_an_answer_queries_go_on_and_sending_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(milvus, "TIMEOUT", 1.0)
    folder = fabricate(tmp_path / "index", items(0, 30), store=NOBODY, id="1")
    assert hits(folder, caplog, f"{NOBODY}: Milvus does not answer")
    with Index.open(folder) as index, pytest.raises(UserError, match=f"^{NOBODY}: "):
        open_store(NOBODY, index.store, index.matrix).send()


def test_commands_keep_the_collection_up_to_date(random_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(milvus, "TIMEOUT", 1.0)
    texts, index = tmp_path / "texts", tmp_path / "index"
    texts.mkdir()
    for i in range(12):
        (texts / f"{i}.txt").write_text(f"{i} words")
    build(index, [texts / "0.txt"], str(random_folder), device="cpu", progress=False)
    for wrong, error in ((NOBODY, UserError), ("milvus://", UsageError), ("nobody://host", UsageError)):
        with pytest.raises(error, match=wrong.partition(":")[0]):
            build(index, [texts], str(random_folder), device="cpu", store=wrong, progress=False)
        with Index.open(index) as opened:
            assert (len(opened), opened.service) == (1, None)  # a wrong place is not kept
    build(index, [texts], str(random_folder), device="cpu", store=LITE, progress=False)
    remove(index, [texts / "3.txt"])
    (texts / "5.txt").write_text("other words")
    update(index, device="cpu", progress=False)
    with Index.open(index) as opened:
        assert opened.service is not None
        collection = open_store(LITE, opened.store, opened.matrix)
        with collection._answering() as client:
            collection._check(client)
        assert len(opened) == 11
        collection.close()
