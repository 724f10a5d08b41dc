"""Filling an index: what is embedded, what is recognised, what is kept of files that fail, and what is forgotten."""

import os
import shutil
import sys
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from PIL import Image
from support.broken_files import write_broken, write_good
from support.indexes import check_same, content
from support.small_shards import square, tone, write_tar

from onepeace import compiling
from onepeace.errors import UsageError, UserError
from onepeace.index import Index, check, cutting, embedding, is_index, loading, maintain, reading, remove
from onepeace.index.lock import writing
from onepeace.index.store import Store


def counts(report):
    names = ("added", "changed", "copied", "moved", "removed", "unchanged", "known_problems")
    return {name: getattr(report, name) for name in names if getattr(report, name)}


def problems(index):
    with Index.open(index) as opened:
        return {os.path.basename(problem.path): problem.reason for problem in opened.problems()}


@pytest.fixture
def folder(tmp_path, samples):
    """Thirty files that are good, under awkward names, and broken ones."""
    write_good(tmp_path / "files", samples, 30)
    write_broken(tmp_path / "files" / "broken", samples)
    return tmp_path / "files"


@pytest.fixture
def words(tmp_path):
    """Six small texts."""
    (tmp_path / "words").mkdir()
    for i in range(6):
        (tmp_path / "words" / f"{i}.txt").write_text(f"words number {i}")
    return tmp_path / "words"


def test_update_gives_what_a_new_index_gives(build, update, no_model, folder, tmp_path, samples):
    first = build(tmp_path / "index", folder)
    assert counts(first) == {"added": 30}
    assert len(first.problems) == len(write_broken(tmp_path / "elsewhere", samples))

    (folder / "part 0").rename(folder / "another part")
    (folder / "broken").rename(folder / "still broken")
    for path in (folder / "part 1").iterdir():
        os.utime(path, (1e9, 1e9))
    moved = update(tmp_path / "index")
    assert counts(moved) == {"moved": 10, "unchanged": 20, "removed": len(first.problems)}
    assert len(moved.problems) == len(first.problems)  # under their new names

    pictures, texts = sorted((folder / "part 1").glob("*.jpg")), sorted((folder / "part 1").glob("*.txt"))
    shutil.copyfile(pictures[0], folder / "a copy.jpg")
    one, two = (path.read_bytes() for path in pictures[1:3])
    pictures[1].write_bytes(two)
    pictures[2].write_bytes(one)
    texts[0].write_text("now other words")
    pictures[3].unlink()
    pictures[3].mkdir()
    shutil.copyfile(samples / "images" / "owl.jpg", pictures[3] / "inside.jpg")
    (folder / "still broken" / "empty.txt").write_text("no longer empty")
    changed = update(tmp_path / "index")
    assert counts(changed) == {
        **{"copied": 3, "changed": 1, "added": 2, "removed": 1},
        **{"unchanged": 30 - 4, "known_problems": len(first.problems) - 1},
    }
    build(tmp_path / "fresh", folder)
    check_same(tmp_path / "index", tmp_path / "fresh")


def test_without_news_nothing_is_loaded_read_or_written(build, update, no_model, folder, tmp_path, monkeypatch):
    first = build(tmp_path / "index", folder)
    generation = Index.open(tmp_path / "index").store.meta["generation"]
    no_model()
    monkeypatch.setattr(embedding, "read_entry", None)
    for again in (build(tmp_path / "index", folder), update(tmp_path / "index")):
        assert counts(again) == {"unchanged": 30, "known_problems": len(first.problems)}
        assert again.problems == []
    assert Index.open(tmp_path / "index").store.meta["generation"] == generation


def test_what_is_only_renamed_touched_or_copied_needs_no_model(build, update, no_model, words, tmp_path):
    build(tmp_path / "index", words)
    no_model()
    (words / "0.txt").rename(words / "new.txt")
    os.utime(words / "1.txt", (1e9, 1e9))
    shutil.copyfile(words / "2.txt", words / "copy.txt")
    (words / "3.txt").rename(words / "other.txt")
    shutil.copyfile(words / "other.txt", words / "second.txt")
    assert counts(update(tmp_path / "index")) == {"moved": 2, "copied": 2, "unchanged": 4}
    build(tmp_path / "index", words)
    assert len(content(tmp_path / "index")) == 8


def test_a_chain_of_renames_loses_nothing(build, update, words, tmp_path):
    build(tmp_path / "index", words)
    (words / "1.txt").rename(words / "2.txt.old")
    (words / "0.txt").rename(words / "1.txt")
    (words / "2.txt.old").rename(words / "last.txt")
    # A file beside the place that its name seems to point into is no part of it.
    (words / "3.txt").rename(words / "gone::3.txt")
    update(tmp_path / "index")
    shutil.copyfile(words / "gone::3.txt", words / "copy.txt")
    assert counts(update(tmp_path / "index")) == {"copied": 1, "unchanged": 6}
    build(tmp_path / "fresh", words)
    check_same(tmp_path / "index", tmp_path / "fresh")


def test_long_sounds_have_a_vector_for_every_window(build, model, tmp_path, monkeypatch):
    monkeypatch.setattr(cutting, "WINDOW", 1.5)
    monkeypatch.setattr(cutting, "HOP", 1.0)
    path = tmp_path / "long.wav"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 16000 * 5), 16000)
    build(tmp_path / "index", path)
    (result,) = model.stream([path], long="windows", window=1.5, hop=1.0)
    expected = result.windows
    ((_, vectors),) = content(tmp_path / "index").values()
    np.testing.assert_allclose(vectors, expected.vectors.numpy(), atol=1e-5)
    with Index.open(tmp_path / "index") as index:
        spans = [index.matrix.span(row) for row in range(len(index.matrix))]
    assert [span.start for span in spans] == expected.starts
    assert [span.end for span in spans] == expected.ends


def test_what_the_headers_say_is_kept(build, tmp_path, samples):
    soundfile.write(tmp_path / "sound.wav", np.zeros(16000), 8000)
    build(tmp_path / "index", tmp_path / "sound.wav", samples / "images" / "dog.jpg")
    with Index.open(tmp_path / "index") as index:
        sound, picture = index.items()
    with Image.open(samples / "images" / "dog.jpg") as image:
        assert (picture.width, picture.height) == image.size
    assert sound.duration == 2.0
    assert sound.date == pytest.approx(os.stat(tmp_path / "sound.wav").st_mtime, abs=1e-6)  # two ways to round


def test_silence_is_noted_of_the_sound_that_is_silent(build, tmp_path):
    """Of five of the same length in a shard, in which no file has a path."""
    rng = np.random.default_rng(0)
    sounds = {f"{i}.wav": tone(500.0, rng) for i in range(5)}
    soundfile.write(tmp_path / "silent.wav", np.zeros(8000), 16000)
    silent = (tmp_path / "silent.wav").read_bytes()
    assert {len(sound) for sound in sounds.values()} == {len(silent)}
    shard = write_tar(tmp_path / "sounds.tar", {**sounds, "3.wav": silent})
    build(tmp_path / "index", shard)
    with Index.open(tmp_path / "index") as index:
        notes = {item.path.rpartition("::")[2]: item.note for item in index.items()}
    assert notes == {**dict.fromkeys(sounds), "3.wav": "digital silence"}


def test_broken_files_are_kept_with_their_reasons(build, update, folder, tmp_path, samples):
    expected = write_broken(tmp_path / "elsewhere", samples)
    build(tmp_path / "index", folder)
    reasons = problems(tmp_path / "index")
    assert reasons.keys() == expected.keys()
    for name, reason in expected.items():
        assert reason in reasons[name]
    shutil.copyfile(samples / "images" / "dog.jpg", folder / "broken" / "cut.jpg")
    report = update(tmp_path / "index")
    assert report.copied + report.added == 1
    assert "cut.jpg" not in problems(tmp_path / "index")


def test_file_that_could_not_be_read_is_tried_again(build, words, tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as context:
        context.setattr(reading, "open", refuse, raising=False)
        report = build(tmp_path / "index", words)
        assert {problem.reason for problem in report.problems} == {"Permission denied"}
        assert counts(build(tmp_path / "index", words)) == {"known_problems": 6}
    assert counts(build(tmp_path / "index", words)) == {"added": 6}  # though neither size nor time have changed


def test_file_that_lacked_a_package_is_tried_when_it_is_there(build, words, tmp_path):
    build(tmp_path / "index", words)
    lacking = 'it is: needs {}: pip install "onepeace[media]"'
    with closing(Store(tmp_path / "index", write=True)) as store, store.transaction():
        for item, module in zip(list(store.items()), ("json", "no_such_package"), strict=False):
            store.add([(replace(item, problem=lacking.format(module)), [])], np.empty((0, 16), np.float32))
    assert counts(build(tmp_path / "index", words)) == {"added": 1, "unchanged": 4, "known_problems": 1}


def test_interrupt_keeps_what_is_done(build, folder, tmp_path, monkeypatch):
    take, taken = embedding.Embedding.take, []

    def interrupted(self, result, reading, video):
        taken.append(reading.item.path)
        if len(taken) > 8:
            raise KeyboardInterrupt
        take(self, result, reading, video)

    with monkeypatch.context() as context:
        context.setattr(embedding.Embedding, "take", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / "index", folder, batch_size=4)
    kept = content(tmp_path / "index")
    assert {*taken[:8]} <= kept.keys()  # and a link to nothing, which nobody takes
    assert taken[8] not in kept
    build(tmp_path / "index", folder)
    build(tmp_path / "fresh", folder)
    check_same(tmp_path / "index", tmp_path / "fresh")


def test_index_that_is_moved_meanwhile_keeps_what_is_done(build, words, tmp_path, monkeypatch):
    take = embedding.Embedding.take

    def moving(self, *args):
        take(self, *args)
        if (tmp_path / "index").exists():
            (tmp_path / "index").rename(tmp_path / "moved")
        self.recorder.flush()

    with monkeypatch.context() as context:
        context.setattr(embedding.Embedding, "take", moving)
        with pytest.raises(UserError, match=f"{tmp_path / 'index'}: the index was moved"):
            build(tmp_path / "index", words, batch_size=1)
    assert not (tmp_path / "index").exists()
    assert len(content(tmp_path / "moved")) == 1
    assert check(tmp_path / "moved").ok
    assert counts(build(tmp_path / "moved", words)) == {"added": 5, "unchanged": 1}


def test_one_path_needs_no_list_and_a_closed_index_says_so(build, words, random_folder, tmp_path):
    folder = tmp_path / "index"
    assert maintain.build(folder, str(words), str(random_folder), device="cpu", progress=False).added == 6
    with Index.open(folder) as index:
        pass
    with pytest.raises(UserError, match="closed"):
        index.search("a")
    report = check(folder)
    assert (report.ok, report.files) == (True, 6)
    assert maintain.remove(folder, str(words)) == 6


def test_a_folder_without_permission_is_named(tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise PermissionError(13, "Permission denied", "index.sqlite")

    monkeypatch.setattr("pathlib.Path.is_file", refuse)  # root may read anything
    with pytest.raises(UserError, match=f"{tmp_path}: cannot be read"):
        Index.open(tmp_path)
    assert not is_index(tmp_path)


def test_process_without_stderr_builds(random_folder, words, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert maintain.build(tmp_path / "index", [words], str(random_folder), device="cpu").added == 6


def test_folder_that_cannot_be_read_costs_nothing(build, update, words, tmp_path, monkeypatch):
    (words / "sub").mkdir()
    (words / "sub" / "deep.txt").write_text("deep words")
    build(tmp_path / "index", words)
    scandir = os.scandir

    def closed(path):
        if os.path.basename(path) == "sub":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    (words / "0.txt").unlink()
    monkeypatch.setattr(os, "scandir", closed)
    report = update(tmp_path / "index")
    assert counts(report) == {"removed": 1, "unchanged": 5}
    assert [(problem.path, problem.reason) for problem in report.problems] == [(words / "sub", "Permission denied")]
    assert str(words / "sub" / "deep.txt") in content(tmp_path / "index")


def test_disk_that_is_not_mounted_costs_nothing(build, update, words, tmp_path):
    build(tmp_path / "index", words)
    words.rename(tmp_path / "away")
    for _ in range(2):  # gone, then empty
        with pytest.raises(UserError, match=r"words: .* onepeace index remove"):
            update(tmp_path / "index")
        words.mkdir(exist_ok=True)
    assert len(content(tmp_path / "index")) == 6
    assert remove(tmp_path / "index", [words]) == 6


def test_named_files_and_rows_leave_too(build, update, words, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("image,text\n,first words\n,second words\n")
    build(tmp_path / "index", words / "0.txt", words / "1.txt", table)
    (words / "0.txt").unlink()
    table.write_text("image,text\n,second words\n")
    update(tmp_path / "index")
    assert sorted(content(tmp_path / "index")) == sorted([str(words / "1.txt"), f"{table}::2"])
    update(tmp_path / "index")


def test_what_was_removed_stays_out_until_it_is_named_again(build, update, words, tmp_path):
    (words / "private").mkdir()
    (words / "private" / "secret.txt").write_text("a secret")
    build(tmp_path / "index", words)
    assert remove(tmp_path / "index", [words / "private", words / "0.txt"]) == 2
    update(tmp_path / "index")
    build(tmp_path / "index", words)
    assert sorted(content(tmp_path / "index")) == [str(words / f"{i}.txt") for i in range(1, 6)]
    build(tmp_path / "index", words / "private")
    update(tmp_path / "index")
    assert str(words / "private" / "secret.txt") in content(tmp_path / "index")
    with pytest.raises(UserError, match="nothing: not in the index"):
        remove(tmp_path / "index", ["nothing"])
    with pytest.raises(UsageError, match="empty"):
        remove(tmp_path / "index", "")
    remove(tmp_path / "index", tmp_path)  # the folder above what it was built of
    update(tmp_path / "index")
    assert content(tmp_path / "index") == {}


def test_new_caption_needs_no_model_and_a_touch_keeps_it(build, update, no_model, tmp_path, samples):
    shutil.copyfile(samples / "images" / "dog.jpg", tmp_path / "dog.jpg")
    table = tmp_path / "table.csv"
    table.write_text("image,caption,year\ndog.jpg,a dog,2001\n")
    build(tmp_path / "index", table, tmp_path / "dog.jpg")
    no_model()
    table.write_text("image,caption,year\ndog.jpg,a running dog,2002\n")
    os.utime(tmp_path / "dog.jpg", (1e9, 1e9))
    build(tmp_path / "index", tmp_path / "dog.jpg")
    with Index.open(tmp_path / "index") as index:
        assert [(item.caption, item.metadata) for item in index.items()] == [("a dog", {"year": "2001"})]
    report = update(tmp_path / "index")
    assert (report.unchanged, report.recaptioned) == (1, 1)
    with Index.open(tmp_path / "index") as index:
        assert [(item.caption, item.metadata) for item in index.items()] == [("a running dog", {"year": "2002"})]
    table.write_text("image,caption,year\ndog.jpg,,\n")
    update(tmp_path / "index")
    with Index.open(tmp_path / "index") as index:
        assert [item.caption for item in index.items()] == [None]


def test_file_that_becomes_a_copy_of_another_keeps_its_caption(build, no_model, words, tmp_path):
    (words / "table.csv").write_text("path,caption\n0.txt,the first\n")
    build(tmp_path / "index", words, words / "table.csv")
    shutil.copyfile(words / "1.txt", words / "0.txt")
    no_model()
    assert build(tmp_path / "index", words).copied == 1
    with Index.open(tmp_path / "index") as index:
        assert index.item(words / "0.txt").caption == "the first"


def test_shard_is_followed(build, update, no_model, tmp_path):
    rng = np.random.default_rng(0)
    pictures = {f"{i}.png": square((200, 30, 10 * i), rng) for i in range(4)}
    shard = write_tar(tmp_path / "a.tar", {**pictures, "broken.json": b"{"})
    first = build(tmp_path / "index", tmp_path / "*.tar")
    assert counts(first) == {"added": 4}
    assert [problem.reason[:18] for problem in first.problems] == ["broken.json cannot"]
    no_model()
    assert counts(update(tmp_path / "index")) == {"unchanged": 4, "known_problems": 1}

    whole = shard.read_bytes()
    shard.write_bytes(whole[:4000])  # inside of the second picture
    report = update(tmp_path / "index")
    assert report.removed == 0, "what lies behind the break may come back"
    assert [str(problem.path) for problem in report.problems] == [str(shard)]
    shard.rename(tmp_path / "b.tar")
    (tmp_path / "b.tar").write_bytes(whole)
    assert build(tmp_path / "index", tmp_path / "b.tar").copied == 4
    update(tmp_path / "index")
    assert sorted(content(tmp_path / "index")) == [
        f"{tmp_path}/b.tar",
        *(f"{tmp_path}/b.tar::{i}.png" for i in range(4)),
    ]
    write_tar(tmp_path / "b.tar", pictures)
    assert remove(tmp_path / "index", [tmp_path / "b.tar::0.png"]) == 1
    update(tmp_path / "index")
    assert problems(tmp_path / "index") == {}
    assert f"{tmp_path}/b.tar::0.png" not in content(tmp_path / "index")


def test_kinds_the_model_does_not_read_are_counted(build, tmp_path, samples):
    from support.random_model import save_random_model

    model = save_random_model(tmp_path / "model", ("text", "image"))
    for _ in range(2):
        report = build(tmp_path / "index", samples, model=model)
        assert report.left_out == {"audio": 20}
        assert report.problems == []
    assert counts(report) == {"unchanged": 17}


def test_index_of_another_model_is_refused(build, update, words, tmp_path, random_folder):
    from support.random_model import save_random_model

    build(tmp_path / "index", words)
    other = save_random_model(tmp_path / "other", depth=1)
    with pytest.raises(UserError, match=rf"made with another model, {random_folder} \(\w+\), not {other} \(\w+\)"):
        build(tmp_path / "index", words, model=other)
    moved = shutil.copytree(random_folder, tmp_path / "moved")
    build(tmp_path / "index", words, model=moved)
    assert Index.open(tmp_path / "index").model == str(moved)
    shutil.rmtree(moved)
    with pytest.raises(UserError, match=r"no such folder; the index .* was made with .*moved, see --model"):
        update(tmp_path / "index")


def test_index_of_another_preprocessing_is_refused(build, words, tmp_path, monkeypatch):
    build(tmp_path / "index", words)
    monkeypatch.setattr("onepeace.processors.VERSION", "next")
    with pytest.raises(UserError, match=r"another preprocessing, .* \(1\), not .* \(next\).* or use onepeace \d"):
        build(tmp_path / "index", words)


def test_second_writer_is_told(build, words, tmp_path):
    build(tmp_path / "index", words)
    with writing(tmp_path / "index"), pytest.raises(UserError, match="another process is writing to this index"):
        build(tmp_path / "index", words)


def test_nothing_is_made_where_nothing_comes_of_it(build, words, tmp_path, random_folder):
    (tmp_path / "empty").mkdir()
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    for path, reason in {"empty": "$", "table.csv": r"; 1 cannot be read, as .*table.csv::2: no image"}.items():
        with pytest.raises(UsageError, match=f"no image, audio, video or text files in {tmp_path}/{path}{reason}"):
            build(tmp_path / "index", tmp_path / path)
    with pytest.raises(UserError, match="no model 'tinny'"):
        build(tmp_path / "index", words, model="tinny")
    with pytest.raises(UserError, match="not available here"):
        maintain.build(tmp_path / "index", words, str(random_folder), device="banana")
    for change in (maintain.update, lambda folder: check(folder, repair=True)):
        with pytest.raises(UserError, match="no index there"):
            change(tmp_path / "empty")
    assert not [*(tmp_path / "empty").iterdir()]
    assert not (tmp_path / "index").exists()
    with pytest.raises(UserError, match="a folder with other files in it, and no index"):
        build(words, words)
    with pytest.raises(UsageError, match="is a file; name a folder"):
        build(words / "0.txt", words)


def test_build_that_failed_at_its_first_write_can_be_repeated(build, tmp_path, words, monkeypatch):
    """What it leaves does not make the folder somebody else's."""

    def full(*_):
        raise UserError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("onepeace.index.store.write_database", full)
        with pytest.raises(UserError, match="the disk is full"):
            build(tmp_path / "index", words)
    assert counts(build(tmp_path / "index", words)) == {"added": 6}


def test_pipe_that_replaces_a_file_after_the_scan_is_not_waited_for(build, words, tmp_path, monkeypatch):
    real = maintain.scan

    def scan(roots):
        found = real(roots)
        (words / "0.txt").unlink()
        os.mkfifo(words / "0.txt")
        return found

    monkeypatch.setattr(maintain, "scan", scan)
    (problem,) = build(tmp_path / "index", words).problems
    assert (problem.path.name, problem.reason) == ("0.txt", "not a regular file")


def test_table_that_cannot_be_read_any_more_costs_nothing(build, update, words, tmp_path):
    outside = tmp_path / "outside.txt"
    outside.write_text("words that only the table names")
    table = tmp_path / "t.csv"
    table.write_text(f"path,caption\n{outside},a file\n")
    build(tmp_path / "index", words, table)
    table.write_text("path,path\n")
    report = update(tmp_path / "index")
    assert [path for path, _ in report.problems] == [table]
    assert str(outside) in content(tmp_path / "index")


def test_folder_whose_patterns_cannot_be_read_costs_nothing(build, update, words, tmp_path):
    build(tmp_path / "index", words)
    (words / ".onepeaceignore").write_text("!\n")
    report = update(tmp_path / "index")
    assert [path for path, _ in report.problems] == [words]
    assert len(content(tmp_path / "index")) == 6


def test_file_of_the_year_2400_is_indexed(build, update, words, tmp_path):
    os.utime(words / "0.txt", (13_600_000_000, 13_600_000_000))
    assert counts(build(tmp_path / "index", words)) == {"added": 6}
    assert counts(update(tmp_path / "index")) == {"unchanged": 6}


def test_a_wide_model_is_compiled_for_many_new_files(build, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(loading, "COMPILE_FROM", 2)
    monkeypatch.setattr(compiling, "compile_blocks", compiled.append)
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(name)
    texts = [tmp_path / f"{name}.txt" for name in "abc"]
    build(tmp_path / "narrow", *texts)
    assert not compiled
    monkeypatch.setattr(compiling, "MIN_WIDTH", 1)
    build(tmp_path / "index", *texts[:1])
    build(tmp_path / "index", *texts[:2])
    assert not compiled, "one new file each"
    build(tmp_path / "wide", *texts)
    assert len(compiled) == 1


def test_of_two_samples_with_one_key_in_a_shard_the_first_stays(build, tmp_path):
    texts = [(f"{i:03d}.txt", b"text %d" % i) for i in range(600)]  # the first is written before the second is read
    shard = write_tar(tmp_path / "a.tar", [("a.txt", b"words 1"), *texts, ("a.txt", b"words 2")])
    build(tmp_path / "index", shard)
    with Index.open(tmp_path / "index") as index:
        assert [item.caption for item in index.items() if item.path.endswith("::a.txt")] == ["words 1"]


def test_most_files_of_a_folder_that_are_missing_are_kept_once(build, update, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    for i in range(12):
        (disk / f"{i}.txt").write_text(f"words number {i}")
    build(tmp_path / "index", tmp_path)
    unmounted = tmp_path.with_suffix(".unmounted")
    unmounted.mkdir()
    (unmounted / "stray.txt").write_text("written to the folder where the disk is mounted")

    def swap_disk():
        disk.rename(tmp_path.with_suffix(".aside"))
        unmounted.rename(disk)
        tmp_path.with_suffix(".aside").rename(unmounted)

    for _ in range(2):
        swap_disk()
        report = update(tmp_path / "index")
        assert (len(report.kept), report.removed) == (12, 0)
        swap_disk()
        assert counts(update(tmp_path / "index")) == {"unchanged": 12, "removed": 1}
    swap_disk()
    assert len(update(tmp_path / "index").kept) == 12
    assert counts(update(tmp_path / "index")) == {"removed": 12, "unchanged": 1}


def test_folder_that_is_deleted_moved_or_left_out_is_not_kept(build, update, tmp_path):
    for name in ("deleted", "moved", "ignored"):
        (tmp_path / name).mkdir()
        for i in range(12):
            (tmp_path / name / f"{i}.txt").write_text(f"{name} {i}")
    for i in range(60):
        (tmp_path / f"{i}.txt").write_text(f"words {i}")
    build(tmp_path / "index", tmp_path)
    shutil.rmtree(tmp_path / "deleted")
    (tmp_path / "moved").rename(tmp_path / "new name")
    (tmp_path / ".onepeaceignore").write_text("ignored/\n")
    report = update(tmp_path / "index")
    assert (report.kept, report.moved, report.removed) == ([], 12, 24)


def test_file_that_is_too_large_is_not_hashed(build, words, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "LIMITS", {"text": 20})
    monkeypatch.setattr(reading, "_hash", None)
    for path in words.iterdir():
        path.write_text("words above the limit of a text")
    report = build(tmp_path / "index", words)
    assert {problem.reason for problem in report.problems} == {"31 bytes are above the limit of 20"}
