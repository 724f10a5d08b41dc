"""The folder of a fine-tuning: it is resumed, and nothing in it is lost that somebody needs."""

import json
import os
import shutil

import pytest
from filelock import FileLock
from support.finetuning import QUICK, write_table

from onepeace.files import atomic
from onepeace.finetune import run as running
from onepeace.finetune.answers import read_answers
from onepeace.finetune.run import FIELDS, IDENTITY
from onepeace.train.logging import read_log

pytestmark = pytest.mark.usefixtures("no_near_copies")


@pytest.fixture
def begun(captions_table, finetune, out):
    """The folder of a fine-tuning of which the training fails at once, and goes on failing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "train", lambda recipe: 1 / 0)
        finetune(captions_table, code=1)
        yield out


def assert_one_line(err, text):
    assert text in err
    assert err.count("\n") == 1


# ------------------------------------------------------------------ going on


def test_resume_after_the_folder_was_moved(random_folder, captions_table, finetune, tmp_path, caplog, monkeypatch):
    """Relative paths of the first call are of another working directory in the second."""
    overrides = ("schedule.steps=12", "run.save_every=4")
    train = running.train
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setattr(running, "train", lambda recipe: train(recipe, stop_at=5))
        relative_model = os.path.relpath(random_folder)
        err = finetune(captions_table, *overrides, out="out", model=relative_model, code=1).err
    assert "to resume" in err
    assert not (tmp_path / "out/report.html").exists()

    monkeypatch.chdir(captions_table.parent)
    moved = (tmp_path / "out").rename(tmp_path / "moved")
    finetune(captions_table, *overrides, out=moved)

    assert caplog.text.count("resuming from step 4") == 1
    assert read_log(moved / "log.jsonl")[-1]["step"] == 12
    data = json.loads((moved / "settings.json").read_text())["data"]
    assert data["root"] == str(moved / "data")
    assert data["frozen_folder"] == str(moved / "frozen")


def test_finished_stages_are_not_repeated(captions_table, finetune, out, monkeypatch):
    finetune(captions_table)
    monkeypatch.setattr(running, "train", lambda recipe: 1 / 0)
    monkeypatch.setattr(running, "answers", lambda *arguments, **options: 1 / 0)

    finetune(captions_table)
    err = finetune(captions_table, "schedule.steps=9", code=2).err
    assert f"another a.b=value ({json.dumps(QUICK)});" in err


def test_folder_of_an_older_version_is_resumed(captions_table, finetune, begun):
    """Its version had no --column and --split, had an option of its own, and wrote other answers."""
    identity = json.loads((begun / IDENTITY).read_text())
    for option in ("columns", "split"):
        del identity[option]
    (begun / IDENTITY).write_text(json.dumps({**identity, "shuffle": True}))
    parts = begun / "data" / "parts.json"
    parts.write_text(json.dumps({**json.loads(parts.read_text()), "colours": 4}))
    (begun / "before.jsonl").write_text('{"ranks": [1]}\n')

    err = finetune(captions_table, code=1).err

    assert "the parts of an earlier call are used" in err
    assert len(read_answers(begun / "before.jsonl")) == 2
    err = finetune(captions_table, "--column", "text=sentence", code=2).err
    assert "another --column ({})" in err


def test_resuming_call_may_change_what_the_result_does_not_depend_on(captions_table, finetune, begun):
    """Such as less memory, after the first call had too little."""
    finetune(captions_table, "run.recompute=blocks", code=1)
    assert json.loads((begun / "settings.json").read_text())["run"]["recompute"] == "blocks"
    err = finetune(captions_table, "seed=2", code=2).err
    assert "another a.b=value" in err


def test_second_process_in_a_folder_is_refused(captions_table, finetune, out, monkeypatch):
    monkeypatch.setattr(atomic, "PATIENCE", 0.0)
    out.mkdir()
    with FileLock(out / ".lock"):  # as another process holds it
        err = finetune(captions_table, code=1).err
    assert f"{out}: another run" in err
    assert [path.name for path in out.iterdir()] == [".lock"]


@pytest.mark.parametrize("is_begun", [False, True])
def test_ctrl_c_says_whether_anything_is_kept(captions_table, finetune, out, monkeypatch, is_begun):
    def interrupted(tuning, overwrite):
        if is_begun:
            out.mkdir()
            (out / IDENTITY).write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(running.FineTuning, "run", interrupted)
    err = finetune(captions_table, code=130).err
    assert ("kept" in err) == is_begun


# ------------------------------------------------------------------ what is refused


def test_too_few_items_are_refused(captions_table, finetune, out, tmp_path):
    rows = [(captions_table.parent / f"red{i}.png", "a red square") for i in range(3)]
    table = write_table(tmp_path / "few.csv", ("image", "text"), *rows)
    _, error = finetune(table, code=1).err.splitlines(keepends=True)
    assert_one_line(error, "3 usable items are too few to learn from; 20 are needed")
    assert not out.exists()


def test_folders_are_said_to_be_classes_when_a_small_one_is_refused(captions_table, finetune, tmp_path):
    pictures = sorted(captions_table.parent.glob("*.png"))
    for name, count in (("Home", 20), ("Work", 4)):
        (tmp_path / "albums" / name).mkdir(parents=True)
        for number in range(count):
            shutil.copy(pictures[number % len(pictures)], tmp_path / "albums" / name / f"{number}.png")
    _, error = finetune(tmp_path / "albums", code=1).err.splitlines(keepends=True)
    assert "each folder is taken as a class" in error
    assert_one_line(error, "class 'Work' has 4 usable items")


def test_folder_of_something_else_is_refused(captions_table, finetune, tmp_path):
    letter = tmp_path / "letter.txt"
    letter.write_text("dear all")
    for out in (tmp_path, letter):
        err = finetune(captions_table, out=out, code=2).err
        assert_one_line(err, str(out))
    assert letter.read_text() == "dear all"


@pytest.mark.parametrize("mistake", ["bogus=1", "schedule.warmup=3", "optim.lr=-1"])
def test_mistake_that_no_data_make_right_is_told_before_they_are_read(captions_table, finetune, out, mistake):
    err = finetune(captions_table, mistake, code=1).err
    assert_one_line(err, mistake.partition("=")[0])
    assert not out.exists()


def test_failed_call_leaves_no_folder(captions_table, finetune, out):
    err = finetune(captions_table, "data.bogus=1", code=1).err
    assert "48 images with captions" in err
    assert "bogus" in err
    assert not out.exists()


def test_failed_call_leaves_the_folder_of_the_right_one(captions_table, random_folder, finetune, begun):
    names = sorted(path.name for path in begun.iterdir())
    finetune(captions_table, "bogus=1", "--force", code=1)
    assert sorted(path.name for path in begun.iterdir()) == names

    err = finetune(captions_table, model="tiny", code=2).err
    assert f'another --model ("{random_folder}")' in err


# ------------------------------------------------------------------ --force


def test_force_removes_nothing_that_the_call_needs(captions_table, random_folder, finetune, out, tmp_path):
    """Neither the source nor the model, also by way of a link."""
    shutil.copytree(random_folder, out / "model")
    table = shutil.copy(captions_table, out / "table.csv")
    (out / IDENTITY).write_text(json.dumps(dict.fromkeys(FIELDS)))
    link = tmp_path / "link"
    link.symlink_to(out)

    sources_and_models = [
        (captions_table, out / "model"),
        (captions_table, out),
        (captions_table, link / "model"),
        (table, random_folder),
        (link / "table.csv", random_folder),
    ]
    for source, model in sources_and_models:
        err = finetune(source, "--force", model=model, code=1).err
        assert "give -o another folder" in err
    assert (out / "model" / "config.yaml").exists()


def test_force_with_a_wrong_source_removes_nothing(finetune, begun):
    names = sorted(path.name for path in begun.iterdir())
    assert_one_line(finetune("tabel.csv", "--force", code=2).err, "tabel.csv")
    assert sorted(path.name for path in begun.iterdir()) == names


def test_force_replaces_the_whole_folder(captions_table, finetune, begun):
    (begun / "step-9").mkdir()
    (begun / "data" / "left.tar").touch()
    finetune(captions_table, "--force", code=1)
    assert not (begun / "step-9").exists()
    assert not (begun / "data" / "left.tar").exists()
    assert (begun / IDENTITY).exists()


def test_force_needs_the_mark_of_a_fine_tuning(captions_table, finetune, out):
    out.mkdir()
    (out / IDENTITY).write_text('{"title": "notes on fine-tuning"}')
    (out / "thesis.txt").write_text("three years of work")
    err = finetune(captions_table, "--force", code=2).err
    assert "will not be replaced" in err
    assert (out / "thesis.txt").exists()
