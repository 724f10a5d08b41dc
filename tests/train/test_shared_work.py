"""Several processes share what one would do alone: features of frozen stems, outputs of teachers, the evaluation."""

import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from support.processes import start, train
from support.small_shards import COLOURS
from support.training import MODEL, recipe, source
from test_stem_features import losses, stem_recipe

from onepeace.config import write_config
from onepeace.data.frozen_cache import FrozenCache, Output
from onepeace.embed.embedder import load
from onepeace.errors import UserError
from onepeace.processors import ImageProcessor
from onepeace.train import frozen_outputs, loop, parallel, stem_features
from onepeace.train.evaluation import evaluation, share_out
from onepeace.train.frozen_outputs import compute_missing
from onepeace.train.recipe import read_recipe

PART = 20


def train_and_note(path, overrides, notes):
    """A run whose processes note the number of views that they computed."""
    stem_features.PART = PART
    compute = stem_features.StemViews._compute

    def noted(self, media):
        with (notes / os.environ["RANK"]).open("a") as file:
            file.write(f"{len(media)}\n")
        return compute(self, media)

    stem_features.StemViews._compute = noted
    train(path, overrides)


def parts_of(folder):
    """Listing and rows of each part of a cache."""
    parts = {}
    for listing in folder.glob("part-*.json"):
        rows = np.load(listing.with_suffix(".npy"))
        parts[listing.stem] = (listing.read_text(), rows.tobytes())
    return parts


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_features_of_stems_are_shared_and_those_of_one_process(root, tmp_path, monkeypatch, way):
    data = {"augment": {"image": {"crop_scale": [0.5, 1.0]}}}
    wanted = stem_recipe(root, tmp_path / "run", {"image": 2}, data=data)
    write_config(wanted, tmp_path / "recipe.yaml")
    (tmp_path / "notes").mkdir()
    overrides = [f"run.out={tmp_path / 'two'}", f"run.parallel={way}"]
    start(2, train_and_note, tmp_path / "recipe.yaml", overrides, tmp_path / "notes")
    computed = {}
    for path in (tmp_path / "notes").iterdir():
        computed[path.name] = sum(int(count) for count in path.read_text().split())
    assert computed == {"0": 2 * 56, "1": 2 * 40}  # views of parts of 20, 20, 16 and of 20, 20 items

    monkeypatch.setattr(stem_features, "PART", PART)
    loop.train(wanted)
    (alone,) = (tmp_path / "run" / "frozen").iterdir()
    (shared,) = (tmp_path / "two" / "frozen").iterdir()
    assert alone.name == shared.name
    assert parts_of(alone) == parts_of(shared)
    assert len(parts_of(alone)) == 5
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "run"), rel=1e-4)


def miss_differently(folder):
    """Two machines whose folders are not the same one."""
    with parallel.group(torch.device("cpu")):
        cache = FrozenCache(folder / str(parallel.rank()), {"a": None, "b": None})
        if parallel.rank():
            cache.folder.mkdir()
            cache.write(0, [Output("a", np.zeros((1, 2), np.float16))])
            cache.refresh()
        with pytest.raises(UserError, match=r"processes miss 1 to 2 outputs in it; set data\.frozen_folder"):
            compute_missing(cache, lambda names: [], 1)


def test_a_folder_that_the_processes_do_not_share_is_an_error(tmp_path):
    start(2, miss_differently, tmp_path)
    assert not list(Path(tmp_path / "0").glob("part-*"))


def test_another_run_that_computes_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(frozen_outputs, "LOCK_SECONDS", 0.05)
    items = {"a": None}
    other = FrozenCache(tmp_path, items)
    asked = threading.Event()
    acquired = frozen_outputs._acquired

    def noted(lock):
        if not acquired(lock):
            asked.set()
            return False
        return True

    monkeypatch.setattr(frozen_outputs, "_acquired", noted)

    def compute_slowly():
        with other.lock():
            started.set()
            assert asked.wait(10)
            other.write(0, [Output("a", np.ones((1, 2), np.float16))])

    started = threading.Event()
    thread = threading.Thread(target=compute_slowly)
    thread.start()
    assert started.wait(10)
    cache = FrozenCache(tmp_path, items)
    compute_missing(cache, lambda names: pytest.fail("it is there by now"), 1)
    thread.join()
    assert cache.missing == []


# Evaluation

SETS = """
sets:
  names: {protocol: zero_shot, modality: image, shards: squares.tar, at: [1, 2]}
  labels: {protocol: head, modality: image, shards: squares.tar, head: colours}
"""
HEADS = {"colours": {"kind": "classifier", "on": "image", "pool": "cls", "hidden_ratio": 0, "labels": list(COLOURS)}}


@pytest.fixture(scope="module")
def measured(root, tmp_path_factory):
    """A recipe with an evaluation, and the model that it has trained."""
    folder = tmp_path_factory.mktemp("measured")
    (folder / "sets.yaml").write_text(SETS)
    wanted = recipe(
        root,
        folder / "run",
        steps=2,
        model={**MODEL, "heads": HEADS},
        data={"train": [source(targets=["label"])]},
        objective={"contrastive": {}, "classification/image": {"head": "colours"}},
        evaluate={"recipe": str(folder / "sets.yaml")},
    )
    write_config(wanted, folder / "recipe.yaml")
    loop.train(wanted)
    return folder


def scores_of(folder, notes):
    """Scores of the trained model; the number of pictures that this process decodes is noted."""
    decode = ImageProcessor.decode
    decoded = []

    def noted(self, item):
        decoded.append(1)
        return decode(self, item)

    ImageProcessor.decode = noted
    try:
        with parallel.group(torch.device("cpu")):
            embedder = load(folder / "run" / "model", device="cpu")
            scores = evaluation(read_recipe(folder / "recipe.yaml"))(embedder.module, embedder.processors)
            (notes / str(parallel.rank())).write_text(json.dumps([scores, len(decoded)]))
    finally:
        ImageProcessor.decode = decode


def test_evaluation_is_shared_and_every_process_has_the_scores_of_one(measured, tmp_path):
    scores_of(measured, tmp_path)
    expected, whole = json.loads((tmp_path / "0").read_text())
    start(2, scores_of, measured, tmp_path)
    first, second = (json.loads((tmp_path / str(rank)).read_text()) for rank in range(2))
    assert first[0] == second[0] == expected
    assert {name.partition("/")[0] for name in expected} == {"names", "labels"}
    assert first[1] == second[1] == whole / 2


def encode_with_a_broken_item(folder):
    """Item 3, of the second process, fails."""

    def compute(items):
        if 3 in items:
            raise UserError("item 3 is broken")
        return [2 * item for item in items]

    with parallel.group(torch.device("cpu")):
        assert share_out(compute, [0, 1, 2]) == [0, 2, 4]
        assert share_out(compute, []) == []
        with pytest.raises(UserError, match="item 3 is broken"):
            share_out(compute, [0, 1, 2, 3])
        (folder / str(parallel.rank())).touch()


def test_an_item_that_fails_in_one_process_fails_in_all(tmp_path):
    start(2, encode_with_a_broken_item, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
