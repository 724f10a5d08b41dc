"""`onepeace caption`, `answer` and `ground`: what is printed of pictures, and of files that are none."""

import json

import pytest
from PIL import Image
from support.generative import save_small_ofa

import onepeace
from onepeace.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_small_ofa(tmp_path_factory.mktemp("ofa") / "model")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, samples):
    folder = tmp_path_factory.mktemp("pictures")
    for name in ("cat.jpg", "bus.jpg"):
        (folder / name).write_bytes((samples / "images" / name).read_bytes())
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (folder / "notes.txt").write_text("left out", encoding="utf-8")
    return folder


@pytest.fixture
def run(folder, capsys):
    def command(*arguments):
        code = main([*map(str, arguments), "--model", str(folder), "--device", "cpu"])
        return code, *capsys.readouterr()

    return command


def by_name(out, folder):
    return {json.loads(line)["path"].removeprefix(f"{folder}/"): json.loads(line) for line in out.splitlines()}


def test_caption_gives_an_object_for_each_picture(run, pictures, folder):
    code, out, err = run("caption", pictures, "--json")
    found = by_name(out, pictures)
    assert code == 1
    assert "1 of 3 files failed" in err
    assert "broken.png: " in err
    assert set(found) == {"bus.jpg", "cat.jpg"}
    (expected,) = onepeace.load_generator(folder, device="cpu").caption([pictures / "cat.jpg"])
    assert found["cat.jpg"]["caption"] == expected.text
    assert found["cat.jpg"]["score"] == pytest.approx(expected.score, abs=1e-4)
    assert 0 < found["cat.jpg"]["confidence"] < 1


def test_caption_prints_a_table(run, pictures):
    code, out, err = run("caption", pictures / "cat.jpg", "--batch-size", "1")
    assert (code, err) == (0, "")
    head, row = out.splitlines()
    assert head.split() == ["caption", "confidence", "path"]
    assert row.endswith("cat.jpg")


def test_answer_is_free_or_one_of_several(run, pictures):
    code, out, _ = run("answer", pictures / "cat.jpg", "--question", "what is it?", "--json")
    assert code == 0
    assert set(json.loads(out)) == {"path", "question", "answer", "score", "confidence"}
    code, out, _ = run(
        "answer", pictures / "cat.jpg", "--question", "what is it?", "--candidates", "a cat, a bus", "--json"
    )
    found = json.loads(out)
    assert found["answer"] == max(found["scores"], key=found["scores"].get)
    assert set(found["scores"]) == {"a cat", "a bus"}
    code, _, err = run("answer", pictures, "--question", "what?", "--candidates", " , ")
    assert (code, err) == (2, "onepeace: --candidates names no answer\n")


def test_ground_draws_the_box(run, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run("ground", pictures / "bus.jpg", "--text", "the bus", "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["text"], found["picture"]) == ("the bus", "boxes/bus.jpg.png")
    size = Image.open(pictures / "bus.jpg").size
    assert all(0 <= corner <= size[i % 2] for i, corner in enumerate(found["box"]))
    drawn = Image.open(tmp_path / found["picture"])
    assert (drawn.format, drawn.size) == ("PNG", size)
    original = Image.open(pictures / "bus.jpg").convert("RGB")
    assert drawn.tobytes() != original.tobytes()
    code, _, err = run("ground", pictures / "bus.jpg", "--text", "the bus", "--draw", "no/such")
    assert (code, err) == (2, "onepeace: no/such: there is no folder no\n")


def test_tasks_of_ones_own_are_asked(run, pictures, tmp_path):
    file = tmp_path / "tasks.yaml"
    file.write_text("caption: {search: {max_len: 1}}\n", encoding="utf-8")
    code, out, _ = run("caption", pictures / "cat.jpg", "--tasks", file, "--json")
    assert code == 0
    assert len(json.loads(out)["caption"].split()) <= 1


def test_model_of_vectors_writes_nothing(capsys, pictures):
    assert main(["caption", str(pictures), "--model", "tiny"]) == 1
    assert capsys.readouterr().err.startswith("onepeace: tiny: writes nothing; name a model that does")
