"""What folders, tables and shards mean."""

import json
import os
from contextlib import closing

import pytest
from support.small_shards import write_tar

from onepeace.errors import UsageError, UserError
from onepeace.index.roots import Root, keep_roots, known_roots, roots_of
from onepeace.index.scan import scan
from onepeace.index.shards import read_shard
from onepeace.index.store import Store


def found(*paths, removed=(), exclude=()):
    """{path or its end after the folder: entry}, and the problems."""
    result = scan([*roots_of(paths, exclude), *(Root(path, "removed") for path in removed)])
    return result.entries, result.problems


@pytest.fixture
def tree(tmp_path):
    for name in ("a.jpg", "sub/b.txt", "sub/.hidden.jpg", "sub/c.md", "sub/deep/d.ogg", "my.index/e.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "my.index" / "index.sqlite").touch()
    return tmp_path


def names(entries, folder):
    return [os.path.relpath(path, folder) for path in entries]


def test_folder_gives_its_files_but_no_index_and_nothing_removed(tree):
    (tree / "sub" / "gone.jpg").symlink_to("nothing")
    entries, problems = found(tree)
    assert names(entries, tree) == ["a.jpg", "sub/b.txt", "sub/deep/d.ogg", "sub/gone.jpg"]
    assert problems == []
    assert {entry.item.problem for entry in entries.values()} == {None, "a link to nothing"}
    removed = [str(tree / "sub" / "deep"), str(tree / "a.jpg"), str(tree.parent)]  # the last lies above
    assert names(found(tree, removed=removed)[0], tree) == ["sub/b.txt", "sub/gone.jpg"]
    assert names(found(tree, exclude=["sub/*", "!sub/b.txt"])[0], tree) == ["a.jpg", "sub/b.txt"]


def test_named_file_is_known_by_its_content(tree, samples):
    (tree / "photo.bak").write_bytes((samples / "images" / "dog.jpg").read_bytes())
    entries, problems = found(tree / "photo.bak", tree / "sub" / "c.md", tree / "sub" / ".hidden.jpg")
    assert [(os.path.basename(path), entry.item.modality) for path, entry in entries.items()] == [
        ("photo.bak", "image"),
        (".hidden.jpg", "image"),
    ]
    assert [problem.reason for problem in problems] == ["not a picture, sound or text (unknown file extension '.md')"]


def test_rows_of_a_table(tree):
    rows = [
        {"image": "a.jpg", "audio": "sub/deep/d.ogg", "captions": ["one", " two ", 3], "year": 2001, "none": None},
        {"text": "only \ud800 words", "tags": ["\udfff"], "score": float("nan")},
        {"path": "sub/b.txt", "caption": "a text in a file"},
        {"url": "https://example.org/x.ogg?token=1"},
        {"file_name": "sub/c.md"},
        {"image": "nothing.jpg", "caption": "gone"},
        {"year": 2001},
    ]
    table = tree / "sub" / ".." / "table.jsonl"
    table.write_text("\n".join([*map(json.dumps, rows), "[1]", "{"]))
    entries, problems = found(table)
    assert problems == []
    items = {os.path.relpath(path, tree): entry.item for path, entry in entries.items()}
    image = items["a.jpg"]
    assert (image.modality, image.size, image.caption, image.metadata) == ("image", 1, "one\ntwo", {"year": 2001})
    assert items["sub/deep/d.ogg"].caption == "one\ntwo"
    text = items["table.jsonl::2"]
    assert (text.modality, text.caption, text.metadata) == (
        "text",
        "only \ufffd words",
        {"tags": ["\ufffd"], "score": None},
    )
    assert entries[text.path].value == "only \ud800 words"  # as it is; the model's own rule is for that
    assert (items["sub/b.txt"].modality, items["sub/b.txt"].caption) == ("text", "a text in a file")
    reasons = {path: item.problem for path, item in items.items() if item.problem}
    assert reasons == {
        "table.jsonl::4": "https://example.org/x.ogg: No such file or directory",
        "table.jsonl::5": "sub/c.md: its ending says no kind of file; name the column image or audio in place of "
        "file_name",
        "table.jsonl::6": "nothing.jpg: No such file or directory",
        "table.jsonl::7": "no image, audio, text in this row; it has year",
        "table.jsonl::8": "a JSON list, not an object",
        "table.jsonl::9": "not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))",
    }


def test_what_a_table_says_of_a_file_wins(tree):
    (tree / "table.csv").write_text("image,caption\na.jpg,described\n")
    for paths in ([tree, tree / "table.csv"], [tree / "table.csv", tree]):
        entries, _ = found(*paths)
        assert entries[str(tree / "a.jpg")].item.caption == "described"
        assert len(entries) == 3


def test_table_that_cannot_be_read_is_a_problem_and_others_are_read(tree):
    (tree / "t.CSV").write_text("image\n")
    (tree / "t.csv").write_bytes(b"text\n\xff\n")
    (tree / "u.csv").write_text("text,text\n")
    os.mkfifo(tree / "v.csv")
    tables = [tree / name for name in ("t.CSV", "t.csv", "u.csv", "v.csv")]
    entries, problems = found(*tables, tree / "sub")
    assert problems == [
        (tables[0], "no rows; columns are image, audio, text and any others"),
        (tables[1], "is not UTF-8 (invalid start byte); save it as UTF-8"),
        (tables[2], "two columns are named 'text'"),
        (tables[3], "cannot be read (not a regular file)"),
    ]
    assert len(entries) == 2


def test_row_of_a_wide_table_is_told_in_few_words(tree):
    columns = [f"column{number}" for number in range(80_000)]  # compared with each other, they would take a minute
    (tree / "t.csv").write_text(",".join(columns) + "\n1,2\n" + 79_999 * "," + "1\n")
    entries, _ = found(tree / "t.csv")
    short, lacking = (entry.item.problem for entry in entries.values())
    assert short.startswith("2 cells instead of 80000 (column0, column1, ")
    assert lacking.startswith("no image, audio, text in this row; it has column0, ")
    assert max(len(short), len(lacking)) < 200


def test_patterns_that_cannot_be_read_leave_the_folder_out(tree):
    (tree / "sub" / ".onepeaceignore").write_text("!\n")
    entries, problems = found(tree / "sub", tree / "a.jpg")
    assert [path.name for path, _ in problems] == ["sub"]
    assert [*entries] == [str(tree / "a.jpg")]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("pipe.jpg", "not a regular file"),
        ("/dev/zero", "not a regular file"),
        (".", "not a regular file"),
        ("a\0.jpg", "a NUL"),
        ("a\ud800.jpg", "half of a surrogate pair"),
        (5000 * "a", "File name too long"),
    ],
)
def test_row_that_names_no_file_is_one_problem(tree, value, reason):
    os.mkfifo(tree / "pipe.jpg")
    (tree / "t.jsonl").write_text(f"{json.dumps({'image': value})}\n{json.dumps({'text': 'good'})}\n")
    entries, _ = found(tree / "t.jsonl")
    bad, good = (entry.item for entry in entries.values())
    assert bad.path.endswith("t.jsonl::1")
    assert reason in bad.problem
    assert (good.caption, good.problem) == ("good", None)


def test_time_that_no_database_holds_is_the_last_that_it_does(tree):
    os.utime(tree / "a.jpg", (13_600_000_000, 13_600_000_000))  # in 2400
    entries, _ = found(tree / "a.jpg")
    (entry,) = entries.values()
    assert entry.item.mtime_ns == 2**63 - 1


def test_samples_of_a_shard(tmp_path):
    members = {
        "p/1.jpg": b"picture", "p/1.thumb.ogg": b"sound", "p/1.txt": b"words",
        "2.txt": b"only words", "2.json": b'{"label": "x", "captions": ["a", "b"]}', "3.md": b"none",
        "4.jpg": b"picture", "4.mask.png": b"mask",
    }  # fmt: skip
    shard = write_tar(tmp_path / "s.tar.gz", members)
    entries = {entry.item.path.removeprefix(f"{shard}::"): entry for entry in read_shard(str(shard))}
    values = {path: entry.value() if callable(entry.value) else entry.value for path, entry in entries.items()}
    kinds = {path: (entry.item.modality, values[path], entry.item.caption) for path, entry in entries.items()}
    assert kinds == {
        "p/1.jpg": ("image", b"picture", "words"),
        "p/1.thumb.ogg": ("audio", b"sound", "words"),
        "2.txt": ("text", "a", "a\nb"),
        "4.jpg": ("image", b"picture", None),
        "4.mask.png": ("image", b"mask", None),
    }
    assert entries["2.txt"].item.metadata == {"label": "x"}
    assert values["p/1.jpg"].name == f"{shard}::p/1.jpg"


def test_roots_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a[1].tar", "b-0.tgz", "b-1.tgz", "t.TSV", "x.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "folder.tar").mkdir()
    given = roots_of(["a[1].tar", "b-{0..1}.tgz", "t.TSV", "x.jpg", "folder.tar"], ["*.bmp"])
    kinds = [(os.path.basename(root.path), root.kind, root.exclude) for root in given]
    assert kinds == [
        *(("a[1].tar", "shard", ()), ("b-0.tgz", "shard", ()), ("b-1.tgz", "shard", ()), ("t.TSV", "table", ())),
        *(("x.jpg", "file", ()), ("folder.tar", "folder", ("*.bmp",))),
    ]
    assert all(os.path.isabs(root.path) for root in given)
    odd = Root(os.fsdecode(b"/caf\xe9"), "shard", ("\udce9",))
    with closing(Store.create(tmp_path / "index", 3, {"modalities": "text"})) as store:
        with store.transaction():
            keep_roots(store, [odd, *given])
        assert known_roots(store) == {root.path: root for root in [odd, *given]}
    for path in ("nothing.tar", "nothing.csv", "nothing"):
        with pytest.raises(UsageError, match=f"^{path}: no such file or folder$"):
            roots_of([path])
    with pytest.raises(UserError, match=r"no shard matches c-0.tar; check the pattern$"):
        roots_of(["c-{0..1}.tar"])
