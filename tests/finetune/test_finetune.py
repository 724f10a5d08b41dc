"""Fine-tuning on small folders and tables: what is learned, what is refused."""

import csv
import json
import os
import resource
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from support.random_model import save_random_model
from support.small_shards import COLOURS, TONES, square, tone

import onepeace
from onepeace.cli import main
from onepeace.config import build, read_yaml
from onepeace.files import lock
from onepeace.finetune import groups, stages
from onepeace.finetune import run as running
from onepeace.finetune.answers import HEAD, WORDS, read_answers, write_answers
from onepeace.finetune.folder import ABOUT, FIELDS, check_only_ours
from onepeace.finetune.own_data import read_own_data
from onepeace.finetune.report import commands_to_try
from onepeace.finetune.settings import auto_recipe
from onepeace.finetune.split import SplitSummary, divide, read_summary
from onepeace.generative.tasks import FILE as TASKS
from onepeace.hub.folder import read_config
from onepeace.hub.weights import expected, read_state
from onepeace.train.initial_weights import start_weights
from onepeace.train.log import read_log
from onepeace.train.model_config import make_config
from onepeace.train.recipe import Recipe

FEW = ("red", "green", "blue", "white")
QUICK = ["schedule.steps=30", "optim.lr=3e-3", "run.precision=float32", "optim.layer_decay=null"]
KEYS = ("text", "image", "audio")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No plan is made, which takes longer than these trainings, and squares of one colour are no near copies."""
    monkeypatch.setattr(running, "available_memory", lambda device: None)
    monkeypatch.setattr(groups, "NEAR_COPY_COSINE", {})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_random_model(tmp_path_factory.mktemp("models") / "random")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A captions.csv with 48 pictures, 16 of which have a second row, a broken picture, and one that is not there."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(5)
    rows = []
    for i in range(12):
        for name in FEW:
            (folder / f"{name}{i}.png").write_bytes(square(COLOURS[name], rng))
            rows.append((f"{name}{i}.png", f"a {name} square {i}"))
            if i < 4:
                rows.append((f"{name}{i}.png", f"something {name}"))
    (folder / "broken.png").write_bytes(b"\x89PNG nothing")
    rows += [("broken.png", "a broken file"), ("missing.png", "no file")]
    with open(folder / "captions.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "text"), *rows])
    return folder / "captions.csv"


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """A folder for each of three kinds of tones, and a README.txt that is no caption."""
    folder, rng = tmp_path_factory.mktemp("sounds"), np.random.default_rng(6)
    for name in ("low", "middle", "piercing"):
        (folder / name).mkdir()
        for i in range(12):
            (folder / name / f"{i}.wav").write_bytes(tone(TONES[name], rng))
    (folder / "README.txt").write_text("about these sounds")
    return folder


@pytest.fixture(scope="module")
def said():
    """The lines that `tuned` said."""
    return []


@pytest.fixture(scope="module")
def tuned(model, said, tmp_path_factory):
    """A fine-tuning of two steps, on folders of two classes: pictures, half of which have a sound of the same name.

    It is of a model with a task of its own.
    """
    home, rng = tmp_path_factory.mktemp("both"), np.random.default_rng(7)
    folder, start = home / "own", home / "start"
    for name, colour in (("low", "red"), ("piercing", "green")):
        (folder / name).mkdir(parents=True)
        for i in range(12):
            (folder / name / f"{i}.png").write_bytes(square(COLOURS[colour], rng))
            if i < 6:
                (folder / name / f"{i}.wav").write_bytes(tone(TONES[name], rng))
    shutil.copytree(model, start)
    (start / TASKS).write_text("own: {prompt: 'what is it?'}\n")
    tuning = running.FineTuning(folder, home / "out", str(start), (*QUICK, "schedule.steps=2"), say=said.append)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "available_memory", lambda device: None)
        patch.setattr(groups, "NEAR_COPY_COSINE", {})
        (result,) = tuning.run()
    return tuning, result


def parts(labels):
    return SplitSummary("", {"train/image+text": 20}, 20, labels, [], [])


def finetune(*arguments):
    return main(["finetune", *map(str, arguments)])


def test_pairs_in_a_table(model, table, tmp_path, capsys):
    out = tmp_path / "out"
    assert finetune(table, "-o", out, "--model", model, *QUICK) == 0
    text, err = capsys.readouterr()
    assert f"{table} line 66: " in err
    assert "2 left out" in err
    assert "steps 30" in err
    assert "text to image R@1" in text
    report = (out / "report.html").read_text()
    assert "the worst first: image+text" in report
    assert "missing.png" in report
    assert 'src="data:image/jpeg' in report
    counts = json.loads((out / "data" / "parts.json").read_text())["counts"]
    assert counts == {"train/image+text": 38, "val/image+text": 10}
    rows = [json.loads(line) for line in (out / "before.jsonl").read_text().splitlines()]
    assert [row["direction"] for row in rows] == ["text to image", "image to text"]
    assert onepeace.load(out / "model").encode_text(["a red square"]).shape == (1, 16)


def test_pairs_in_the_cells_of_a_data_set(model, tmp_path, capsys):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rng = np.random.default_rng(8)
    rows = []
    for i in range(12):
        for name in FEW:
            picture = {"bytes": square(COLOURS[name], rng), "path": f"{name}/{i}.png"}
            rows.append({"image": picture, "sentence": f"a {name} square {i}"})
    rows.append({"image": {"bytes": b"\x89PNG nothing", "path": "broken.png"}, "sentence": "a broken file"})
    data, out = tmp_path / "data", tmp_path / "runs/out"
    data.mkdir()
    parquet.write_table(arrow.Table.from_pylist(rows), data / "train-00000-of-00001.parquet")
    parquet.write_table(arrow.Table.from_pylist(rows[:1]), data / "test-00000-of-00001.parquet")
    call = (data, "-o", out, "--model", model, "--split", "train", *QUICK, "schedule.steps=2", "--group", "^([^/]+)/")
    assert finetune(*call, "--column", "text=sentence") == 0
    text, err = capsys.readouterr()
    assert "train-00000-of-00001.parquet row 49: " in err
    assert "1 left out" in err
    assert "try it" not in text
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    summary = read_summary(out / "data")
    assert (summary.groups, sum(summary.counts.values())) == (4, 48)
    assert finetune(*call, "--column", "text=caption") == 2
    assert "holds a fine-tuning with --column text=sentence" in capsys.readouterr().err


def test_classes_in_folders_give_a_head_that_predicts_and_words_that_find(model, classes, tmp_path, capsys):
    out = tmp_path / "out"
    assert finetune(classes, "-o", out, "--model", model, *QUICK, "schedule.steps=60") == 0
    text = capsys.readouterr().out
    assert "audio by head" in text
    assert "audio by words" in text
    (by_head,) = (found for found in read_answers(out / "after.jsonl") if found.set == "audio by head")
    assert np.mean(np.array(by_head.ranks) == 1) > 0.6
    assert "top-5" not in text  # of three classes
    report = (out / "report.html").read_text()
    for words in ("By class", "Confusion matrix", "the most confident first", "Choose the files at random"):
        assert words in report
    assert main(["classify", str(classes / "low" / "0.wav"), "--model", str(out / "model"), "--json"]) == 0
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert line["labels"][0]["label"] in ("low", "middle", "piercing")


def test_it_goes_on_where_it_was_stopped_and_does_nothing_twice(model, table, tmp_path, capsys, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = Path("out")
    start = os.path.relpath(model)
    last_steps = iter([12, None])  # a second training would be one too many
    real = stages.train
    monkeypatch.setattr(stages, "train", lambda recipe: real(recipe, stop_at=next(last_steps)))
    quick = [*QUICK, "run.save_every=10"]
    assert finetune(table, "-o", out, "--model", start, *quick) == 1
    assert "the same command goes on" in capsys.readouterr().err
    assert not (out / "report.html").exists()
    check_only_ours(out)
    monkeypatch.chdir(table.parent)
    out = (tmp_path / "out").rename(tmp_path / "moved")
    before = (out / "before.jsonl").stat().st_mtime_ns
    assert finetune(table, "-o", out, "--model", model, *quick) == 0
    assert caplog.text.count("going on from step 10") == 1
    assert read_log(out / "log.jsonl")[-1]["step"] == 30
    assert finetune(table, "-o", out, "--model", model, *quick) == 0
    assert (out / "before.jsonl").stat().st_mtime_ns == before
    assert finetune(table, "-o", out, "--model", model, "schedule.steps=9") == 2
    assert f" {' '.join(quick)};" in capsys.readouterr().err


def test_second_fine_tuning_in_a_folder_is_refused(model, table, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 0.0)
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"):  # as another process holds it
        assert finetune(table, "-o", tmp_path / "out", "--model", model, *QUICK) == 1
    assert f"{tmp_path / 'out'}: another run is writing to this folder" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]


def test_what_cannot_work_is_refused_in_one_line(model, table, classes, tmp_path, capsys):
    few = tmp_path / "few.csv"
    few.write_text("\n".join(["image,text", *(f"{table.parent}/red{i}.png,a red square" for i in range(3))]))
    one = tmp_path / "one"
    one.mkdir()
    (one / "low").symlink_to(classes / "low")
    alone = tmp_path / "alone.csv"
    rows = [f"{classes}/{name}/{i}.wav,{name}" for name in ("low", "middle") for i in range(12)]
    alone.write_text("\n".join(["audio,label", *rows, f"{classes}/piercing/0.wav,piercing"]))
    for source, code, said in ((few, 1, "3 usable items are too few to learn from; 20 are needed"),
                               (alone, 1, "class 'piercing' has 1 usable items, and 5 are needed"),
                               (tmp_path / "nothing", 2, "no such file or folder")):  # fmt: skip
        assert finetune(source, "-o", tmp_path / "out", "--model", model) == code
        err = capsys.readouterr().err
        assert said in err
        assert err.count("\n") == 1
        assert not (tmp_path / "out").exists()
    other = tmp_path / "mine"
    other.mkdir()
    (other / "letter.txt").write_text("dear all")
    for out in (other, other / "letter.txt"):
        assert finetune(table, "-o", out, "--model", model) == 2
        err = capsys.readouterr().err
        assert (str(out) in err, err.count("\n")) == (True, 1)
    assert (other / "letter.txt").read_text() == "dear all"


@pytest.mark.parametrize("begun", [False, True])
def test_ctrl_c_says_whether_anything_is_saved(table, tmp_path, capsys, monkeypatch, begun):
    def stopped(tuning, overwrite):
        if begun:
            (tmp_path / ABOUT).write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(running.FineTuning, "run", stopped)
    assert finetune(table, "-o", tmp_path) == 130
    assert ("kept" in capsys.readouterr().err) == begun


def test_overwrite_removes_nothing_that_is_needed(model, table, tmp_path, capsys):
    out, elsewhere = tmp_path / "out", tmp_path / "link"
    shutil.copytree(model, out / "model")
    shutil.copy(table, out / "table.csv")
    (out / ABOUT).write_text(json.dumps(dict.fromkeys(FIELDS)))
    elsewhere.symlink_to(out)
    needed = [(table, out / "model"), (table, out), (table, elsewhere / "model"), (elsewhere / "table.csv", model)]
    for source, start in needed:
        assert finetune(source, "-o", out, "--model", start, "--force") == 1
        assert "give -o another folder" in capsys.readouterr().err
    (out / "table.csv").unlink()
    for source, start, said in ((tmp_path / "tabel.csv", model, "no such file or folder"),
                                (table, tmp_path / "modle", "no such folder"),
                                (table, "modle", "no model 'modle'")):  # fmt: skip
        assert finetune(source, "-o", out, "--model", start, "--force") in (1, 2)
        err = capsys.readouterr().err
        assert said in err
        assert err.count("\n") == 1
        assert (out / "model" / "config.yaml").exists()


@pytest.mark.parametrize("place", ["thesis.txt", "data/thesis.txt", "model/thesis.txt", "adapter/thesis.txt"])
def test_overwrite_keeps_files_of_others(model, table, tmp_path, capsys, monkeypatch, place):
    monkeypatch.setattr(stages, "train", lambda recipe: 1 / 0)
    out = tmp_path / "out"
    finetune(table, "-o", out, "--model", model, *QUICK)
    thesis = out / place
    thesis.parent.mkdir(exist_ok=True)
    thesis.write_text("three years of work")
    before = sorted(out.rglob("*"))
    capsys.readouterr()
    assert finetune(table, "-o", out, "--model", model, *QUICK, "--force") == 2
    err = capsys.readouterr().err
    assert (str(thesis) in err, err.count("\n")) == (True, 1)
    assert sorted(out.rglob("*")) == before


def test_overwrite_needs_the_mark_of_a_fine_tuning(model, table, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / ABOUT).write_text('{"title": "notes on fine-tuning"}')
    (out / "thesis.txt").write_text("three years of work")
    assert finetune(table, "-o", out, "--model", model, "--force") == 2
    assert "will not be replaced" in capsys.readouterr().err
    assert (out / "thesis.txt").exists()


def test_full_disk_names_the_file(model, table, tmp_path, capsys, monkeypatch):
    write = running.FineTuning._write_settings

    def write_on_a_full_disk(*arguments):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        try:
            write(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    monkeypatch.setattr(running.FineTuning, "_write_settings", write_on_a_full_disk)
    assert finetune(table, "-o", tmp_path / "out", "--model", model, *QUICK) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"onepeace: {tmp_path / 'out' / ABOUT}: cannot be written (")


def test_a_call_that_fails_leaves_the_folder_to_the_right_one(model, table, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(stages, "train", lambda recipe: 1 / 0)
    for start, override, said in ((tmp_path / "nomodel", "schedule.steps=9", "no such folder"),
                                  (model, "bogus=1", "bogus is not a field")):  # fmt: skip
        assert finetune(table, "-o", out, "--model", start, override) == 1
        assert said in capsys.readouterr().err
        assert not out.exists()
    finetune(table, "-o", out, "--model", model, *QUICK)
    begun = sorted(path.name for path in out.iterdir())
    assert finetune(table, "-o", out, "--model", model, "bogus=1", "--force") == 1
    assert sorted(path.name for path in out.iterdir()) == begun
    capsys.readouterr()
    assert finetune(table, "-o", out, "--model", "tiny", *QUICK) == 2
    assert f"--model {model}" in capsys.readouterr().err


@pytest.mark.parametrize("sounds", [1, 2, 3])
def test_a_kind_of_which_nothing_is_left_to_learn_from_is_left_out(table, classes, tmp_path, monkeypatch, sounds):
    rows = [{"image": f"{table.parent}/{name}{i}.png", "label": name} for name in FEW for i in range(12)]
    rows += [{"audio": f"{classes}/low/{i}.wav", "text": "a low tone"} for i in range(sounds)]
    source = tmp_path / "mixed.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)))
    split, summary = divide(read_own_data(source, KEYS), source, None)
    kinds = set(split.data.records)
    assert all(split.is_complete(modalities) for modalities in kinds)
    if sounds > 1:
        assert kinds == {("image", "text"), ("audio", "text")}
        assert not summary.labels
    else:
        assert kinds == {("image", "text")}
        assert summary.labels == sorted(FEW)
        assert [where for where, _ in summary.left_out] == [f"{source} line 49"]


def test_rows_that_repeat_contradict_or_have_no_label(table, tmp_path):
    files = [(f"{table.parent}/{name}{i}.png", name) for name in FEW for i in range(12)]
    rows = [{"image": file, "label": label, "text": f"a {label} square"} for file, label in files]
    rows += [{**rows[0], "text": "red"}, {**rows[0], "text": "red"}]
    source = tmp_path / "rows.jsonl"
    source.write_text("\n".join(map(json.dumps, [*rows, {**rows[1], "label": "blue"}])))
    data = read_own_data(source, KEYS)
    assert data.records["image", "text"][0].captions == ["a red square", "red"]
    assert data.count == 47
    assert [where for where, _ in data.left_out] == [f"{source} line 2", f"{source} line 51"]
    source.write_text("\n".join(map(json.dumps, [*rows, {**rows[1], "label": None}])))
    data = read_own_data(source, KEYS)
    assert (data.count, data.labels) == (49, [])
    assert "1 of 49 items" in data.described()


def test_labelled_pictures_with_a_sound_and_without(tuned):
    """Each modality has a head, and is measured in each kind of sample that has it."""
    _, result = tuned
    assert list(read_config(result.folder / "model").model.heads) == ["classifier_image", "classifier_audio"]
    kinds = ("image of image+audio+text", "audio of image+audio+text", "image")
    assert {found.set for found in result.after} == {f"{kind} by {how}" for kind in kinds for how in (WORDS, HEAD)}
    for kind in kinds:
        assert f"the most confident first: {kind} by head" in result.report.read_text()


def test_the_tasks_of_the_start_are_kept(tuned):
    assert read_yaml(tuned[1].folder / "model" / TASKS) == {"own": {"prompt": "what is it?"}}


def test_each_head_of_several_has_a_command_to_try(tuned, capsys):
    tuning, result = tuned
    _, *commands = commands_to_try(result, tuning.source, read_summary(tuning.data))
    for command, items in zip(commands, (24, 12), strict=True):
        assert command in result.report.read_text()
        assert main([*shlex.split(command)[1:], "--json"]) == 0
        assert len(capsys.readouterr().out.splitlines()) == items


@pytest.mark.parametrize(
    ("labels", "taken"), [(["cat", "dog"], True), (["cow", "hen"], False), (["cat", "cow", "dog"], False)]
)
def test_a_head_for_other_classes_is_not_started_from(tmp_path, labels, taken):
    head = {"kind": "classifier", "task": "label", "on": "image", "pool": "cls", "hidden_ratio": 0,
            "labels": ["cat", "dog"], "num_classes": 2}  # fmt: skip
    start = save_random_model(tmp_path / "start", heads={"classifier": head})
    recipe = build(Recipe, auto_recipe(start, tmp_path, tmp_path, parts(labels)), "")
    config = make_config(recipe)
    given = start_weights(recipe, config, expected(config))
    fresh = set(expected(config)) - set(given)
    assert fresh == (set() if taken else {"heads.classifier.out.weight", "heads.classifier.out.bias"})


def test_ways_are_compared_on_the_same_parts(model, classes, tmp_path, capsys):
    pytest.importorskip("peft")
    out = tmp_path / "out"
    assert finetune(classes, "-o", out, "--model", model, *QUICK, "schedule.steps=4", "--compare") == 0
    text = capsys.readouterr().out
    assert text.splitlines()[0].split() == ["set", "metric", "before", "probe", "lora", "full"]
    assert any(line.split()[:2] == ["training", "seconds"] for line in text.splitlines())
    start, shards = read_state(model), list(out.glob("**/train/*.tar"))
    assert len(shards) == 1
    for way in ("probe", "lora", "full"):
        assert (out / way / "report.html").exists()
        new = read_state(out / way / "model")
        changed = {name.partition(".")[0] for name in start if not torch.equal(start[name], new[name])}
        assert ("blocks" in changed) == (way != "probe"), way
        found = read_answers(out / way / "after.jsonl")
        ranks = [[1 if way == "lora" else 2] * len(one.ranks) for one in found]
        write_answers(
            out / way / "after.jsonl", [replace(one, ranks=own) for one, own in zip(found, ranks, strict=True)]
        )
    assert finetune(classes, "-o", out, "--model", model, *QUICK, "schedule.steps=4", "--compare") == 0
    text, err = capsys.readouterr()
    assert "--force" in err  # reads the source again
    tried = [line for line in text.splitlines() if line.startswith("try it")]
    assert tried
    assert all(f"{out}/lora/model" in line for line in tried)
    check_only_ours(out)  # --force would replace it
