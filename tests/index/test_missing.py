"""Folders, tables and disks that are missing for a while: no file leaves an index because of them."""

import errno
import os
import shutil

import pytest
from support.indexes import content, counts

from onepeace.index import remove


def write_texts(folder, count):
    folder.mkdir(exist_ok=True)
    for number in range(count):
        (folder / f"{number}.txt").write_text(f"{folder.name} {number}")


def test_folder_that_cannot_be_read(build, update, words, index, monkeypatch):
    (words / "sub").mkdir()
    (words / "sub" / "deep.txt").write_text("deep words")
    build(words)
    (words / "0.txt").unlink()
    scandir = os.scandir

    def refuse(path):
        if os.path.basename(path) == "sub":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)

    report = update()

    assert counts(report) == {"removed": 1, "unchanged": 5}
    assert report.problems == [(words / "sub", "Permission denied")]
    assert str(words / "sub" / "deep.txt") in content(index)


@pytest.mark.parametrize("is_empty", [True, False])
def test_disk_that_is_not_mounted(build, update, words, index, tmp_path, is_empty):
    beside = tmp_path / "words beside"  # a name that begins like that of the other folder
    write_texts(beside, 1)
    build(words, beside)
    words.rename(tmp_path / "away")
    if is_empty:
        words.mkdir()
    (beside / "new.txt").write_text("new words")

    report = update()

    (problem,) = report.problems
    assert problem.path == words
    assert "onepeace index remove" in problem.reason
    assert counts(report) == {"added": 1, "unchanged": 1}
    assert len(content(index)) == 8
    assert remove(index, [words]) == 6


def test_table_that_cannot_be_read_any_more(build, update, words, index, tmp_path):
    outside = tmp_path / "outside.txt"
    outside.write_text("words that only the table names")
    table = tmp_path / "t.csv"
    table.write_text(f"path,caption\n{outside},a file\n")
    build(words, table)
    table.write_text("path,path\n")

    report = update()

    assert [problem.path for problem in report.problems] == [table]
    assert str(outside) in content(index)


@pytest.fixture
def linked(build, tmp_path):
    """A folder of links to 15 files on a disk; the folder is in the index."""
    write_texts(tmp_path / "disk", 15)
    links = tmp_path / "links"
    links.mkdir()
    for path in (tmp_path / "disk").iterdir():
        (links / path.name).symlink_to(path)
    build(links, follow_links=True)
    return links


def test_links_to_a_disk_that_is_off_keep_their_vectors(linked, update, index, tmp_path):
    before = content(index)
    (tmp_path / "disk").rename(tmp_path / "off")

    for _ in range(3):
        report = update()
        assert (report.removed, len(report.problems)) == (0, 15)
    assert content(index).keys() == before.keys()
    assert all(len(file.vectors) == 1 for file in content(index).values())

    (tmp_path / "off").rename(tmp_path / "disk")
    assert counts(update()) == {"unchanged": 15}


def test_link_to_a_folder_of_a_disk_that_is_off_keeps_its_files(build, update, index, tmp_path):
    write_texts(tmp_path / "disk", 3)
    write_texts(tmp_path / "links", 2)
    (tmp_path / "links" / "card").symlink_to(tmp_path / "disk")
    build(tmp_path / "links", follow_links=True)
    (tmp_path / "disk").rename(tmp_path / "off")

    for _ in range(2):
        report = update()
        assert (report.removed, [problem.path.name for problem in report.problems]) == (0, ["card"])
    assert sum(len(file.vectors) for file in content(index).values()) == 5

    (tmp_path / "links" / "card").unlink()
    assert update().removed == 3


def test_files_whose_state_cannot_be_read_keep_their_vectors(build, update, words, index, monkeypatch):
    build(words)
    stat = os.stat

    def fail(path, *args, **options):
        if str(path).endswith(".txt"):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)
        return stat(path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", fail)
        report = update()

    assert (report.removed, len(report.problems)) == (0, 6)
    assert counts(update()) == {"unchanged": 6}


def test_changed_file_that_cannot_be_opened_keeps_its_vectors(build, update, words, index, monkeypatch):
    def refuse(*args, **options):
        raise PermissionError(13, "Permission denied")

    build(words)
    (words / "0.txt").write_text("other words")
    with monkeypatch.context() as patch:
        patch.setattr("onepeace.index.content.open", refuse, raising=False)
        (problem,) = update().problems

    assert problem == (words / "0.txt", "Permission denied")
    assert len(content(index)[str(words / "0.txt")].vectors) == 1
    assert counts(update()) == {"changed": 1, "unchanged": 5}


def test_files_of_a_table_on_a_disk_that_is_off_keep_their_vectors(build, update, index, tmp_path):
    disk = tmp_path / "disk"
    write_texts(disk, 3)
    table = tmp_path / "t.csv"
    table.write_text("path\n" + "".join(f"{path}\n" for path in sorted(disk.iterdir())))
    build(table)
    disk.rename(tmp_path / "off")

    report = update()

    assert (report.removed, len(report.problems)) == (0, 3)
    assert {str(disk / f"{number}.txt") for number in range(3)} < content(index).keys()
    (tmp_path / "off").rename(disk)
    assert counts(update()) == {"unchanged": 3, "removed": 3}


@pytest.fixture
def swap_disk(build, tmp_path):
    """Swaps a disk with 12 files, which are in the index, for the folder with one that it is mounted over; or back."""
    disk = tmp_path / "disk"
    unmounted = tmp_path.with_suffix(".unmounted")
    write_texts(disk, 12)
    unmounted.mkdir()
    (unmounted / "stray.txt").write_text("written to the folder where the disk is mounted")
    build(tmp_path)

    def swap():
        aside = tmp_path.with_suffix(".aside")
        disk.rename(aside)
        unmounted.rename(disk)
        aside.rename(unmounted)

    return swap


def test_most_files_of_a_folder_are_kept_each_time_they_go(swap_disk, update):
    for _ in range(2):
        swap_disk()
        report = update()
        assert len(report.kept) == 12
        assert report.removed == 0

        swap_disk()
        assert counts(update()) == {"unchanged": 12, "removed": 1}


def test_most_files_of_a_folder_leave_at_the_second_update(swap_disk, update):
    swap_disk()
    assert len(update().kept) == 12

    assert counts(update()) == {"removed": 12, "unchanged": 1}


def test_folder_that_is_deleted_moved_or_left_out_is_not_kept(build, update, tmp_path):
    for name in ("deleted", "moved", "ignored"):
        write_texts(tmp_path / name, 12)
    write_texts(tmp_path, 60)
    build(tmp_path)
    shutil.rmtree(tmp_path / "deleted")
    (tmp_path / "moved").rename(tmp_path / "new name")
    (tmp_path / ".onepeaceignore").write_text("ignored/\n")

    report = update()

    assert report.kept == []
    assert counts(report) == {"moved": 12, "removed": 24, "unchanged": 60}
