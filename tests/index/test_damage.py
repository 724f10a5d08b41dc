"""Damage at each place of an index that has a way of its own to fail: `check` sees it, a repair costs little."""

import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from support.crash import answers, prepare, run
from support.indexes import fabricate
from support.python_process import run_python

from onepeace.cli import main
from onepeace.errors import UserError
from onepeace.index import check
from onepeace.index.database import DATABASE, PAGE, SIDE_FILES
from onepeace.index.items import Item, Span
from onepeace.index.matrix import derived, remove_derived
from onepeace.index.roots import Root, keep_roots
from onepeace.index.store import Store


@pytest.fixture
def index(tmp_path):
    """An index of texts."""
    folder, files = prepare(tmp_path, "update")
    run("update", folder, files)
    return folder


@pytest.fixture
def expected(index):
    """The answers of the index."""
    return answers(index)


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("word", [b"format_version", b"embed_dim", b"none", b"modalities"])
def test_metadata_is_repaired_from_its_second_copy(index, expected, word):
    database = (index / DATABASE).read_bytes()
    assert database.count(word) >= 2
    flip(index / DATABASE, database.index(word) + 1)

    assert not check(index).ok
    assert check(index, repair=True).lost == 0
    assert check(index).ok
    assert answers(index) == expected


def test_second_copy_of_the_metadata_is_checked(index, expected):
    position = (index / DATABASE).read_bytes().rindex(b"format_version")
    flip(index / DATABASE, position)

    assert answers(index) == expected
    assert not check(index).ok
    check(index, repair=True)
    assert check(index).ok


def test_metadata_without_an_intact_copy(index):
    database = (index / DATABASE).read_bytes()
    flip(index / DATABASE, database.index(b"format_version"))
    flip(index / DATABASE, database.rindex(b"format_version"))

    assert not check(index).ok
    with pytest.raises(UserError, match="metadata"):
        check(index, repair=True)


def test_metadata_without_a_second_copy_is_intact_and_gets_one(index):
    with closing(Store(index, write=True)) as store:
        store.connection.execute("DROP TABLE spare")
    assert check(index).ok

    with closing(Store(index, write=True)) as store:
        with store.transaction():
            store.meta["scored"] = ""
        assert store.select("SELECT count(*) FROM spare") == [(1,)]


def test_repair_writes_a_matrix_that_is_missing(index, expected):
    remove_derived(index)

    assert check(index, repair=True).ok
    assert derived(index)
    assert answers(index) == expected


@pytest.mark.parametrize("num_pages", [1, 3, 5])
@pytest.mark.parametrize("num_bytes", [1, 5000, PAGE - 1])
def test_database_that_was_cut_within_a_page_is_repaired(index, num_pages, num_bytes):
    path = index / DATABASE
    path.write_bytes(path.read_bytes()[: num_pages * PAGE + num_bytes])

    assert not check(index).ok
    if num_pages > 1:  # the first pages have the metadata
        assert check(index, repair=True).repaired
        assert check(index).ok


def add_picture(store, name):
    with store.transaction():
        store.add([(Item(name, "image"), [Span("image")])], np.array([[0, 1]], np.float32))


@pytest.fixture
def small(tmp_path):
    """An index of one picture."""
    return fabricate(tmp_path / "small", [(Item("/0.jpg", "image"), [1, 0])])


@pytest.fixture
def killed(small, tmp_path):
    """An index as a writer leaves it that is killed after three transactions: the last two are in its log."""
    with closing(Store(small, write=True)) as store, store.transaction():
        keep_roots(store, [Root("/pictures", "folder")])
    with closing(Store(small, write=True)) as store:
        add_picture(store, "/1.jpg")
        add_picture(store, "/2.jpg")
        shutil.copytree(small, tmp_path / "killed")
    (tmp_path / "killed" / f"{DATABASE}-shm").unlink()
    return tmp_path / "killed"


def test_log_of_a_killed_writer_is_no_damage(killed):
    assert check(killed).ok
    with closing(Store(killed)) as store:
        assert store.count() == 3


@pytest.mark.parametrize("position", [2, 17, 25, 32, 40, 70, 32 + 24 + PAGE + 30])
def test_log_of_a_killed_writer_that_is_damaged(killed, position, capsys):
    flip(killed / f"{DATABASE}-wal", position)

    with closing(Store(killed)) as store:
        assert store.count() < 3
    assert not check(killed).ok
    assert main(["index", "check", str(killed), "--repair"]) == 0
    assert "onepeace index update" in capsys.readouterr().out
    assert check(killed).ok


def test_log_whose_end_a_killed_writer_did_not_finish_is_no_damage(killed):
    path = killed / f"{DATABASE}-wal"
    log = path.read_bytes()
    first_frame_head = log[32 : 32 + 24]

    path.write_bytes(log[: -PAGE - 24] + first_frame_head + bytes(100))

    assert check(killed).ok


def test_log_that_a_writer_begins_anew_is_no_damage(small):
    with closing(Store(small, write=True)) as store:
        for number in (1, 2, 3):
            add_picture(store, f"/{number}.jpg")
            if number == 2:
                store.connection.execute("PRAGMA wal_checkpoint(RESTART)")

        assert check(small).ok


READ_ON_A_FULL_DISK = """
import resource, signal, sys
from onepeace.index import check
from support.crash import answers
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
for _ in range(2):
    assert check(Path(sys.argv[1])).ok
    assert answers(Path(sys.argv[1]))
"""


def test_index_is_read_on_a_full_disk(index):
    """SQLite then leaves the beginning of the memory that it shares with a writer, which is no log."""
    for ending in SIDE_FILES:
        Path(f"{index / DATABASE}{ending}").unlink(missing_ok=True)

    run_python(READ_ON_A_FULL_DISK, index, cwd=Path(__file__).parents[1])


OPEN_WHILE_CUT = """
import os, sys
from onepeace.index import Index
from onepeace.index.database import DATABASE
with Index.open(sys.argv[1]) as index:
    for size in (0, 100):
        os.truncate(f"{index.folder / DATABASE}-shm", size)
        index.refresh()
        assert len(index) and next(index.items())
"""


def test_open_index_survives_that_its_shared_memory_is_cut(index):
    """Reading beyond the end of a mapped file would be a bus error, which ends the process."""
    run_python(OPEN_WHILE_CUT, index)
