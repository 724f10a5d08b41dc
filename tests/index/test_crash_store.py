"""What the crash model of an index stands on: checksums, what they cover, and what happens where they are wrong."""

import errno
import os
import re
import shutil
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest
from support import crash
from support.crash_trials import Place, built_index

from onepeace.errors import UserError
from onepeace.files import atomic
from onepeace.index import store as stores
from onepeace.index.checksums import checksum, seal
from onepeace.index.database import Damaged, write_database
from onepeace.index.store import BACKUP, DATABASE, Item, Span, Store
from onepeace.index.vectors import VectorFile
from onepeace.index.verify import verify


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return built_index(tmp_path_factory.mktemp("index"))


@pytest.fixture
def place(built):
    """An index of twelve texts."""
    built.put_back()
    return built


def same_as_files(place):
    crash.check(place.index)
    return crash.state(place.index) == crash.truth(place.files)


def flip(place, text, column):
    """Damage a text in a column of the database, not in its indexes: SQLite does not notice."""
    path = place.index / DATABASE
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = path.read_bytes()
    assert content.count(text) == 1
    path.write_bytes(content.replace(text, column))


def test_checksum_is_that_of_every_python():
    # repr escapes this character only under a Python that knows no such letter.
    assert checksum((b"a\xff", "\U0001fae8\udcff", None, 1, 0.1, 1e300)) == 4126224095
    assert checksum([0, 5.0, None], 7) == 3920781372


def test_values_come_back_as_their_checksums_took_them(place):
    odd = Item("/odd", "text", 1, 2, None, date=1, duration=3, width=4, caption="half \ud800", metadata={"a": "\udcff"})
    undated = Item("/undated", "text", date=float("nan"), metadata={"ä": [1.5, None]})
    spans = [Span("text", 0, 10)]
    with closing(Store(place.index, write=True)) as store:
        store.add([(odd, spans), (undated, spans)], crash.vectors_of(b"a long text")[:2])
        store.change([next(store.items("path = ?", [b"/undated"]))])
        assert next(store.items("path = ?", [b"/odd"])).caption == "half \\ud800"
    crash.check(place.index)


def test_wrong_vectors_are_refused(place):
    with closing(Store(place.index, write=True)) as store:
        item = (Item("/a", "text"), [Span("text")])
        for wrong in (np.full((1, crash.DIM), np.nan), np.ones((2, crash.DIM)), np.ones((1, crash.DIM + 1))):
            with pytest.raises(ValueError, match="vectors of shape"):
                store.add([item], wrong.astype(np.float32))
    assert same_as_files(place)


@pytest.mark.parametrize("change", ["copy", "touch", "compact"])
def test_damage_is_not_sealed(place, change):
    """What is copied or written again does not get a checksum that is right."""
    with closing(Store(place.index)) as store:
        item = next(item for item in store.items() if item.path.endswith("007.txt"))
        rows = [row for row, _ in store.spans(item.id)]
        path = store.vector_file.path
    if change == "touch":
        with closing(sqlite3.connect(place.index / DATABASE)) as connection:
            connection.execute("UPDATE vectors SET crc = 6 WHERE row = ?", [rows[1]])
            connection.commit()
        Path(item.path).touch()
    else:
        with open(path, "r+b") as file:
            file.seek(rows[1] * crash.DIM * 4)
            file.write(b"?")
        shutil.copy(item.path, place.files / "copy.txt")
    if change == "compact":
        (place.files / "copy.txt").unlink()
        (place.files / "000.txt").unlink()
        crash.run("update", place.index, place.files)
        with closing(Store(place.index, write=True)) as store:
            store.compact()
    else:
        with pytest.raises(Damaged, match="file"):
            crash.run("update", place.index, place.files)
    assert verify(place.index).items == [item.id]
    crash.run("repair", place.index, place.files)
    crash.run("update", place.index, place.files)
    assert same_as_files(place)


@pytest.mark.parametrize("column", ["model", "excluded", "modality", "problem"])
def test_damage_that_sqlite_does_not_see(place, column):
    if column == "modality":
        with closing(sqlite3.connect(place.index / DATABASE)) as connection:
            connection.execute("UPDATE vectors SET modality = 0 WHERE row = 3")
            connection.commit()
    else:
        old, new = {
            "model": (b"modelnone", b"modelnond"),
            "excluded": (b'"exclude"', b'"excludd"'),
            "problem": (b"a bad file", b"a bed file"),
        }[column]
        flip(place, old, new)
    assert not verify(place.index).ok
    crash.run("repair", place.index, place.files)
    crash.run("update", place.index, place.files)
    assert same_as_files(place)


def test_index_of_another_format_is_refused_by_name(place):
    with closing(Store(place.index, write=True)) as store:
        store.connection.execute("UPDATE meta SET value = '7' WHERE key = 'format_version'")
        seal(store.connection)
    before = (place.index / DATABASE).read_bytes()
    for command in (verify, lambda index: crash.run("repair", index, place.files), Store):
        with pytest.raises(UserError, match=r"an index of format 7; this version reads format 1.*\(a test\)"):
            command(place.index)
    assert (place.index / DATABASE).read_bytes() == before


def test_half_a_file_of_a_process_of_the_same_number(place):
    """In a container the process that was killed had the number that this one has."""
    shutil.rmtree(place.index)
    place.index.mkdir()
    (place.index / "lock").touch()
    with suppress(KeyboardInterrupt), write_database(place.index / DATABASE) as connection:
        connection.executescript(
            "PRAGMA journal_mode = DELETE; CREATE TABLE meta (a); BEGIN; INSERT INTO meta VALUES (1)"
        )
        for name in place.index.glob(".index*"):
            shutil.copy(name, f"{name}.kept")
        raise KeyboardInterrupt
    for name in place.index.glob(".index*.kept"):
        name.rename(str(name).removesuffix(".kept"))
    assert len(list(place.index.glob(".index.sqlite.*"))) == 2
    crash.run("build", place.index, place.files)
    assert same_as_files(place)
    assert not list(place.index.glob(".*"))


def test_log_of_an_older_database_is_not_applied_to_a_new_one(place):
    kept = Store(place.index, write=True)
    kept.remove([1, 2])
    shutil.copy(f"{place.index / DATABASE}-wal", place.base / "log")
    kept.close()
    for name in (DATABASE, BACKUP):
        (place.index / name).unlink()
    shutil.copy(place.base / "log", f"{place.index / DATABASE}-wal")
    crash.run("build", place.index, place.files)
    assert same_as_files(place)


def test_lost_database(place):
    (place.index / DATABASE).unlink()
    for command in ("build", "update"):
        with pytest.raises(Damaged, match=r"index\.sqlite is missing, its backup is there"):
            crash.run(command, place.index, place.files)
    assert not verify(place.index).ok
    crash.run("repair", place.index, place.files)
    assert same_as_files(place)
    for name in (DATABASE, BACKUP):
        (place.index / name).write_bytes(b"")
    with pytest.raises(UserError, match="cannot be repaired, neither it nor its backup"):
        crash.run("repair", place.index, place.files)


def test_fault_of_the_machine_is_no_damage(place, monkeypatch):
    def broken(*_):
        raise sqlite3.OperationalError("disk I/O error")

    def forbidden(_):
        raise PermissionError(13, "Permission denied")

    def full(_):
        raise OSError(28, "No space left on device")

    before = {path.name: path.read_bytes() for path in place.index.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(stores, "reader", broken)
        with pytest.raises(UserError, match=r"cannot be opened \(disk I/O error") as caught:
            crash.run("repair", place.index, place.files)
    assert not isinstance(caught.value, Damaged)
    assert {path.name: path.read_bytes() for path in place.index.iterdir()} == before
    with monkeypatch.context() as patch:
        patch.setattr(VectorFile, "hold", forbidden)
        with pytest.raises(UserError, match=rf"^{place.index}: cannot be read \(Permission denied\)$"):
            Store(place.index)
    with closing(Store(place.index, write=True)) as store, monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            UserError, match=rf"^{store.vector_file.path}: cannot be written \(No space left on device\)$"
        ):
            store.add([(Item("/a", "text"), [Span("text")])], crash.vectors_of(b"a"))
    assert same_as_files(place)


def test_damaged_database_does_not_take_the_place_of_its_backup(place):
    crash.change_texts(place.files)
    flip(place, b"a bad file", b"a bed file")
    before = (place.index / BACKUP).read_bytes()
    with pytest.raises(Damaged, match="rows of 1 files"):
        crash.run("update", place.index, place.files)
    assert (place.index / BACKUP).read_bytes() == before
    crash.run("repair", place.index, place.files)
    crash.run("update", place.index, place.files)
    assert same_as_files(place)


def test_disk_that_does_not_confirm_the_last_wait_is_said_with_the_folder(place, monkeypatch):
    def refuse(path):
        raise OSError(errno.EIO, "Input/output error", str(path))

    with closing(Store(place.index, write=True)) as store:
        monkeypatch.setattr(stores, "sync", refuse)
        with pytest.raises(UserError, match=f"^{re.escape(str(place.index))}: cannot be written"):
            store.backup()


def test_damaged_backup(place):
    path = place.index / BACKUP
    path.write_bytes(path.read_bytes().replace(b"a bad file", b"a bed file"))
    (line,) = verify(place.index).lines()
    assert line.startswith(f"{BACKUP}: 1 files")
    crash.run("repair", place.index, place.files)
    assert same_as_files(place)


def test_rescue_prefers_what_is_newer(place):
    """The backup has older rows of files that were edited, moved and removed since; ids and rows are taken anew."""
    older = (place.index / BACKUP).read_bytes()
    crash.change_texts(place.files)
    (place.files / "011.txt").unlink()  # the last id
    crash.run("update", place.index, place.files)
    (place.index / BACKUP).write_bytes(older)
    wanted = crash.state(place.index)
    with open(place.index / DATABASE, "r+b") as file:
        file.seek(18)
        file.write(b"\3")  # the version for writing: all can be read
    assert verify(place.index).database
    crash.run("repair", place.index, place.files)
    now = crash.state(place.index)
    assert wanted.items() <= now.items()
    gone = {str(place.files / name) for name in ("002.txt", "011.txt")}  # no damage says that they had been removed
    assert now.keys() - wanted.keys() <= gone
    crash.run("update", place.index, place.files)
    assert same_as_files(place)


LEAF = 13
"""First byte of a page that holds rows of a table, not of an index of SQLite (its file format, 1.6)."""


def test_rescue_beyond_pages_that_cannot_be_read(tmp_path):
    place = Place(tmp_path)
    crash.write_texts(place.files, 300)
    crash.run("build", place.index, place.files, batch=100)
    (place.index / BACKUP).unlink()
    with closing(Store(place.index, write=True)) as store:
        store.change(list(store.items("id < 3")))
        shutil.copy(f"{place.index / DATABASE}-wal", tmp_path / "log")
    content = bytearray((place.index / DATABASE).read_bytes())
    pages = [start for start in range(0, len(content), 4096) if content[start] == LEAF]
    start = next(start for start in pages if f"{place.files}/150.txt".encode() in content[start : start + 4096])
    content[start : start + 4096] = bytes(4096)
    (place.index / DATABASE).write_bytes(content)
    shutil.copy(tmp_path / "log", f"{place.index / DATABASE}-wal")  # which would change pages of the new database
    crash.run("repair", place.index, place.files)
    now = crash.state(place.index)
    assert now.items() <= crash.truth(place.files).items()
    assert 200 < len(now) < 300
    assert {"000.txt", "299.txt"} <= {Path(path).name for path in now}
    crash.run("update", place.index, place.files)
    assert same_as_files(place)


def test_numbers_are_never_used_twice(place):
    """Neither of a file nor of a state: what was derived from one does not fit another."""
    shutil.copy(place.index / DATABASE, place.base / "older")
    with closing(Store(place.index, write=True)) as store:
        first, last = store.meta["generation"], max(item.id for item in store.items())
        store.remove([last])
        second = store.meta["generation"]
        assert store.add([(Item("/a", "text"), [Span("text")])], crash.vectors_of(b"a")) > [last]
    shutil.copy(place.base / "older", place.index / DATABASE)
    with closing(Store(place.index, write=True)) as store:
        assert store.meta["generation"] == first
        store.remove([1])
        assert store.meta["generation"] not in (first, second)


def test_short_file_of_vectors_is_not_written_to(place):
    (path,) = place.index.glob("vectors-*")
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)
    crash.change_texts(place.files)
    with pytest.raises(Damaged, match=r"vectors-000001.f32 has \d+ of \d+ vectors"):
        crash.run("update", place.index, place.files)
    crash.run("repair", place.index, place.files)
    crash.run("update", place.index, place.files)
    assert same_as_files(place)


def test_compaction_that_fails_leaves_nothing(place, monkeypatch):
    append = VectorFile.append

    def half(file, vectors, first):
        append(file, vectors[:2], first)
        raise UserError("no space")

    with closing(Store(place.index, write=True)) as store:
        store.remove([1])
        with monkeypatch.context() as patch:
            patch.setattr(VectorFile, "append", half)
            with pytest.raises(UserError, match="no space"):
                store.compact()
        assert [path.name for path in place.index.glob("vectors-*")] == ["vectors-000001.f32"]
        assert store.compact() == 1
    crash.check(place.index)
    assert [path.name for path in place.index.glob("vectors-*")] == ["vectors-000002.f32"]


def test_names_of_new_folders_are_safe(tmp_path, monkeypatch):
    waited = []
    monkeypatch.setattr(atomic, "sync", waited.append)
    atomic.make_folder(tmp_path / "a" / "b")
    atomic.make_folder(tmp_path / "a" / "b")
    assert waited == [tmp_path, tmp_path / "a"]
