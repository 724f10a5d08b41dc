"""Updating an index: it says what a new one would say, and nothing is embedded twice."""

import os
import shutil

import numpy as np
import pytest
from support.broken_files import write_broken, write_good
from support.indexes import content, counts, items_by_name
from support.small_shards import square, write_tar

from onepeace.errors import UserError
from onepeace.index import Index, embed, record, remove
from onepeace.index.content import open_content

NUM_FILES = 30
LONG_AGO = (1e9, 1e9)


@pytest.fixture
def folder(tmp_path, samples):
    """Files of three kinds under awkward names."""
    write_good(tmp_path / "files", samples, NUM_FILES)
    return tmp_path / "files"


@pytest.fixture
def broken(folder, samples):
    """The names of broken files in that folder."""
    return write_broken(folder / "broken", samples).keys()


def test_moved_folders(build, update, check_as_new, folder, broken):
    first = build(folder)
    (folder / "part 0").rename(folder / "another part")
    (folder / "broken").rename(folder / "still broken")
    for path in (folder / "part 1").iterdir():
        os.utime(path, LONG_AGO)

    report = update()

    num_moved = len(list((folder / "another part").iterdir()))
    assert counts(first) == {"added": NUM_FILES}
    assert counts(report) == {"moved": num_moved, "unchanged": NUM_FILES - num_moved, "removed": len(broken)}
    assert len(first.problems) == len(report.problems) == len(broken)  # under their new names
    check_as_new(folder)


@pytest.mark.parametrize(("is_longer", "is_later"), [(True, False), (False, True), (True, True)])
def test_file_of_another_size_or_time_is_read_again(build, update, check_as_new, words, is_longer, is_later):
    build(words)
    path = words / "3.txt"
    status = path.stat()
    path.write_text("other word no3" + " and more" * is_longer)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1000 * is_later))
    assert (path.stat().st_size != status.st_size) == is_longer

    assert counts(update()) == {"changed": 1, "unchanged": 5}
    check_as_new(words)


def test_open_index_matches_as_a_new_one_after_an_update(build, update, words, index, tmp_path):
    """Everything that is computed from the vectors is of the new ones: the unrelated queries, masks, words, ..."""

    def answers(opened):
        """Names and numbers of hits."""
        names, numbers = [], []
        for query in ("words number 3", "other words"):
            for options in ({}, {"only": "text"}, {"where": "size > 14"}):
                for hit in opened.search(query, collapse=False, top=20, **options):
                    names.append((hit.item.path, hit.named, hit.rare))
                    numbers.append((hit.score, hit.match))
        return names, numbers

    build(words)
    with Index.open(index, device="cpu") as opened:
        names_before, _ = answers(opened)
        for number in range(6, 15):
            (words / f"{number}.txt").write_text(f"{'other ' * number} words number {number}")
        (words / "1.txt").unlink()
        update()
        build(words, into=tmp_path / "fresh")

        with Index.open(tmp_path / "fresh", device="cpu") as fresh:
            expected_names, expected_numbers = answers(fresh)
        names, numbers = answers(opened)
        assert names == expected_names != names_before
        np.testing.assert_allclose(numbers, expected_numbers, atol=1e-5)


def test_changed_copied_swapped_and_mended_files(build, update, check_as_new, folder, broken, samples, monkeypatch):
    monkeypatch.setattr(record, "BATCH_SECONDS", float("inf"))  # files that are swapped are in one transaction
    build(folder)
    pictures = sorted((folder / "part 1").glob("*.jpg"))
    text = min((folder / "part 1").glob("*.txt"))
    shutil.copyfile(pictures[0], folder / "a copy.jpg")
    second, third = pictures[1].read_bytes(), pictures[2].read_bytes()
    pictures[1].write_bytes(third)
    pictures[2].write_bytes(second)
    text.write_text("now other words")
    pictures[3].unlink()
    pictures[3].mkdir()
    shutil.copyfile(samples / "images" / "owl.jpg", pictures[3] / "inside.jpg")
    (folder / "broken" / "empty.txt").write_text("no longer empty")

    report = update()

    assert counts(report) == {
        "copied": 3,  # the copy, and the two that were swapped
        "changed": 1,  # the text
        "added": 2,  # the owl, and the text that was empty
        "removed": 1,  # the picture whose name a folder has now
        "unchanged": NUM_FILES - 4,  # without the swapped, the changed and the removed
        "known_problems": len(broken) - 1,
    }
    check_as_new(folder)


def test_nothing_new_is_not_loaded_read_or_written(build, update, no_model, folder, broken, index, monkeypatch):
    def generation():
        with Index.open(index) as opened, opened.reading() as state:
            return state.store.meta["generation"]

    build(folder)
    generation_before = generation()
    no_model()
    monkeypatch.setattr(embed, "read_entry", None)

    for report in (build(folder), update()):
        assert counts(report) == {"unchanged": NUM_FILES, "known_problems": len(broken)}
        assert report.problems == []
    assert generation() == generation_before


def test_renamed_touched_and_copied_files_need_no_model(build, update, no_model, words, index):
    build(words)
    no_model()
    (words / "0.txt").rename(words / "new.txt")
    os.utime(words / "1.txt", LONG_AGO)
    shutil.copyfile(words / "2.txt", words / "copy.txt")
    (words / "3.txt").rename(words / "renamed.txt")
    shutil.copyfile(words / "renamed.txt", words / "second.txt")

    assert counts(update()) == {"moved": 2, "copied": 2, "unchanged": 4}
    build(words)
    assert len(content(index)) == 8


def test_words_of_a_long_text_without_spaces_stay(build, update, words, check_as_new):
    (words / "0.txt").write_text("\u9f9c" * 9000 + "\u9451", encoding="utf-8")
    build(words)
    (words / "0.txt").rename(words / "new.txt")
    update()

    check_as_new(words)


def test_text_that_is_a_row_of_a_table_too_has_its_words(build, words, index, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("text\nzebras on the board\n")
    build(table)
    (words / "0.txt").write_text("zebras on the board")
    build(words)

    with Index.open(index) as opened, opened.reading() as state:
        assert state.store.words(items_by_name(index)["0.txt"].id).text == "zebras on the board"


def test_equal_files_are_embedded_once(build, words, index):
    for number in range(100):
        (words / f"copy {number}.txt").write_text("equal words")

    report = build(words)

    assert (report.added, report.copied, report.vectors) == (7, 99, 7)
    with Index.open(index) as opened:
        assert opened.stats()["vectors"] == 106


def test_time_in_the_year_2400(build, update, words):
    os.utime(words / "0.txt", (13_600_000_000, 13_600_000_000))

    assert counts(build(words)) == {"added": 6}
    assert counts(update()) == {"unchanged": 6}


def test_named_files_and_rows_leave(build, update, words, index, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("image,text\n,first words\n,second words\n")
    build(words / "0.txt", words / "1.txt", table)
    (words / "0.txt").unlink()
    table.write_text("image,text\n,second words\n")

    for _ in range(2):
        update()
        assert content(index).keys() == {str(words / "1.txt"), f"{table}::2"}


@pytest.fixture
def captioned(build, samples, tmp_path):
    """A table in an index, with a caption and the year of a picture, which is in the index by itself too."""
    shutil.copyfile(samples / "images" / "dog.jpg", tmp_path / "dog.jpg")
    table = tmp_path / "table.csv"
    table.write_text("image,caption,year\ndog.jpg,a dog,2001\n")
    build(table, tmp_path / "dog.jpg")
    return table


def test_caption_that_is_new_or_gone_needs_no_model(captioned, update, no_model, index):
    no_model()
    for row, caption, metadata in [("a running dog,2002", "a running dog", {"year": "2002"}), (",", None, {})]:
        captioned.write_text(f"image,caption,year\ndog.jpg,{row}\n")

        assert counts(update()) == {"unchanged": 1}
        item = items_by_name(index)["dog.jpg"]
        assert (item.caption, item.metadata) == (caption, metadata)


def test_caption_of_two_tables_is_that_of_the_last_one_by_name(captioned, build, update, index):
    other = captioned.with_name("a.csv")
    other.write_text("image,caption\ndog.jpg,an animal\n")
    for call in (lambda: build(captioned, other), update):
        call()
        assert items_by_name(index)["dog.jpg"].caption == "a dog"


def test_caption_stays_when_the_file_alone_is_built_again(captioned, build, no_model, index):
    no_model()
    captioned.write_text("image,caption,year\ndog.jpg,a running dog,2002\n")
    picture = captioned.with_name("dog.jpg")
    os.utime(picture, LONG_AGO)

    build(picture)

    item = items_by_name(index)["dog.jpg"]
    assert (item.caption, item.metadata) == ("a dog", {"year": "2001"})


@pytest.fixture
def pictures():
    rng = np.random.default_rng(0)
    return {f"{number}.png": square((200, 30, 10 * number), rng) for number in range(4)}


@pytest.fixture
def shard(build, pictures, tmp_path):
    """A shard of four pictures in an index, with a broken sample."""
    path = write_tar(tmp_path / "a.tar", {**pictures, "broken.json": b"{"})
    report = build(tmp_path / "*.tar")
    (problem,) = report.problems
    assert counts(report) == {"added": 4}
    assert "broken.json" in problem.reason
    return path


@pytest.mark.parametrize("name", ["b.tar", "b.tar.gz"])
def test_sample_of_a_shard_has_a_size_and_is_read_at_its_place(build, index, pictures, tmp_path, monkeypatch, name):
    build(write_tar(tmp_path / name, pictures))
    monkeypatch.setattr("onepeace.index.sources.read_shard", None)

    with Index.open(index) as opened:
        items = list(opened.items("width > 4 and height > 4"))
        assert len(items) == 4
        for item in items:
            assert open_content(item, opened.roots()) == pictures[item.path.partition("::")[2]]
        os.utime(tmp_path / name, LONG_AGO)
        with pytest.raises(UserError, match="changed"):
            open_content(items[0], opened.roots())


def test_shard_that_is_cut_keeps_its_samples(shard, update):
    """The files behind the break may come back."""
    shard.write_bytes(shard.read_bytes()[:4000])  # inside of the second picture

    report = update()

    assert report.removed == 0
    assert [problem.path for problem in report.problems] == [shard]


def test_shard_with_another_name(shard, build, update, no_model, index, tmp_path):
    no_model()
    assert counts(update()) == {"unchanged": 4, "known_problems": 1}
    renamed = shard.rename(tmp_path / "b.tar")

    assert build(renamed).copied == 4
    update()
    assert content(index).keys() == {str(renamed), *(f"{renamed}::{number}.png" for number in range(4))}


def test_shard_that_is_mended_and_a_sample_that_is_removed(shard, update, pictures, index):
    write_tar(shard, pictures)

    assert remove(index, [f"{shard}::0.png"]) == 1
    update()

    assert content(index).keys() == {f"{shard}::{number}.png" for number in (1, 2, 3)}
