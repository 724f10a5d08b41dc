"""Readers beside a writer, and where nothing can be written: they see one whole state, or are told why not."""

import os
import signal
import threading
from contextlib import closing
from pathlib import Path

import pytest
from support import crash, disk
from support.crash_trials import built_index, damage_database

from onepeace.errors import UserError
from onepeace.index.store import DATABASE, Store
from onepeace.index.vectors import VectorFile


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return built_index(tmp_path_factory.mktemp("index"))


@pytest.fixture
def place(built):
    """An index of twelve texts."""
    built.put_back()
    return built


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    with crash.Worker(disk.compile_shim(tmp_path_factory.mktemp("shim"))) as worker:
        yield worker


def test_reader_keeps_its_state(place):
    before = crash.truth(place.files)
    with closing(Store(place.index)) as store:
        crash.change_texts(place.files)
        crash.run("update", place.index, place.files)
        crash.run("repair", place.index, place.files)  # a compaction
        crash.write_texts(place.files / "more")
        crash.run("build", place.index, place.files)
        assert crash.state_of(store) == before
        assert crash.state(place.index) == crash.truth(place.files)
        assert len(list(place.index.glob("vectors-*"))) == 2
    crash.run("update", place.index, place.files)
    assert len(list(place.index.glob("vectors-*"))) == 1  # nobody reads the old one any more


def test_reader_opens_while_the_index_is_replaced(place, monkeypatch):
    hold, begun = VectorFile.hold, []

    def late(file):
        if not begun:
            begun.append(file)
            damage_database(place)
            crash.run("repair", place.index, place.files)  # another database
            crash.change_texts(place.files)
            crash.run("update", place.index, place.files)
            crash.run("repair", place.index, place.files)  # a compaction
            assert not file.path.exists()
        return hold(file)

    monkeypatch.setattr(VectorFile, "hold", late)
    with closing(Store(place.index)) as store:
        monkeypatch.undo()
        assert crash.state_of(store) == crash.truth(place.files)


@pytest.mark.slow
def test_readers_while_others_write(place, worker):
    stop, seen, wrong = threading.Event(), set(), []
    known = {one[0]: one for one in crash.truth(place.files).values()}

    def read():
        while not stop.is_set():
            try:
                now = crash.state(place.index)
                wrong.extend(said for said in now.values() if said != known[said[0]])
                seen.add(str(sorted(now)))
            except BaseException as error:
                wrong.append(error)
                return

    crash.change_texts(place.files)
    known |= {one[0]: one for one in crash.truth(place.files).values()}
    readers = [threading.Thread(target=read) for _ in range(2)]
    for thread in readers:
        thread.start()
    try:
        for i in range(10):
            (place.files / "moved.txt").rename(place.files / f"moved{i}.txt")
            assert worker.run("update", place.index, place.files).code == 0
            assert worker.run("repair", place.index, place.files).code == 0
            (place.files / f"moved{i}.txt").rename(place.files / "moved.txt")
    finally:
        stop.set()
        for thread in readers:
            thread.join()
    assert not wrong
    assert len(seen) > 1


def test_folder_that_cannot_be_written(place, worker):
    before = crash.summary({path: said[0] for path, said in crash.truth(place.files).items()})

    def read():
        ended = worker.run("read", place.index, place.files, how="read only")
        return ended.marks[0] if ended.code == 0 else ended.said

    assert read() == before
    for path in (f"{place.index / DATABASE}-shm", f"{place.index / DATABASE}-wal"):
        Path(path).unlink(missing_ok=True)  # as on a disk that was written elsewhere
    assert read() == before
    assert not list(place.index.glob("*-shm"))

    crash.change_texts(place.files)
    assert worker.run("update", place.index, place.files, dies=True).code == -signal.SIGKILL
    after = crash.summary({path: said[0] for path, said in crash.truth(place.files).items()})
    assert read() == after  # the file that is shared with a writer is there, and so is its log
    os.remove(f"{place.index / DATABASE}-shm")
    assert "its last writer was stopped" in read()
    assert str(place.index) in read()
    assert crash.state(place.index) == crash.truth(place.files)


def test_second_writer(place, worker):
    number = worker.start("wait", place.index, place.files)
    try:
        worker.hear()
        assert crash.state(place.index) == crash.truth(place.files)
        with pytest.raises(UserError, match="another process is writing to this index"):
            crash.run("update", place.index, place.files)
    finally:
        os.kill(number, signal.SIGKILL)
        worker.wait()
    crash.run("update", place.index, place.files)
