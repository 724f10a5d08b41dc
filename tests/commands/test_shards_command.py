"""`onepeace shards`: from a table or folder to shards that the trainer reads back, and what is refused on the way."""

import json
import shutil
import subprocess
import sys
import tarfile
from contextlib import suppress
from pathlib import Path

import pytest

from onepeace.cli import main
from onepeace.data.shard_writer import ShardWriter, new_shards, older_shards
from onepeace.data.shards import expand, read_source
from onepeace.errors import UserError


@pytest.fixture
def home(tmp_path, samples):
    """A folder with three pictures and two sounds; `out` beside it takes the shards."""
    for name in ("images/dog.jpg", "images/cat.jpg", "images/sea.jpg", "sounds/dog.ogg", "sounds/cat.ogg"):
        path = tmp_path / "home" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(samples / name, path)
    return tmp_path / "home"


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def shards(home):
    """Makes shards of a folder, or of a table that it writes first; returns the exit code."""

    def run(source, text=None, *options, prefix="set"):
        if text is not None:
            write(home / source, text)
        return main(["shards", str(home / source), "-o", str(home.parent / "out" / prefix), *options])

    return run


def read(home, *pair, pattern="set-*.tar"):
    return read_source(pattern, pair or ("image", "text"), home.parent / "out")


def out(home):
    return sorted(path.name for path in (home.parent / "out").iterdir())


# ------------------------------------------------------------------ tables


def test_csv_comes_back_from_the_reader(home, shards, capsys):
    # The first line and the nameless columns are those of spreadsheets.
    rows = 'sep=,\nimage, text ,Label,,\nimages/dog.jpg,"a dog,\n brown", dog ,,\n images/cat.jpg , a cat,,,\n'
    assert shards("captions.csv", rows) == 0
    dog, cat = read(home)
    assert dog.inputs["image"] == (home / "images/dog.jpg").read_bytes()
    assert (dog.captions, dog.label) == (["a dog, brown"], "dog")
    assert (cat.captions, cat.label) == (["a cat"], None)
    assert (dog.key, cat.key) == ("set_00000000", "set_00000001")
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{home.parent}/out/set-*.tar: 2 samples, ")
    assert captured.err == ""


def test_members_are_those_the_readme_names_and_equal_input_gives_equal_bytes(home, shards, tmp_path):
    assert shards("t.csv", "image,text\nimages/dog.jpg,a dog\n") == 0
    path = home.parent / "out/set-00000.tar"
    with tarfile.open(path) as tar:
        names = ["set_00000000.jpg", "set_00000000.json", "set_00000000.txt"]
        assert tar.getnames() == names
        assert json.load(tar.extractfile(names[1])) == {"captions": ["a dog"], "label": None, "source": "t.csv line 2"}
        assert tar.extractfile(names[2]).read() == b"a dog"
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in tar} == {(0, 0, 0, "", "")}
    home.rename(tmp_path / "elsewhere")
    assert main(["shards", str(tmp_path / "elsewhere/t.csv"), "-o", str(tmp_path / "out2/set")]) == 0
    assert (tmp_path / "out2/set-00000.tar").read_bytes() == path.read_bytes()


def test_jsonl_has_lists_of_captions_and_tsv_has_no_quoting(home, shards):
    rows = [
        {"audio": "sounds/dog.ogg", "captions": ["a dog", "barking  loud"]},
        {"audio": "sounds/cat.ogg", "label": 3},
    ]
    assert shards("t.jsonl", "\n\n".join(map(json.dumps, rows))) == 0
    dog, cat = read(home, "audio")
    assert (dog.captions, cat.captions, cat.label) == (["a dog", "barking loud"], [], "3")
    table = '\ufeffimage\taudio\tcaption\nimages/dog.jpg\tsounds/dog.ogg\t"a dog\n'
    assert shards("t.tsv", table, prefix="tab") == 0
    (both,) = read(home, "image", "audio", "text", pattern="tab-*.tar")
    assert both.captions == ['"a dog']
    assert both.inputs["audio"] == (home / "sounds/dog.ogg").read_bytes()


BAD_ROWS = {
    "images/none.jpg,a dog,": "none.jpg: no such file",
    "images,a dog,": "images: is a folder",
    "captions.csv,a dog,": "unknown file extension '.csv'",
    "https://example.org/a.jpg,a dog,": "is an address",
    ",a dog,": "has no image and no audio",
    "images/dog.jpg,,": "has no caption and no label for its image",
    "images/dog.jpg,a dog": "2 cells instead of 3 (image, text, label)",
    '"images/dog.jpg"x,a dog,': "cannot be read (",
    "images/empty.jpg,a dog,": "the file is empty",
}


def test_bad_rows_are_named_with_their_line_and_the_others_written(home, shards, capsys):
    write(home / "images/empty.jpg", "")
    lines = ["image,text,label", "images/cat.jpg,a cat,", *BAD_ROWS, 'images/sea.jpg,"the\nsea",', "images/gone.jpg,x,"]
    assert shards("captions.csv", "\n".join(lines) + "\n") == 1
    assert [sample.captions for sample in read(home)] == [["a cat"], ["the sea"]]
    first, *named = capsys.readouterr().err.splitlines()
    assert first == f"onepeace: {len(BAD_ROWS) + 1} skipped, 2 written:"
    table = home / "captions.csv"
    for number, (line, reason) in enumerate(zip(named, BAD_ROWS.values(), strict=False), 3):
        assert line.startswith(f"  {table} line {number}: ")
        assert reason in line
    # the row before spans two lines
    assert named[-1].startswith(f"  {table} line {3 + len(BAD_ROWS) + 2}: ")


BAD_JSON = {
    "{": "not JSON",
    '{"image": 3, "text": "x"}': "image is 3, not a path",
    '{"image": "images/dog.jpg", "text": ["a", 1]}': "text is 1, not",
    '{"image": "images/dog.jpg", "text": "\\ud800"}': "text is not Unicode text",
}


def test_bad_rows_of_a_jsonl(home, shards, capsys):
    assert shards("t.jsonl", "\n".join([*BAD_JSON, '{"image": "images/dog.jpg", "text": "a dog"}'])) == 1
    assert [sample.captions for sample in read(home)] == [["a dog"]]
    err = capsys.readouterr().err
    for number, reason in enumerate(BAD_JSON.values(), 1):
        assert f"t.jsonl line {number}: {reason}" in err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"image,text\na.jpg,\xe9\n", "is not UTF-8"),
        ("t.csv", b"image,text\n", "has no rows"),
        ("t.csv", b"image,text,text\na,b,c\n", "two columns are named 'text'"),
        ("t.csv", b"images/dog.jpg,a dog\nb.jpg,a cat\n", "no column image or audio; it has images/dog.jpg"),
        ("t.csv", b"sep=;\nimage;text\na,b.jpg;a cat\n", "its columns are separated by ';'"),
        ("t.xlsx", b"PK", "unknown file extension '.xlsx'"),
        ("t.csv", b"image,text\nnone.jpg,x\n", "nothing in it can be used; nothing was written"),
    ],
)
def test_a_table_that_cannot_be_used_is_one_line(home, shards, capsys, name, content, message):
    (home / name).write_bytes(content)
    assert shards(name) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"onepeace: {home / name}: {message}")
    assert out(home) == []


# ------------------------------------------------------------------ folders


def test_folder_with_captions_beside_the_files(home, shards, capsys):
    for name in ("dog.jpg", "dog.ogg", "cat.jpg", "sea.jpg"):
        (home / ("sounds" if name.endswith("ogg") else "images") / name).rename(home / name)
    shutil.copy(home / "dog.jpg", home / "dog.png")
    write(home / "dog.TXT", "a dog\n\n it barks \n")
    write(home / "cat.txt", " \n")
    assert shards("") == 1
    (dog,) = read(home, "image", "audio", "text")
    assert dog.captions == ["a dog", "it barks"]
    err = capsys.readouterr().err
    assert f"{home}/cat.jpg: has no caption: cat.txt is empty" in err
    assert f"{home}/sea.jpg: has no caption: there is no sea.txt" in err
    assert f"{home}/dog.png: dog.jpg " in err


def test_folder_names_as_labels_and_links_are_followed(home, shards, capsys):
    shutil.copy(home / "images/dog.jpg", home / "stray.jpg")
    outside = home.parent / "outside"
    outside.mkdir()
    (home / "images/cat.jpg").rename(outside / "cat.jpg")
    (home / "images/cat.jpg").symlink_to(outside / "cat.jpg")
    (home / "cats").symlink_to(outside)
    (outside / "loop").symlink_to(home)
    assert shards("") == 1
    pictures = [(sample.label, sample.captions) for sample in read(home, "image")]
    assert pictures == [("images", [])] * 3 + [("cats", [])]
    assert {sample.label for sample in read(home, "audio")} == {"sounds"}
    assert "stray.jpg: has no .txt " in capsys.readouterr().err


# ------------------------------------------------------------------ options


def test_a_shard_ends_before_it_is_too_large(tmp_path):
    with new_shards(tmp_path, "x", max_bytes=10) as writer:
        for i, size in enumerate((6, 4, 1, 30, 1)):
            writer.write(f"k{i}", {"jpg": bytes(size)}, ["c"])
    counts = []
    for path in writer.paths:
        with tarfile.open(path) as tar:
            counts.append(len(tar.getnames()) // 3)
    assert counts == [2, 1, 1, 1]


def test_older_shards_are_replaced_only_by_force(home, shards, capsys):
    older = write(home.parent / "out/set-00003.tar.gz", "older")
    write(home.parent / "out/set-00000.tar", "older")
    other = write(home.parent / "out/set-other-00000.tar", "another set")
    assert shards("t.csv", "image,text\nimages/dog.jpg,a\n") == 2
    assert "set-00000.tar already exists" in capsys.readouterr().err
    assert older.read_text() == "older"
    assert shards("t.csv", None, "--force") == 0
    assert out(home) == ["set-00000.tar", other.name]
    # nothing usable: the older ones stay
    assert shards("u.csv", "image,text\nnone.jpg,a\n", "--force") == 1
    assert out(home) == ["set-00000.tar", other.name]


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("t.csv", ("--shard-size", "0"), "argument --shard-size: '0' is not a whole number of at least 1"),
        ("t.csv", ("-o", "out/a b"), "prefix 'a b' must be"),
        ("t.csv", ("-o", "."), ".: is a folder; add the shards' prefix"),
        ("t.csv", ("b.csv",), "b.csv: one SOURCE at a time"),
    ],
)
def test_wrong_usage(home, shards, capsys, source, options, message):
    write(home / "t.csv", "image,text\n")
    assert shards(source, None, *options) == 2
    assert capsys.readouterr().err.startswith(f"onepeace: {message}")


# ------------------------------------------------------------------ the writer, and an end before the end


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_leaves_no_shard(tmp_path):
    def write_all():
        with new_shards(tmp_path, "x", max_bytes=1) as writer:
            (folder,) = tmp_path.glob(".shards-*")
            (folder / "x-00001.tar").symlink_to("/dev/full")
            writer.write("a", {"jpg": b"1"}, ["c"])
            writer.write("b", {"jpg": bytes(1 << 20)}, ["c"])

    write(tmp_path / "x-00000.tar", "older")
    with pytest.raises(UserError, match=r"x-\*\.tar: cannot be written \(No space left on device\)"):
        write_all()
    assert [path.name for path in tmp_path.iterdir()] == ["x-00000.tar"]
    assert (tmp_path / "x-00000.tar").read_text() == "older"


def test_an_error_of_the_caller_stays_as_it_is(tmp_path):
    with pytest.raises(FileNotFoundError), new_shards(tmp_path, "x") as writer:
        writer.write("a", {"jpg": (tmp_path / "not there.jpg").read_bytes()}, ["c"])
    assert not list(tmp_path.iterdir())


def test_ctrl_c_leaves_the_older_shards(home, shards, monkeypatch, capsys):
    older = write(home.parent / "out/set-00000.tar", "older")
    original = ShardWriter.write

    def stopped(self, *arguments, **fields):
        if self.count == 2:
            raise KeyboardInterrupt
        return original(self, *arguments, **fields)

    monkeypatch.setattr(ShardWriter, "write", stopped)
    assert shards("t.csv", "image,text\n" + "images/dog.jpg,a\n" * 50, "--force") == 130
    assert capsys.readouterr().err.startswith("onepeace: stopped; nothing was written")
    assert out(home) == ["set-00000.tar"]
    assert older.read_text() == "older"


REPLACE = """
import os, sys
from pathlib import Path
from onepeace.data.shard_writer import new_shards
count = 0
def counted(function):
    def call(*arguments, **options):
        global count
        count += 1
        if count > int(sys.argv[2]):
            os._exit(9)
        return function(*arguments, **options)
    return call
import webdataset
for name in ("mkdir", "rename", "replace", "rmdir", "unlink"):
    setattr(os, name, counted(getattr(os, name)))
with new_shards(Path(sys.argv[1]), "x", max_bytes=10) as writer:
    for number in range(3):
        writer.write(f"new{number}", {"jpg": bytes(8)}, ["c"])
os._exit(0)
"""


@pytest.mark.parametrize("steps", [*range(0, 16, 3), 50])
def test_replacing_killed_at_any_step_leaves_one_set(tmp_path, steps):
    with new_shards(tmp_path, "x", max_bytes=10) as writer:
        for number in range(5):
            writer.write(f"old{number}", {"jpg": bytes(8)}, ["c"])
    write(tmp_path / "y-00000.tar", "another set")
    subprocess.run([sys.executable, "-c", REPLACE, str(tmp_path), str(steps)], check=False)

    def keys():
        return [name.partition(".")[0] for path in expand("x-*.tar", tmp_path) for name in members(path)]

    with suppress(UserError):  # or it says that the set is not whole
        assert set(keys()) in ({f"old{i}" for i in range(5)}, {f"new{i}" for i in range(3)})
    older_shards(tmp_path, "x")
    assert set(keys()) in ({f"old{i}" for i in range(5)}, {f"new{i}" for i in range(3)})
    with new_shards(tmp_path, "x") as writer:
        writer.write("newest", {"jpg": b"1"}, ["c"])
    assert set(keys()) == {"newest"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x-00000.tar", "y-00000.tar"]


def members(path):
    with tarfile.open(path) as tar:
        return tar.getnames()


def test_folder_of_a_process_that_still_writes_stays(tmp_path):
    with new_shards(tmp_path, "x") as writer:
        with new_shards(tmp_path, "y") as other:
            other.write("b", {"jpg": b"1"}, ["c"])
        writer.write("a", {"jpg": b"1"}, ["c"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x-00000.tar", "y-00000.tar"]


def test_keys_the_reader_would_take_apart_are_refused_and_equal_ones_left_out(tmp_path):
    with new_shards(tmp_path, "x") as writer:
        for key in ("a.b", "a/b", "k" * 96):
            with pytest.raises(ValueError, match="a key has no dot"):
                writer.write(key, {"jpg": b"1"}, ["c"])
        assert writer.write("a", {"jpg": b"1"}, ["c"], targets={"label": "dog", "age": 3}, about={"owner": "me"})
        assert not writer.write("a", {"jpg": b"2"}, ["c"])
    (sample,) = read_source("x-00000.tar", ("image", "text"), tmp_path)
    assert (sample.inputs["image"], sample.targets) == (b"1", {"label": "dog", "age": 3})
