"""`onepeace shards`: from a table or folder to shards that the trainer reads back, and what is refused on the way."""

import json
import os
import shutil
import tarfile
from contextlib import nullcontext
from pathlib import Path

import pytest

from onepeace.data.source import expand, read_source
from onepeace.data.write import new_shards
from onepeace.errors import UserError
from onepeace.index.sources import modalities_by_suffix, read_rows


@pytest.fixture
def home(tmp_path, samples):
    """A folder with three pictures and two sounds."""
    for name in ("images/dog.jpg", "images/cat.jpg", "images/sea.jpg", "sounds/dog.ogg", "sounds/cat.ogg"):
        path = tmp_path / "home" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(samples / name, path)
    return tmp_path / "home"


@pytest.fixture
def out(tmp_path):
    """The folder of the shards."""
    return tmp_path / "out"


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def shards(home, out, run):
    """Makes shards of the folder, or of a table in it that is written first; returns `out` and `err`."""

    def call(source, text=None, *options, code=0):
        if text is not None:
            write(home / source, text)
        return run("shards", home / source, "-o", out / "set", *options, code=code)

    return call


@pytest.fixture
def read(out):
    """The samples of those shards, as the trainer reads them."""
    return lambda *modalities: read_source("set-*.tar", modalities or ("image", "text"), out)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# ------------------------------------------------------------------ tables


def test_csv_comes_back_from_the_reader(home, out, shards, read):
    # The first line and the nameless columns are those of spreadsheets.
    rows = 'sep=,\nimage, text ,Label,,\nimages/dog.jpg,"a dog,\n brown", dog ,,\n images/cat.jpg , a cat,,,\n'
    stdout, stderr = shards("captions.csv", rows)

    assert stdout.startswith(f"{out}/set-*.tar: 2 samples, ")
    assert stderr == ""
    dog, cat = read()
    assert dog.key == "set_00000000"
    assert dog.inputs["image"] == (home / "images/dog.jpg").read_bytes()
    assert dog.captions == ["a dog, brown"]
    assert dog.label == "dog"
    assert cat.key == "set_00000001"
    assert cat.captions == ["a cat"]
    assert cat.label is None


def test_jsonl_has_lists_of_captions_and_numbers_as_labels(shards, read):
    dog = {"audio": "sounds/dog.ogg", "captions": ["a dog", "barking  loud"]}
    cat = {"audio": "sounds/cat.ogg", "label": 3}
    shards("t.jsonl", f"{json.dumps(dog)}\n\n{json.dumps(cat)}")
    dog, cat = read("audio")
    assert dog.captions == ["a dog", "barking loud"]
    assert cat.captions == []
    assert cat.label == "3"


@pytest.mark.parametrize("column", ["file_name", "Path"])
def test_file_is_known_by_its_ending_as_in_an_index(home, shards, read, column):
    shards("t.csv", f"{column},caption,taken by\nimages/dog.jpg,a dog,Ann\nsounds/cat.ogg,a cat,Ben\n")
    (dog,) = read("image", "text")
    (cat,) = read("audio", "text")
    assert (dog.captions, cat.captions) == (["a dog"], ["a cat"])
    entries = list(read_rows(home / "t.csv", modalities_by_suffix()))
    assert [entry.item.path for entry in entries] == [str(home / "images/dog.jpg"), str(home / "sounds/cat.ogg")]
    assert [entry.item.caption for entry in entries] == ["a dog", "a cat"]
    assert entries[0].item.metadata == {"taken by": "Ann"}


UNUSABLE_ROWS = {
    "images/none.jpg,a dog,": "none.jpg: no such file",
    "captions.csv,a dog,": "unknown file extension '.csv'",
    "https://example.org/a.jpg,a dog,": "is an address",
    ",a dog,": "has no image and no audio",
    "images/dog.jpg,a dog": "2 cells instead of 3 (image, text, label)",
    '"images/dog.jpg"x,a dog,': "cannot be read (",
    "images/empty.jpg,a dog,": "the file is empty",
}


def test_unusable_rows_are_named_with_their_line(home, shards, read):
    """The row before the last spans two lines."""
    write(home / "images/empty.jpg", "")
    lines = [
        "image,text,label",
        "images/cat.jpg,a cat,",
        *UNUSABLE_ROWS,
        'images/sea.jpg,"the\nsea",',
        "images/gone.jpg,x,",
    ]
    header, *messages = shards("captions.csv", "\n".join(lines) + "\n", code=1).err.splitlines()

    assert [sample.captions for sample in read()] == [["a cat"], ["the sea"]]
    assert "8 skipped, 2 written" in header
    numbers_and_reasons = list(enumerate(UNUSABLE_ROWS.values(), 3))
    numbers_and_reasons.append((12, "gone.jpg"))
    for message, (number, reason) in zip(messages, numbers_and_reasons, strict=True):
        assert message.startswith(f"  {home / 'captions.csv'} line {number}: ")
        assert reason in message


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{", "not JSON"),
        ('{"image": 3, "text": "x"}', "image is 3, not a path"),
        ('{"image": "images/dog.jpg", "text": "\\ud800"}', "text is not Unicode text"),
    ],
)
def test_unusable_row_of_a_jsonl(shards, read, row, reason):
    err = shards("t.jsonl", row + '\n{"image": "images/dog.jpg", "text": "a dog"}', code=1).err
    assert f"t.jsonl line 1: {reason}" in err
    assert [sample.captions for sample in read()] == [["a dog"]]


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("t.csv", b"image,text\na.jpg,\xe9\n", "UTF-8"),
        ("t.csv", b"image,text,text\na,b,c\n", "'text'"),
        ("t.csv", b"images/dog.jpg,a dog\nb.jpg,a cat\n", "images/dog.jpg"),
        ("t.xlsx", b"PK", "'.xlsx'"),
        ("t.csv", b"image,text\nnone.jpg,x\n", "nothing was written"),
    ],
)
def test_unusable_table_is_named(home, out, shards, name, content, word):
    (home / name).write_bytes(content)
    err = shards(name, code=1).err
    last_line = err.splitlines()[-1]
    assert last_line.startswith(f"onepeace: {home / name}: ")
    assert word in last_line.removeprefix(f"onepeace: {home / name}: ")
    assert names(out) == []


# ------------------------------------------------------------------ folders


def test_folder_with_captions_beside_the_files(home, shards, read):
    for name in ("images/dog.jpg", "sounds/dog.ogg", "images/cat.jpg", "images/sea.jpg"):
        (home / name).rename(home / Path(name).name)
    shutil.copy(home / "dog.jpg", home / "dog.png")
    write(home / "dog.TXT", "a dog\n\n it barks \n")
    write(home / "cat.txt", " \n")

    err = shards("", code=1).err

    (dog,) = read("image", "audio", "text")
    assert dog.captions == ["a dog", "it barks"]
    assert f"{home}/cat.jpg: has no caption: cat.txt is empty" in err
    assert f"{home}/sea.jpg: has no caption: there is no sea.txt" in err
    assert f"{home}/dog.png: dog.jpg " in err


def test_folder_names_as_labels_and_links_are_followed(home, tmp_path, shards, read):
    shutil.copy(home / "images/dog.jpg", home / "stray.jpg")
    (home / "images/cat.jpg").rename(tmp_path / "cat.jpg")
    (home / "images/cat.jpg").symlink_to(tmp_path / "cat.jpg")

    err = shards("", code=1).err

    samples = read("image")
    assert [sample.label for sample in samples] == ["images"] * 3
    assert [sample.captions for sample in samples] == [[]] * 3
    assert {sample.label for sample in read("audio")} == {"sounds"}
    assert "stray.jpg: has no .txt " in err


# ------------------------------------------------------------------ options


ROW = "image,text\nimages/dog.jpg,a\n"


@pytest.fixture
def older(out):
    """Shards of an earlier call, and those of another set."""
    write(out / "set-00003.tar.gz", "older")
    write(out / "set-00000.tar", "older")
    write(out / "set-other-00000.tar", "another set")
    return out


def test_older_shards_are_replaced_only_by_force(older, shards):
    assert "set-00000.tar already exists" in shards("t.csv", ROW, code=2).err
    assert (older / "set-00003.tar.gz").read_text() == "older"
    shards("t.csv", ROW, "--force")
    assert names(older) == ["set-00000.tar", "set-other-00000.tar"]


@pytest.mark.parametrize(
    ("options", "beginning", "word"),
    [
        (("-o", "out/a b"), "prefix 'a b'", "must be"),
        (("b.csv",), "b.csv: ", "one SOURCE"),
    ],
)
def test_wrong_options_are_named(shards, options, beginning, word):
    err = shards("t.csv", "image,text\n", *options, code=2).err
    assert err.startswith(f"onepeace: {beginning}")
    assert word in err


# ------------------------------------------------------------------ the writer, and an end before the end


def write_samples(folder, name, *keys, content=b"1", **options):
    with new_shards(folder, name, **options) as writer:
        for key in keys:
            writer.write(key, {"jpg": content}, ["c"])


def members(path):
    with tarfile.open(path) as tar:
        return tar.getnames()


def test_writer_ends_a_shard_before_it_is_too_large(tmp_path):
    with new_shards(tmp_path, "x", max_bytes=10) as writer:
        for i, size in enumerate((6, 4, 1, 30, 1)):
            writer.write(f"k{i}", {"jpg": bytes(size)}, ["c"])
    num_samples = [len(members(path)) // 3 for path in writer.paths]
    assert num_samples == [2, 1, 1, 1]


def test_writer_leaves_out_equal_keys(tmp_path):
    with new_shards(tmp_path, "x") as writer:
        assert writer.write("a", {"jpg": b"1"}, ["c"], targets={"label": "dog", "age": 3})
        assert not writer.write("a", {"jpg": b"2"}, ["c"])
    (sample,) = read_source("x-00000.tar", ("image", "text"), tmp_path)
    assert sample.inputs["image"] == b"1"
    assert sample.targets == {"label": "dog", "age": 3}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_writer_on_a_full_disk_leaves_the_older_shards(tmp_path):
    def write_all():
        with new_shards(tmp_path, "x", max_bytes=1) as writer:
            (folder,) = tmp_path.glob(".onepeace-shards-*")
            (folder / "x-00001.tar").symlink_to("/dev/full")
            writer.write("a", {"jpg": b"1"}, ["c"])
            writer.write("b", {"jpg": bytes(1 << 20)}, ["c"])

    write(tmp_path / "x-00000.tar", "older")
    with pytest.raises(UserError, match=r"x-\*\.tar: .*No space left"):
        write_all()
    assert names(tmp_path) == ["x-00000.tar"]
    assert (tmp_path / "x-00000.tar").read_text() == "older"


class Killed(BaseException):
    """Stands for the end of the process: nothing on the disk changes any more."""


@pytest.fixture
def kill_after(monkeypatch):
    """Ends the process, as the disk sees it, after so many changes of files and folders."""

    def arrange(steps):
        count = 0

        def counted(function):
            def call(*arguments, **options):
                nonlocal count
                count += 1
                if count > steps:
                    raise Killed
                return function(*arguments, **options)

            return call

        for name in ("mkdir", "rename", "replace", "rmdir", "unlink"):
            monkeypatch.setattr(os, name, counted(getattr(os, name)))

    return arrange


def keys_of_shards(folder):
    keys = set()
    for path in expand("x-*.tar", folder):
        keys |= {name.partition(".")[0] for name in members(path)}
    return keys


NUM_STEPS = 13
"""Folders are made, five older shards are deleted, three are moved, the mark is removed."""


@pytest.mark.parametrize("steps", [0, 3, 6, 9, 11, NUM_STEPS])
def test_replacing_killed_at_any_step_leaves_one_set_or_none_that_is_read(tmp_path, monkeypatch, kill_after, steps):
    write_samples(tmp_path, "x", *(f"old{i}" for i in range(5)), content=bytes(8), max_bytes=10)
    write(tmp_path / "y-00000.tar", "another set")

    kill_after(steps)
    with pytest.raises(Killed) if steps < NUM_STEPS else nullcontext():
        write_samples(tmp_path, "x", *(f"new{i}" for i in range(3)), content=bytes(8), max_bytes=10)
    monkeypatch.undo()

    if steps in (0, NUM_STEPS):
        kind, count = ("new", 3) if steps else ("old", 5)
        assert keys_of_shards(tmp_path) == {f"{kind}{i}" for i in range(count)}
    else:
        with pytest.raises(UserError, match=r"x-\*\.tar: are being replaced, or that was cut off"):
            keys_of_shards(tmp_path)
    write_samples(tmp_path, "x", "newest")
    assert keys_of_shards(tmp_path) == {"newest"}
    assert names(tmp_path) == ["x-00000.tar", "y-00000.tar"]
