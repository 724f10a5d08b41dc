"""An index that many threads search at once, beside a writer."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest
from support.indexes import add, fabricate, unit

from onepeace.errors import UserError
from onepeace.index import Index, Item, Query
from onepeace.index.database import Store
from onepeace.index.state import FREE
from onepeace.index.vectors import keep
from onepeace.threads import Computed

WIDTH = 8
FILES = 30
THREADS = 8
QUERIES = [Query(vector=vector) for vector in unit(np.random.default_rng(0).normal(size=(40, WIDTH)))]


def files_of(generation):
    """Files of a generation: their paths and their number tell which it is."""
    vectors = np.random.default_rng(generation).normal(size=(FILES + generation, WIDTH))
    return [(Item(f"/{generation}/{number}", "image", size=generation), row) for number, row in enumerate(vectors)]


def replace_all(folder, generation):
    with closing(Store(folder, write=True)) as store:
        with store.transaction():
            store.remove(store.ids("1"))
            add(store, files_of(generation))
        if generation % 2:  # readers find some generations in the file, and others in the database
            keep(store)


@pytest.fixture
def folder(tmp_path):
    return fabricate(tmp_path / "index", files_of(0))


def in_threads(function: Callable[[int], object], count: int = THREADS) -> list:
    """Results of a function that as many threads call at once."""
    barrier = threading.Barrier(count)

    def run(number):
        barrier.wait()
        return function(number)

    with ThreadPoolExecutor(count) as pool:
        return [*pool.map(run, range(count))]


def test_each_answer_is_of_one_generation(folder):
    is_done = threading.Event()

    def write():
        for generation in range(1, 12):
            replace_all(folder, generation)
        is_done.set()

    def ask(index):
        seen = set()
        while not is_done.is_set() or not seen:
            for number, query in enumerate(QUERIES):
                condition = f"size >= {number % 2}" if number % 3 else None
                results = index.search(query, top=60, where=condition, below="/", collapse=False)
                generations = {hit.item.size for hit in results}
                if not results.compared:  # of generation 0
                    continue
                (generation,) = generations
                assert results.compared == len(results) == FILES + generation
                seen.add(generation)
        return seen

    with Index.open(folder) as index, ThreadPoolExecutor(1) as writer:
        written = writer.submit(write)
        seen = set().union(*in_threads(lambda _: ask(index)))
        written.result()
        assert len(seen) > 1
        assert {hit.item.size for hit in index.search(QUERIES[0])} == {11}


def test_calls_of_one_reading_see_one_generation_in_any_thread(folder):
    with Index.open(folder) as index, index.reading() as state:
        replace_all(folder, 1)
        with ThreadPoolExecutor(1) as pool:
            later = pool.submit(index.stats).result()
            kept = pool.submit(state.stats).result()
        assert kept["files"] == index.stats()["files"] == {"image": FILES}
        assert later["files"] == {"image": FILES + 1}
        assert len({item.size for item in index.items()}) == 1


def test_nothing_is_held_between_calls_and_of_threads_that_are_gone(folder, monkeypatch):
    opened = []
    create = Store.__init__

    def counted(self, *args, **options):
        create(self, *args, **options)
        opened.append(self)

    monkeypatch.setattr(Store, "__init__", counted)
    with Index.open(folder) as index:
        for _ in range(20):
            in_threads(lambda number: index.search(QUERIES[number]), 1)
        assert len(opened) == 1
        assert next(index.items()).size == 0  # and the rest of them is never asked for
        in_threads(lambda number: [index.search(query) for query in QUERIES[:9]], 2 * FREE)
        assert len(index._connections._free) <= FREE

        replace_all(folder, 1)
        with closing(Store(folder, write=True)) as store:
            ((is_held, *_),) = store.select("PRAGMA wal_checkpoint(TRUNCATE)")
        assert not is_held


def test_closed_while_threads_search(folder):
    is_asked = threading.Barrier(THREADS + 1)

    def ask(index):
        is_asked.wait()
        try:
            while True:
                assert len(index.search(QUERIES[0])) == 10
        except UserError as error:
            return str(error)

    with Index.open(folder) as index, ThreadPoolExecutor(THREADS) as pool:
        asked = [pool.submit(ask, index) for _ in range(THREADS)]
        is_asked.wait()
        index.close()
        assert {future.result() for future in asked} == {f"{folder}: the index is closed; open it again"}


def test_value_is_computed_by_the_first_thread_alone_and_an_error_is_not_kept():
    computed = Computed(most=2)
    calls = []

    def compute():
        calls.append(1)
        if len(calls) == 1:
            raise UserError("not yet")
        return "value"

    with pytest.raises(UserError, match="not yet"):
        computed.get("a", compute)
    assert in_threads(lambda _: computed.get("a", compute)) == ["value"] * THREADS
    assert len(calls) == 2
    assert computed.get("b", str) == ""
    assert computed.get("a", compute) == "value"
    assert computed.get("c", str) == ""  # the third: "b" was asked for before "a"
    assert computed.get("a", compute) == "value"
    assert len(calls) == 2
