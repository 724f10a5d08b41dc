"""Fine-tuning on small folders and tables: what is learned, measured and reported."""

import json
import shlex
import shutil
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from support.finetuning import QUICK, write_pictures, write_sounds, write_table
from support.random_model import save_random_model

import onepeace
from onepeace.cli import main
from onepeace.config import build, read_yaml
from onepeace.data.source import read_source
from onepeace.finetune import run as running
from onepeace.finetune import split as splitting
from onepeace.finetune.answers import HEAD, WORDS, read_answers
from onepeace.finetune.recipe import auto_recipe
from onepeace.finetune.report import commands_to_try
from onepeace.finetune.split import SplitSummary, read_summary
from onepeace.hub.folder import TASKS, read_config
from onepeace.hub.tensors import expected
from onepeace.train.initial_weights import start_weights
from onepeace.train.model_config import make_config
from onepeace.train.recipe import Recipe


@pytest.fixture(scope="module")
def run_quickly():
    """Runs a `FineTuning` for the fixtures of this file, which outlive a test."""

    def run(tuning):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(splitting, "NEAR_COPY_COSINE", {})
            return tuning.run()

    return run


# ------------------------------------------------------------------ kinds of data


@pytest.mark.usefixtures("no_near_copies")
def test_table_becomes_model_answers_and_report(captions_table, finetune, out):
    text, err = finetune(captions_table)

    assert "text to image R@1" in text
    assert f"{captions_table} line 66: " in err
    assert "2 left out" in err
    report = (out / "report.html").read_text()
    assert "missing.png" in report
    _, by_picture = read_answers(out / "after.jsonl")
    assert max(by_picture.ranks) > 1
    for rank, name in zip(by_picture.ranks, by_picture.names, strict=True):
        assert (f">{name}</td>" in report) == (rank > 1)
    assert "base64" not in report  # neither pictures nor sounds, which may be large
    assert read_summary(out / "data").counts == {"train/image+text": 38, "val/image+text": 10}
    assert [answer.metric_at(1) for answer in read_answers(out / "before.jsonl")] == [
        "text to image R@1",
        "image to text R@1",
    ]
    assert onepeace.load(out / "model").encode_text(["a red square"]).shape == (1, 16)


def write_parquet_files(folder):
    """train-*.parquet with 48 pictures and a broken one, and test-*.parquet with a picture."""
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = []
    for path in write_pictures(folder.parent / "squares", 12):
        rows.append({"image": {"bytes": path.read_bytes(), "path": path.name}, "sentence": path.stem})
    rows.append({"image": {"bytes": b"\x89PNG nothing", "path": "broken.png"}, "sentence": "a broken file"})
    folder.mkdir()
    parquet.write_table(arrow.Table.from_pylist(rows), folder / "train-00000-of-00001.parquet")
    parquet.write_table(arrow.Table.from_pylist(rows[:1]), folder / "test-00000-of-00001.parquet")
    return folder


def test_data_set_is_divided_by_group(finetune, tmp_path):
    source = write_parquet_files(tmp_path / "data")
    out = tmp_path / "runs/out"
    options = ("--split", "train", "--group", "^([a-z]+)")

    text, err = finetune(source, *options, "--column", "text=sentence", out=out)

    assert "train-00000-of-00001.parquet row 49: " in err
    assert "1 left out" in err
    assert "try it" not in text
    assert [path.name for path in out.parent.iterdir()] == ["out"]  # the unpacked files are gone
    summary = read_summary(out / "data")
    assert summary.groups == 4
    assert sum(summary.counts.values()) == 48

    # Another column in the same folder, whose data are of the first one.
    err = finetune(source, *options, "--column", "text=caption", out=out, code=2).err
    assert 'another --column ({"text": "sentence"})' in err


@pytest.mark.usefixtures("no_near_copies")
def test_head_learns_classes_of_folders_and_predicts(sounds_in_classes, finetune, out, capsys):
    text, err = finetune(sounds_in_classes, "schedule.steps=60")

    assert "the classes to learn are low, middle, piercing; each folder is taken as a class; " in err
    assert "audio by head" in text
    assert "audio by words" in text
    assert "top-5" not in text  # of three classes
    (by_head,) = [answers for answers in read_answers(out / "after.jsonl") if answers.set == "audio by head"]
    assert np.mean(np.array(by_head.ranks) == 1) > 0.6
    report = (out / "report.html").read_text()
    for title in ("By class", "the most confident first"):
        assert title in report
    sound = sounds_in_classes / "low/0.wav"
    assert main(["classify", str(sound), "--model", str(out / "model"), "--json"]) == 0
    prediction = json.loads(capsys.readouterr().out)
    assert prediction["labels"][0]["label"] in ("low", "middle", "piercing")


@pytest.mark.usefixtures("no_near_copies")
def test_labels_are_said_to_be_used_when_they_are(sounds_in_classes, captions_table, finetune, out, monkeypatch):
    """A picture without a label is alone of its kind, and left out; the labels of the sounds are learned."""
    rows = [(path, "", path.parent.name, "") for path in sorted(sounds_in_classes.rglob("*.wav"))]
    rows.append(("", captions_table.parent / "red0.png", "", "a red square"))
    table = write_table(out.parent / "table.csv", ("audio", "image", "label", "text"), *rows)
    monkeypatch.setattr(running, "train", lambda recipe: 1 / 0)

    err = finetune(table, code=1).err

    assert "labels are not used" not in err
    assert "36 sounds in 3 classes; 1 left out: " in err
    assert "the classes to learn are low, middle, piercing\n" in err
    assert read_summary(out / "data").groups == 36


def test_near_copies_lie_in_one_part(samples, finetune, tmp_path, out):
    """Photographs and copies of them that are stored anew, compared by the vectors of the model."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    rows = []
    for path in sorted((samples / "images").iterdir())[:10]:
        shutil.copy(path, folder / path.name)
        Image.open(path).save(folder / f"copy-{path.name}", quality=90)
        rows += [(path.name, path.stem), (f"copy-{path.name}", path.stem)]
    table = write_table(folder / "captions.csv", ("image", "text"), *rows)

    finetune(table, "schedule.steps=1")

    assert read_summary(out / "data").groups == len(rows) / 2
    captions_by_part = {}
    for part in ("train", "val"):
        samples_of_part = read_source(f"{part}/*.tar", ("image", "text"), out / "data")
        captions_by_part[part] = Counter(sample.captions[0] for sample in samples_of_part)
        assert set(captions_by_part[part].values()) == {2}
    assert captions_by_part["train"].keys().isdisjoint(captions_by_part["val"])


# ------------------------------------------------------------------ two modalities, a task and two heads


@pytest.fixture(scope="module")
def tuning_of_two(random_folder, run_quickly, tmp_path_factory):
    """Two steps on folders of two classes: pictures, half of which have a sound of the same name.

    The model to start from has a task.
    """
    home = tmp_path_factory.mktemp("both")
    source = home / "own"
    write_sounds(source, 6, ("low", "piercing"))
    for name, colour in (("low", "red"), ("piercing", "green")):
        for i, path in enumerate(write_pictures(home / "squares", 12, [colour])):
            path.rename(source / name / f"{i}.png")
    start = shutil.copytree(random_folder, home / "start")
    (start / TASKS).write_text("own: {prompt: 'what is it?'}\n")

    tuning = running.FineTuning(
        source,
        out=home / "out",
        model=str(start),
        overrides=(*QUICK, "schedule.steps=2"),
    )
    return tuning, run_quickly(tuning)


def test_heads_of_labelled_pictures_with_and_without_sound(tuning_of_two):
    """Each modality has a head, and is measured in each kind of sample that has it."""
    _, result = tuning_of_two
    assert list(read_config(result.folder / "model").model.heads) == ["classifier_image", "classifier_audio"]
    sets = set()
    for kind in ("image of image+audio+text", "audio of image+audio+text", "image"):
        sets |= {f"{kind} by {HEAD}", f"{kind} by {WORDS}"}
        assert f"the most confident first: {kind} by head" in result.report.read_text()
    assert {answers.set for answers in result.after} == sets


def test_tasks_of_the_start_are_kept(tuning_of_two):
    _, result = tuning_of_two
    assert read_yaml(result.folder / "model" / TASKS) == {"own": {"prompt": "what is it?"}}


def test_commands_to_try_name_each_of_several_heads(tuning_of_two, capsys):
    tuning, result = tuning_of_two
    _, *commands = commands_to_try(result, tuning.source)
    for command, num_items in zip(commands, (24, 12), strict=True):
        assert command in result.report.read_text()
        assert main([*shlex.split(command)[1:], "--json"]) == 0
        assert len(capsys.readouterr().out.splitlines()) == num_items


@pytest.mark.parametrize(
    ("labels", "is_taken"), [(["cat", "dog"], True), (["cow", "hen"], False), (["cat", "cow", "dog"], False)]
)
def test_head_of_the_start_is_taken_for_the_same_classes(tmp_path, labels, is_taken):
    head = {
        "kind": "classifier",
        "task": "label",
        "on": "image",
        "pool": "cls",
        "hidden_ratio": 0,
        "labels": ["cat", "dog"],
        "num_classes": 2,
    }
    start = save_random_model(tmp_path / "start", heads={"classifier": head})
    summary = SplitSummary("", {"train/image+text": 20}, 20, labels, not_held_out=[], left_out=[])
    recipe = build(Recipe, auto_recipe(start, tmp_path, tmp_path, summary), "")
    config = make_config(recipe)

    fresh = set(expected(config)) - set(start_weights(recipe, config, expected(config)))

    assert fresh == (set() if is_taken else {"heads.classifier.out.weight", "heads.classifier.out.bias"})
