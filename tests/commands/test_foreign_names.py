"""Names given by others: none brings control characters to a terminal, and files with names like ours stay."""

import shutil

import pytest
import torch

EVIL = "a\x1b[2J\x1b]0;title\x07\r\u202eb"


@pytest.fixture(scope="module")
def evil(samples, random_folder, tmp_path_factory):
    """A folder of a picture, tables, a checkpoint, a recipe and a model folder with such names in and on them."""
    folder = tmp_path_factory.mktemp("evil") / EVIL
    folder.mkdir()
    shutil.copy(samples / "images/dog.jpg", folder / f"{EVIL}.jpg")
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "t.csv").write_text(f"image,text\n{EVIL}.jpg,a dog\n{EVIL}.png,gone\n", newline="")
    (folder / "columns.jsonl").write_text('{"a\\u001b[2Jb": "x"}\n')
    torch.save({"model": {EVIL: torch.zeros(1)}}, folder / "tensors.pt")
    (folder / "r.yaml").write_text('"a\\e[2Jb": 1\n')
    model = shutil.copytree(random_folder, folder / "model")
    with open(model / "config.yaml", "a") as file:
        file.write('"a\\e[2Jb": 1\n')
    return folder


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("search FOLDER EVIL --no-index MODEL", 1),
        ("search FOLDER --text x --where EVIL", 2),
        ("index build OUT FOLDER MODEL", 1),
        ("index build OUT FOLDER/columns.jsonl MODEL", 2),
        ("embed FOLDER -o OUT.npz MODEL", 1),
        ("classify FOLDER --labels EVIL,b MODEL", 1),
        ("explain FOLDER EVIL MODEL", 1),
        ("shards FOLDER/t.csv -o OUT/set", 1),
        ("finetune FOLDER/t.csv -o OUT", 1),
        ("train FOLDER/r.yaml", 1),
        ("convert FOLDER/tensors.pt -o OUT", 1),
        ("export FOLDER/model -o OUT", 1),
        ("info FOLDER/model", 1),
        ("--import EVIL.py info tiny", 2),
        ("doctor --EVIL", 2),
    ],
)
def test_no_control_character_is_printed(run, random_folder, evil, tmp_path, line, code):
    places = {"FOLDER": str(evil), "OUT": str(tmp_path / EVIL), "EVIL": EVIL}
    arguments = []
    for word in line.split():
        if word == "MODEL":
            arguments += ["--model", random_folder, "--device", "cpu"]
        else:
            for name, place in places.items():
                word = word.replace(name, place)
            arguments.append(word)
    out, err = run(*arguments, code=code)
    assert err
    assert [letter for letter in out + err if not letter.isprintable() and letter != "\n"] == []


@pytest.mark.parametrize(
    ("name", "arguments", "code"),
    [
        (".nope.backup.part", ("embed", "--text", "a", "-o", "v.npz", "--model", "./nope"), 2),
        (".work.npz.mybackup.tmp", ("embed", "--text", "a", "-o", "work.npz"), 0),
        (".gone.2025.old", ("info", "./gone"), 2),
        (".x.index.old", ("index", "stats", "x.index"), 2),
    ],
)
def test_files_named_like_leftovers_stay(run, run_model, tmp_path, monkeypatch, name, arguments, code):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.txt").write_text("three years of work")
    call = run_model if code == 0 else run
    call(*arguments, code=code)
    assert (tmp_path / name / "thesis.txt").exists()
