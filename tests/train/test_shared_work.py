"""Several processes share what one would do alone: features of frozen stems, outputs of teachers, the evaluation."""

import json
import os
import threading

import numpy as np
import pytest
import torch
from support.processes import start, train
from support.small_shards import COLOURS
from support.training import MODEL, make_recipe, series, source, stem_recipe

from onepeace.config import write_config
from onepeace.embed.embedder import load
from onepeace.errors import UserError
from onepeace.processors import ImageProcessor
from onepeace.train import frozen, parallel, trainer
from onepeace.train.evaluation import evaluation, share_out
from onepeace.train.frozen import FrozenCache, Output, compute_missing
from onepeace.train.recipe import read_recipe

CPU = torch.device("cpu")
PART = 20


def train_and_note(path, overrides, notes):
    """A run whose processes note the number of views that each computed and wrote."""
    frozen.PART = PART
    write = FrozenCache.write

    def write_and_note(self, number, outputs):
        with (notes / os.environ["RANK"]).open("a") as file:
            file.write(f"{len(outputs)}\n")
        write(self, number, outputs)

    FrozenCache.write = write_and_note
    train(path, overrides)


def parts_of(frozen):
    """Content of each part of the one cache in the folder, and the name of the cache."""
    (cache,) = frozen.iterdir()
    parts = {}
    for path in cache.glob("part-*"):
        parts[f"{cache.name}/{path.name}"] = path.read_bytes()
    return parts


def test_processes_share_stem_features(root, tmp_path, monkeypatch):
    data = {"augment": {"image": {"crop_scale": [0.5, 1.0]}}}
    recipe = stem_recipe(root, tmp_path / "alone", {"image": 2}, data=data)
    write_config(recipe, tmp_path / "recipe.yaml")
    notes = tmp_path / "notes"
    notes.mkdir()

    overrides = [f"run.out={tmp_path / 'shared'}"]
    start(2, train_and_note, tmp_path / "recipe.yaml", overrides, notes)
    monkeypatch.setattr(frozen, "PART", PART)
    trainer.train(recipe)

    counts = {}
    for path in notes.iterdir():
        counts[path.name] = sum(int(count) for count in path.read_text().split())
    assert counts == {"0": 2 * 56, "1": 2 * 40}  # views of parts of 20, 20, 16 and of 20, 20 items
    parts = parts_of(tmp_path / "alone" / "frozen")
    assert len(parts) == 5
    assert parts == parts_of(tmp_path / "shared" / "frozen")
    losses = series(tmp_path / "alone", "loss")
    assert series(tmp_path / "shared", "loss") == pytest.approx(losses, rel=1e-4)


OUTPUT = Output("a", np.zeros((1, 2), np.float16))


def miss_differently(folder):
    """Two machines whose folders are not the same one."""
    with parallel.group(CPU):
        rank = parallel.rank()
        cache = FrozenCache(folder / str(rank), dict.fromkeys("ab"))
        if rank == 1:
            cache.folder.mkdir()
            cache.write(0, [OUTPUT])
            cache.refresh()
        with pytest.raises(UserError, match=r"1 to 2 outputs .* data\.frozen_folder"):
            compute_missing(cache, lambda names: [], 1)


def test_folder_not_shared_by_processes(tmp_path):
    start(2, miss_differently, tmp_path)

    assert not list((tmp_path / "0").glob("part-*"))


@pytest.fixture
def is_waiting(monkeypatch):
    """An event that is set when a run has to wait for another one."""
    event = threading.Event()
    first_decides = parallel.first_decides

    def note_and_decide(is_locked):
        if not is_locked:
            event.set()
        return first_decides(is_locked)

    monkeypatch.setattr(frozen, "LOCK_SECONDS", 0.05)
    monkeypatch.setattr(parallel, "first_decides", note_and_decide)
    return event


def test_computing_waits_for_another_run(tmp_path, is_waiting):
    items = {"a": None}
    other = FrozenCache(tmp_path, items)
    is_locked = threading.Event()

    def compute_slowly():
        with other.lock():
            is_locked.set()
            assert is_waiting.wait(10)
            other.write(0, [OUTPUT])

    thread = threading.Thread(target=compute_slowly)
    thread.start()
    assert is_locked.wait(10)

    cache = FrozenCache(tmp_path, items)
    compute_missing(cache, lambda names: pytest.fail("it is there by now"), 1)

    thread.join()
    assert cache.missing == []


# Evaluation

HEAD = {
    "kind": "classifier",
    "on": "image",
    "pool": "cls",
    "hidden_ratio": 0,
    "labels": list(COLOURS),
}
PICTURES = {"modality": "image", "shards": "squares.tar"}
EVALUATION = {
    "sets": {
        "names": {"protocol": "zero_shot", "at": [1, 2], **PICTURES},
        "labels": {"protocol": "head", "head": "colours", **PICTURES},
    }
}


@pytest.fixture(scope="module")
def measured(root, tmp_path_factory):
    """Folder of a recipe with an evaluation, and of the model that it has trained."""
    folder = tmp_path_factory.mktemp("measured")
    write_config(EVALUATION, folder / "sets.yaml")
    recipe = make_recipe(
        root,
        folder / "run",
        steps=2,
        model={**MODEL, "heads": {"colours": HEAD}},
        data={"train": [source(targets=["label"])]},
        objective={"contrastive": {}, "classification/image": {"head": "colours"}},
        evaluate={"recipe": str(folder / "sets.yaml")},
    )
    write_config(recipe, folder / "recipe.yaml")
    trainer.train(recipe)
    return folder


def note_scores(folder, notes):
    """Scores of the trained model, and the number of pictures that this process decodes."""
    decode = ImageProcessor.decode
    pictures = []

    def decode_and_note(self, item):
        pictures.append(item)
        return decode(self, item)

    with pytest.MonkeyPatch.context() as patch, parallel.group(CPU):
        patch.setattr(ImageProcessor, "decode", decode_and_note)
        embedder = load(folder / "run" / "model", device="cpu")
        scores = evaluation(read_recipe(folder / "recipe.yaml"))(embedder.module, embedder.processors)
        content = json.dumps([scores, len(pictures)])
        (notes / str(parallel.rank())).write_text(content)


def read_scores(notes, rank):
    return json.loads((notes / str(rank)).read_text())


def test_processes_share_evaluation(measured, tmp_path):
    """Each has the scores of one process."""
    note_scores(measured, tmp_path)
    expected, num_pictures = read_scores(tmp_path, rank=0)
    assert {name.partition("/")[0] for name in expected} == {"names", "labels"}

    start(2, note_scores, measured, tmp_path)

    for rank in range(2):
        assert read_scores(tmp_path, rank) == [expected, num_pictures / 2]


def share_out_broken_item(folder):
    """Item 3, of the second process, fails."""

    def double(items):
        if 3 in items:
            raise UserError("item 3 is broken")
        return [2 * item for item in items]

    with parallel.group(CPU):
        assert share_out(double, [0, 1, 2]) == [0, 2, 4]
        assert share_out(double, []) == []
        with pytest.raises(UserError, match="item 3 is broken"):
            share_out(double, [0, 1, 2, 3])
        (folder / str(parallel.rank())).touch()


def test_failing_item_fails_in_all_processes(tmp_path):
    start(2, share_out_broken_item, tmp_path)

    assert len(list(tmp_path.iterdir())) == 2
