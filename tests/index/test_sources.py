"""What folders, tables and shards mean."""

import json
import os
from contextlib import closing

import pytest
from support.small_shards import write_tar

from onepeace.errors import UserError
from onepeace.index.database import Store
from onepeace.index.scan import scan
from onepeace.index.sources import Root, keep_roots, known_roots, read_shard, roots_of

NAMES = (
    "a.jpg",
    "sub/b.txt",
    "sub/.hidden.jpg",
    "sub/c.xyz",
    "sub/deep/d.ogg",
    "my.index/e.jpg",
    "my.index/index.sqlite",
)


@pytest.fixture
def tree(tmp_path):
    """A folder with files, an index among them."""
    for name in NAMES:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path


def entries_of(*paths):
    return scan(roots_of(paths)).entries


def items_below(folder, *roots):
    """Items of a scan by their paths below a folder."""
    entries = scan(roots).entries
    return {os.path.relpath(path, folder): entry.item for path, entry in entries.items()}


def test_folder_gives_its_files_but_no_index(tree):
    (tree / "sub" / "gone.jpg").symlink_to("nothing")

    items = items_below(tree, *roots_of([tree]))

    assert " ".join(items) == "a.jpg sub/b.txt sub/deep/d.ogg sub/gone.jpg"
    assert items["sub/gone.jpg"].problem == "a link to nothing"
    assert items["a.jpg"].problem is None


def test_folder_without_what_was_removed(tree):
    paths = [tree / "sub" / "deep", tree / "a.jpg", tree.parent]  # the last lies above
    removed = [Root(str(path), "removed") for path in paths]

    assert [*items_below(tree, *roots_of([tree]), *removed)] == ["sub/b.txt"]


def test_named_file_is_known_by_its_content(tree, samples):
    (tree / "photo.bak").write_bytes((samples / "images" / "dog.jpg").read_bytes())
    roots = roots_of([tree / "photo.bak", tree / "sub" / "c.xyz", tree / "sub" / ".hidden.jpg"])

    (problem,) = scan(roots).problems

    items = items_below(tree, *roots)
    assert " ".join(items) == "photo.bak sub/.hidden.jpg"
    assert items["photo.bak"].kind == items["sub/.hidden.jpg"].kind == "image"
    assert "'.xyz'" in problem.reason


def write_rows(path, *rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_rows_with_files(tree):
    write_rows(
        tree / "table.jsonl",
        {
            "image": "a.jpg",
            "audio": "sub/deep/d.ogg",
            "captions": ["one", " two ", 3],
            "year": 2001,
            "none": None,
        },
        {"path": "sub/b.txt", "caption": "a text in a file"},
    )

    items = items_below(tree, *roots_of([tree / "sub" / ".." / "table.jsonl"]))

    picture = items["a.jpg"]
    assert (picture.kind, picture.size) == ("image", 1)
    assert picture.metadata == {"year": 2001}
    assert picture.caption == items["sub/deep/d.ogg"].caption == "one\ntwo"
    assert (items["sub/b.txt"].kind, items["sub/b.txt"].caption) == ("text", "a text in a file")


def test_row_of_a_text_may_hold_half_characters_and_nan(tree):
    words = "only \ud800 words"
    table = write_rows(
        tree / "table.jsonl",
        {
            "text": words,
            "tags": ["\udfff"],
            "score": float("nan"),
        },
    )

    (entry,) = entries_of(table).values()

    assert entry.item.path == f"{table}::1"
    assert entry.item.kind == "text"
    assert entry.item.caption == "only \ufffd words"
    assert entry.item.metadata == {"tags": ["\ufffd"], "score": None}
    assert entry.value == words  # as it is; the model's own rule is for that


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('{"url": "https://example.org/x.ogg?token=1"}', ["https://example.org/x.ogg:", "No such file"]),
        ('{"file_name": "sub/c.xyz"}', ["sub/c.xyz", "file_name"]),
        ('{"year": 2001}', ["no image", "it has year"]),
        ("{", ["not JSON"]),
        ('{"image": "pipe.jpg"}', ["not a regular file"]),
        (r'{"image": "a\u0000.jpg"}', ["NUL"]),
        (json.dumps({"image": 5000 * "a"}), ["too long"]),
    ],
)
def test_row_that_names_no_file_is_one_problem(tree, row, words):
    os.mkfifo(tree / "pipe.jpg")
    table = tree / "t.jsonl"
    table.write_text(f'{row}\n{{"text": "words"}}\n')

    broken, whole = (entry.item for entry in entries_of(table).values())

    assert broken.path == f"{table}::1"
    for word in words:
        assert word in broken.problem
    assert "token" not in broken.problem
    assert (whole.caption, whole.problem) == ("words", None)


def test_caption_of_a_table_wins(tree):
    (tree / "table.csv").write_text("image,caption\na.jpg,described\n")

    for paths in ([tree, tree / "table.csv"], [tree / "table.csv", tree]):
        entries = entries_of(*paths)
        assert entries[str(tree / "a.jpg")].item.caption == "described"
        assert len(entries) == 3


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("t.CSV", b"image\n", "no rows"),
        ("v.csv", None, "not a regular file"),
    ],
)
def test_table_that_cannot_be_read_is_a_problem(tree, name, content, word):
    if content is None:
        os.mkfifo(tree / name)
    else:
        (tree / name).write_bytes(content)

    scanned = scan(roots_of([tree / name, tree / "sub"]))

    (problem,) = scanned.problems
    assert problem.path == tree / name
    assert word in problem.reason
    assert len(scanned.entries) == 2


def test_samples_of_a_shard(tmp_path):
    members = {
        "p/1.jpg": b"picture",
        "p/1.thumb.ogg": b"sound",
        "p/1.txt": b"words",
        "2.txt": b"only words",
        "2.json": b'{"label": "x", "captions": ["a", "b"]}',
        "3.xyz": b"none",
        "4.jpg": b"picture",
        "4.mask.png": b"mask",
    }
    shard = write_tar(tmp_path / "s.tar.gz", members)

    entries = {entry.item.path.removeprefix(f"{shard}::"): entry for entry in read_shard(str(shard))}

    values = {}
    for key, entry in entries.items():
        value = entry.value() if callable(entry.value) else entry.value
        values[key] = (entry.item.kind, value, entry.item.caption)
    assert values == {
        "p/1.jpg": ("image", b"picture", "words"),
        "p/1.thumb.ogg": ("audio", b"sound", "words"),
        "2.txt": ("text", "a", "a\nb"),
        "4.jpg": ("image", b"picture", None),
        "4.mask.png": ("image", b"mask", None),
    }
    assert entries["2.txt"].item.metadata == {"label": "x"}
    assert entries["p/1.jpg"].value().name == f"{shard}::p/1.jpg"


@pytest.mark.parametrize(
    ("typed", "paths", "kind", "exclude"),
    [
        ("a[1].tar", ["a[1].tar"], "shard", ()),
        ("b-{0..1}.tgz", ["b-0.tgz", "b-1.tgz"], "shard", ()),
        ("t.TSV", ["t.TSV"], "table", ()),
        ("x.jpg", ["x.jpg"], "file", ()),
        ("folder.tar", ["folder.tar"], "folder", ("*.bmp",)),
    ],
)
def test_roots_are_told_apart(tmp_path, monkeypatch, typed, paths, kind, exclude):
    monkeypatch.chdir(tmp_path)
    for name in ("a[1].tar", "b-0.tgz", "b-1.tgz", "t.TSV", "x.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "folder.tar").mkdir()

    roots = roots_of([typed], ["*.bmp"])

    assert roots == [Root(str(tmp_path / path), kind, exclude) for path in paths]


def test_roots_are_kept(tmp_path):
    roots = [
        Root(os.fsdecode(b"/caf\xe9"), "shard", ("\udce9",)),
        Root("/a", "folder", ("*.bmp",)),
    ]

    with closing(Store.create(tmp_path / "index", 3, {"modalities": "text"})) as store:
        with store.transaction():
            keep_roots(store, roots)
        assert known_roots(store) == {root.path: root for root in roots}


@pytest.mark.parametrize(("path", "word"), [("nothing.tar", "nothing"), ("c-{0..1}.tar", r"c-0\.tar")])
def test_root_that_is_not_there(path, word):
    with pytest.raises(UserError, match=word):
        roots_of([path])
