"""Damage at each place of an index that has a way of its own to fail: `check` sees it, a repair costs little."""

import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from support.crash import answers, prepare, run
from support.indexes import fabricate

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
    """An index of texts, and what it answers."""
    folder, files = prepare(tmp_path, "update")
    run("update", folder, files)
    return folder, answers(folder)


def flip(path, place, bit=0):
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize("word", [b"format_version", b"embed_dim", b"none", b"modalities"])
def test_metadata_is_repaired_from_its_second_copy(index, word):
    folder, right = index
    content = (folder / DATABASE).read_bytes()
    assert content.count(word) >= 2
    flip(folder / DATABASE, content.index(word) + 1)
    assert not check(folder).ok
    assert check(folder, repair=True).lost == 0
    assert check(folder).ok
    assert answers(folder) == right


def test_repair_of_an_intact_index_writes_a_matrix_that_is_missing(index):
    folder, right = index
    remove_derived(folder)
    assert check(folder, repair=True).ok
    assert derived(folder)
    assert answers(folder) == right


def test_second_copy_of_the_metadata_is_checked_too(index):
    folder, right = index
    content = (folder / DATABASE).read_bytes()
    flip(folder / DATABASE, content.rindex(b"format_version"))
    flip(folder / DATABASE, content.index(b"format_version"))
    assert not check(folder).ok
    with pytest.raises(UserError, match="metadata is missing"):
        check(folder, repair=True)
    flip(folder / DATABASE, content.index(b"format_version"))
    assert answers(folder) == right
    assert not check(folder).ok
    check(folder, repair=True)
    assert check(folder).ok


def test_index_without_a_second_copy_is_intact_and_gets_one(index):
    folder, _ = index
    with closing(Store(folder, write=True)) as store:
        store.connection.execute("DROP TABLE spare")
    assert check(folder).ok
    with closing(Store(folder, write=True)) as store:
        with store.transaction():
            store.meta["scored"] = ""
        assert store.select("SELECT count(*) FROM spare") == [(1,)]


@pytest.mark.parametrize("pages", [1, 3, 5])
@pytest.mark.parametrize("rest", [1, 5000, PAGE - 1])
def test_database_that_was_cut_within_a_page_is_repaired(index, pages, rest):
    folder, _ = index
    path = folder / DATABASE
    path.write_bytes(path.read_bytes()[: pages * PAGE + rest])
    assert not check(folder).ok
    if pages > 1:  # the first pages have the metadata
        report = check(folder, repair=True)
        assert report.repaired
        assert check(folder).ok


@pytest.fixture
def killed(tmp_path):
    """An index as a writer leaves it that is killed after three transactions: the last two are in its log."""
    folder = fabricate(tmp_path / "whole", [(Item("/0.jpg", "image"), [1, 0])])
    with closing(Store(folder, write=True)) as store, store.transaction():
        keep_roots(store, [Root("/pictures", "folder")])
    with closing(Store(folder, write=True)) as store:
        for number in (1, 2):
            with store.transaction():
                store.add([(Item(f"/{number}.jpg", "image"), [Span("image")])], np.array([[0, 1]], np.float32))
        shutil.copytree(folder, tmp_path / "killed")
    (tmp_path / "killed" / f"{DATABASE}-shm").unlink()
    return tmp_path / "killed"


def test_log_of_a_killed_writer_is_no_damage(killed):
    assert check(killed).ok
    with closing(Store(killed)) as store:
        assert store.count() == 3


@pytest.mark.parametrize("place", [2, 17, 25, 32, 40, 70, 32 + 24 + PAGE + 30])
def test_damaged_log_of_a_killed_writer_is_seen(killed, place, capsys):
    flip(killed / f"{DATABASE}-wal", place)
    with closing(Store(killed)) as store:
        assert store.count() < 3
    assert not check(killed).ok
    assert main(["index", "check", str(killed), "--repair"]) == 0
    assert "onepeace index update" in capsys.readouterr().out
    assert check(killed).ok


def test_end_that_a_killed_writer_did_not_finish_is_no_damage(killed):
    log = killed / f"{DATABASE}-wal"
    content = log.read_bytes()
    log.write_bytes(content[: len(content) - PAGE - 24] + content[32 : 32 + 24] + bytes(100))
    assert check(killed).ok


def test_log_that_a_writer_begins_anew_is_no_damage(tmp_path):
    folder = fabricate(tmp_path / "index", [(Item("/0.jpg", "image"), [1, 0])])
    with closing(Store(folder, write=True)) as store:
        for number in range(1, 4):
            with store.transaction():
                store.add([(Item(f"/{number}.jpg", "image"), [Span("image")])], np.array([[0, 1]], np.float32))
            if number == 2:
                store.connection.execute("PRAGMA wal_checkpoint(RESTART)")
        assert check(folder).ok


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
    folder, _ = index
    for ending in SIDE_FILES:
        Path(f"{folder / DATABASE}{ending}").unlink(missing_ok=True)
    program = [sys.executable, "-c", READ_ON_A_FULL_DISK, str(folder)]
    done = subprocess.run(program, cwd=Path(__file__).parents[1], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


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


def test_memory_of_an_open_index_that_is_cut_is_no_bus_error(index):
    folder, _ = index
    done = subprocess.run([sys.executable, "-c", OPEN_WHILE_CUT, str(folder)], check=False)
    assert done.returncode == 0
