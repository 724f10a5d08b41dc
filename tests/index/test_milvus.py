"""An index whose vectors are in Milvus Lite too: the same hits as without, after every verb and every stop."""

import logging
import shutil
from contextlib import closing

import numpy as np
import pytest
import soundfile
from support.broken_files import write_broken, write_good
from support.two_towers import WIDTH, labelled, pairs, unit

from onepeace.cli import main
from onepeace.errors import UsageError, UserError
from onepeace.index import milvus
from onepeace.index.calibration import FILE
from onepeace.index.fitting import fit
from onepeace.index.index import Index
from onepeace.index.milvus import Mirror, mirrored, place_of
from onepeace.index.query import Part
from onepeace.index.store import Item, Span, Store
from onepeace.index.write import remove

pytest.importorskip("milvus_lite", reason='needs Milvus Lite: pip install "onepeace[milvus]"')

from pymilvus.exceptions import MilvusException

NOBODY = "milvus://127.0.0.1:1"
"""Where no Milvus answers."""


@pytest.fixture
def place(tmp_path):
    return str(tmp_path / "vectors.db")


@pytest.fixture
def files(tmp_path, samples):
    """Thirty pictures, sounds and texts, one sound of many windows, and broken files."""
    for i, path in enumerate(write_good(tmp_path / "files", samples, 30)):
        if path.suffix == ".txt":
            path.write_text(f"{i} words")  # short enough that no two are one text for the model
    write_broken(tmp_path / "files" / "broken", samples)
    soundfile.write(tmp_path / "files" / "long.wav", np.random.default_rng(0).normal(0, 0.1, 16000 * 9), 16000)
    return tmp_path / "files"


@pytest.fixture(autouse=True)
def asked(monkeypatch):
    """Collections are small here, and are asked all the same: gives how many rows each question was about."""
    monkeypatch.setattr(milvus, "FEW", 0)
    monkeypatch.setattr(milvus, "FEWEST", 3)
    monkeypatch.setattr(milvus, "CANDIDATES", 1)
    limits = []
    nearest = Mirror.nearest

    def counted(self, query, codes, limit):
        limits.append(limit)
        return nearest(self, query, codes, limit)

    monkeypatch.setattr(Mirror, "nearest", counted)
    return limits


def compared(index, **options):
    """Hits of a few queries, with Milvus and without."""
    rng = np.random.default_rng(3)
    queries = [[Part("vector", rng.normal(size=index.embed_dim), modality="text")] for _ in range(6)]
    queries.append([Part("vector", rng.normal(size=index.embed_dim), 0.7), *queries[0]])
    found = []
    for query in queries:
        found.append(
            [(hit.item.path, hit.start, round(hit.z, 5), hit.copies) for hit in index.search(query, **options).hits]
        )
    return found


FILTERS = [
    {},
    {"top": 200},
    {"top": 1},
    {"top": 1, "path_glob": "**/part 1/*"},
    {"duplicates": "show", "top": 3, "offset": 4},
    {"only": ("audio",)},
    {"only": ("image", "text"), "top": 40},
    {"where": "width >= 300 or duration > 4"},
    {"path_glob": "**/part 1/*", "sort": "path"},
    {"where": "width > 100000"},
]


def check_same(folder, lacks=0):
    """Milvus and the vectors in the index lead to the same hits, and it has all vectors but those that it `lacks`."""
    with Index.open(folder) as index:
        assert index.mirror is not None
        mirrored_hits = [compared(index, **options) for options in FILTERS]
        rows = index.mirror._count()
        index._close_mirror()
        index.__dict__["mirror"] = None
        assert mirrored_hits == [compared(index, **options) for options in FILTERS]
        assert any(mirrored_hits[0])
        assert rows == len(index.rows.row) - lacks


def test_hits_are_the_same_after_every_verb(build, update, files, place, tmp_path, asked):
    index = tmp_path / "index"
    build(index, files, store=place)
    check_same(index)
    assert asked
    remove(index, [files / "part 2"])
    check_same(index)
    texts = sorted((files / "part 1").glob("*.txt"))
    texts[0].write_text("other words")
    (files / "long.wav").unlink()
    (files / "new.txt").write_text("new words")
    update(index)
    check_same(index)
    build(index, files / "part 2")
    check_same(index)
    assert main(["index", "repair", "--index", str(index)]) == 0  # gives rows other numbers
    check_same(index)
    with closing(Store(index)) as store, closing(Mirror(store)) as mirror:
        assert mirror._client.list_collections() == [mirror.collection]
    build(index, files, store="local")
    with Index.open(index) as opened:
        assert opened.mirror is None


def test_an_index_gets_its_collection_later(build, files, place, tmp_path):
    build(tmp_path / "index", files)
    build(tmp_path / "index", files, store=place)
    check_same(tmp_path / "index")


@pytest.mark.parametrize("rank", ["znorm", "raw", "per-modality"])
def test_rankings_are_the_same(tmp_path, place, rank, asked, monkeypatch):
    monkeypatch.setattr(milvus, "FEWEST", 100)
    store = Store.create(
        tmp_path / "index", WIDTH, {"model": "two towers", "model_hash": "two towers", "preprocessing": "1"}
    )
    for modality, seed in (("image", 7), ("audio", 8)):
        items = [(Item(f"/p/{seed}-{i}", modality), [Span(modality)]) for i in range(400)]
        store.add(items, pairs(modality, 400, seed)[1])
    milvus.choose_store(store, place)
    with mirrored(store):
        pass
    store.close()
    fit(labelled(), prior=0.01, model="two towers", about={}).calibration.save(tmp_path / "index" / FILE)
    with Index.open(tmp_path / "index") as index:
        queries = [[Part("vector", vector)] for vector in unit(pairs("image", 30, 9)[0])]
        with_milvus = [index.search(query, rank=rank, top=5).hits for query in queries]
        index._close_mirror()
        index.__dict__["mirror"] = None
        for query, found in zip(queries, with_milvus, strict=True):
            expected = index.search(query, rank=rank, top=5).hits
            assert [hit.item.path for hit in found] == [hit.item.path for hit in expected]
            np.testing.assert_allclose([hit.match for hit in found], [hit.match for hit in expected], atol=1e-5)
    assert max(asked) < 400


@pytest.mark.parametrize("after", [0, 1])
def test_what_a_crash_leaves_undone_is_done_by_the_next_command(build, files, place, tmp_path, monkeypatch, after):
    index = tmp_path / "index"
    build(index, files / "part 0", store=place)
    monkeypatch.setattr("onepeace.index.build.BATCH_VECTORS", 4)
    append, calls = Mirror.append, []

    def killed(self):
        if len(calls) == after:
            raise KeyboardInterrupt  # behind the write to SQLite
        calls.append(self)
        append(self)

    monkeypatch.setattr(Mirror, "append", killed)
    with pytest.raises(KeyboardInterrupt):
        build(index, files / "part 1")
    monkeypatch.setattr(Mirror, "append", append)
    with Index.open(index) as opened:
        lacks = len(opened.rows.row) - opened.mirror._count()
    assert lacks > 0
    check_same(index, lacks)
    remove(index, [files / "part 0"])
    check_same(index)


def test_a_collection_that_has_lost_vectors_is_not_asked_and_is_repaired(
    build, update, files, place, tmp_path, caplog, capsys
):
    index = tmp_path / "index"
    build(index, files, store=place)
    with Index.open(index) as opened:
        before = compared(opened)
        opened.mirror._client.delete(opened.mirror.collection, filter="row in [3, 4]")
    with caplog.at_level(logging.WARNING), Index.open(index) as opened:
        assert opened.mirror is None
        assert compared(opened) == before
    assert (
        f"{place}: 2 vectors are missing there: run onepeace index repair; the vectors are compared here" in caplog.text
    )
    assert main(["index", "verify", "--index", str(index)]) == 1
    assert f"{place}: 2 vectors are missing there" in capsys.readouterr().err
    assert main(["index", "repair", "--index", str(index)]) == 0
    assert main(["index", "verify", "--index", str(index)]) == 0
    check_same(index)
    shutil.rmtree(place)
    update(index)
    check_same(index)


def test_without_an_answer_queries_go_on_and_writing_says_so(build, files, tmp_path, caplog):
    index = tmp_path / "index"
    build(index, files / "part 0")
    with closing(Store(index, write=True)) as store, store.transaction() as connection:
        about = {milvus.STORE: NOBODY, milvus.COLLECTION: "onepeace_0"}
        connection.executemany("INSERT INTO meta VALUES (?, ?)", about.items())
    with pytest.raises(UserError, match=r"^milvus://127.0.0.1:1: Milvus does not answer \([^\n]*\)$"):
        build(index, files / "part 1")
    with caplog.at_level(logging.WARNING), Index.open(index) as opened:
        assert opened.mirror is None
        assert any(compared(opened))
    assert "milvus://127.0.0.1:1: Milvus does not answer" in caplog.text


def test_place_that_does_not_answer_is_not_kept(build, update, files, tmp_path):
    index = tmp_path / "index"
    build(index, files / "part 0")
    with pytest.raises(UserError, match=r"^milvus://127.0.0.1:1: Milvus does not answer \([^\n]*\)$"):
        build(index, files / "part 1", store=NOBODY)
    update(index)
    with Index.open(index) as opened:
        assert opened.mirror is None
        assert milvus.STORE not in opened.store.meta


def test_an_answer_that_fails_to_come_is_no_end(build, files, place, tmp_path, caplog):
    build(tmp_path / "index", files / "part 0", store=place)
    with caplog.at_level(logging.WARNING), Index.open(tmp_path / "index") as opened:
        before = compared(opened)
        assert caplog.text.count("compared here") == 0
        opened.mirror._client.drop_collection(opened.mirror.collection)
        assert compared(opened) == before
    assert f"{place}: Milvus does not answer" in caplog.text


def test_collection_that_cannot_be_counted_is_closed_and_queries_go_on(
    build, files, place, tmp_path, monkeypatch, caplog
):
    build(tmp_path / "index", files / "part 0", store=place)
    closed = []

    def fail(self):
        raise MilvusException(message="gone")

    def close(self):
        closed.append(self.place)
        return real(self)

    real = Mirror.close
    monkeypatch.setattr(Mirror, "_count", fail)
    monkeypatch.setattr(Mirror, "close", close)
    with caplog.at_level(logging.WARNING), Index.open(tmp_path / "index") as opened:
        assert opened.mirror is None
        assert any(compared(opened))
    assert f"{place}: Milvus does not answer (gone); the vectors are compared here" in caplog.text
    assert closed == [place]


def test_places():
    assert place_of("local") == "local"
    assert place_of("milvus://host") == "milvus://host:19530"
    assert place_of("milvus://10.0.0.1:99") == "milvus://10.0.0.1:99"
    assert place_of("/x/../y.db") == "/y.db"
    for wrong in ("http://host", "milvus://", "milvus://host/x", "milvus://user@host", "vectors", "s3://x.db"):
        with pytest.raises(UsageError, match="vectors are kept in local, milvus://HOST"):
            place_of(wrong)
