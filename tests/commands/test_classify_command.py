"""`onepeace classify` with labels that are given; what task heads say is tested where they are trained."""

import io
import json
import logging
import sys

import numpy as np
import pytest
import soundfile
from support.media import TWO_SCENES
from support.random_model import save_random_model

from onepeace.cli import main


def json_lines(text):
    return [json.loads(line) for line in text.splitlines()]


def test_the_best_labels_of_each_kind_of_file(command, model, samples):
    files = samples / "images" / "cat.jpg", samples / "sounds" / "cat.ogg"
    code, out, _ = command("classify", *files, "--labels", "dog, cat,sea,cat", "--top", "2", "--json")
    answers = json_lines(out)
    assert (code, [answer["path"] for answer in answers]) == (0, [str(file) for file in files])
    for answer in answers:
        (expected,) = model.classify([answer["path"]], ["dog", "cat", "sea"])
        assert answer["labels"][0]["label"] == ["dog", "cat", "sea"][int(expected.argmax())]
        assert answer["labels"][0]["score"] == pytest.approx(expected.max().item(), abs=2e-5)
        assert len(answer["labels"]) == 2


def test_labels_of_a_file_and_what_failed(command, samples, tmp_path):
    (tmp_path / "labels.txt").write_text("dog\n\ncat\n", encoding="utf-8-sig")
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    files = samples / "images" / "cat.jpg", tmp_path / "broken.jpg"
    code, out, err = command("classify", *files, "--labels", tmp_path / "labels.txt", "--template", "this is {a}")
    head, row = out.splitlines()
    assert (code, head.split()) == (1, ["label", "path"])
    assert row.split()[0] in ("dog", "cat")
    assert "broken.jpg: " in err


def test_files_the_model_has_no_modality_for_are_left_out(tmp_path, samples, capsys):
    folder = save_random_model(tmp_path / "model", ("text", "image"))
    files = [str(samples / "images" / "cat.jpg"), str(samples / "sounds")]
    assert main(["classify", *files, "--labels", "a,b", "--model", str(folder), "--json"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1
    assert "20 audio files" in err


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        ((), 1, "heads"),
        (("--labels", " , "), 2, "--labels"),
        (("--labels", "a", "--template", "a photo"), 1, "template"),
        (("--template", "a {}"), 2, "--template"),
        (("--labels", "a", "--draw", "boxes"), 2, "--draw"),
        (("--labels", "a", "--head", "x"), 2, "--head"),
        (("--labels", "a", "--top", "0"), 2, "--top"),
    ],
)
def test_what_goes_wrong_is_one_line(command, samples, arguments, code, named):
    done, out, err = command("classify", samples / "images" / "cat.jpg", *arguments)
    assert (done, out, len(err.splitlines())) == (code, "", 1)
    assert named in err


def test_of_several_heads_one_is_named_and_options_it_does_not_read_are_refused(command, samples, tmp_path):
    head = {"kind": "classifier", "task": "label", "on": "image", "num_classes": 2, "labels": ["cat", "dog"]}
    writer = {"kind": "caption", "on": ["image"], "vocab_size": 400, "dim": 16, "depth": 1, "num_heads": 2,
              "ffn_dim": 16, "task": "caption"}  # fmt: skip
    one = save_random_model(tmp_path / "one", heads={"caption": writer, "pets": head})
    two = save_random_model(tmp_path / "two", heads={"pets": head, "animals": head})
    cat = samples / "images" / "cat.jpg"
    assert command("classify", cat, model=one)[0] == 0
    for model, options, named in ((two, [], "--head"), (two, ["--head", "nope"], "animals"),
                                  (one, ["--text", "what"], "--text"),
                                  (one, ["--text", "what", "--labels", "a,b"], "--text")):  # fmt: skip
        code, out, err = command("classify", cat, *options, model=model)
        assert (code, out) == (2, "")
        assert named in err


def damaged_mp3():
    """An MP3 with a hole, about which libmpg123 prints notes of its own."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.random.default_rng(0).normal(0, 0.1, 32000), 16000, format="MP3")
    sound = buffer.getvalue()
    return sound[:2000] + bytes(1500) + sound[3500:]


def test_nothing_but_our_own_lines_reaches_stderr(random_folder, tmp_path, monkeypatch, capfd):
    """Sounds are decoded in threads, some damaged, and some silent, about which there is a warning."""
    for index in range(6):
        (tmp_path / f"{index}.mp3").write_bytes(damaged_mp3())
        soundfile.write(tmp_path / f"{index}.wav", np.zeros(16000), 16000)
    monkeypatch.setattr(logging.root, "handlers", [])
    with open(2, "w", buffering=1, closefd=False) as stderr:  # as in a process of its own
        monkeypatch.setattr(sys, "stderr", stderr)
        main(["classify", str(tmp_path), "--labels", "a,b", "--model", str(random_folder), "--device", "cpu"])
    lines = capfd.readouterr().err.splitlines()
    assert lines[0].startswith("onepeace: loading the model ")
    assert sum(line.startswith(f"onepeace: {tmp_path}/") and ".wav: " in line for line in lines) == 6
    assert sum(line.startswith(f"  {tmp_path}/") and ".mp3: " in line for line in lines) == 6
    assert len(lines) == 14  # and how many failed


def test_videos_are_skipped_and_labels_of_a_missing_file_refused(command, samples, tmp_path):
    code, out, err = command("classify", TWO_SCENES, samples / "images" / "cat.jpg", "--labels", "a,b", "--json")
    assert (code, len(out.splitlines())) == (0, 1)
    assert "1 video skipped" in err
    for labels in ("nofile.txt", tmp_path / "names"):
        code, out, err = command("classify", samples / "images" / "cat.jpg", "--labels", labels)
        assert (code, out, err) == (2, "", f"onepeace: {labels}: no such file\n")
    assert command("classify", samples / "images" / "cat.jpg", "--labels", "in/out,up")[0] == 0
