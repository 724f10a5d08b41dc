"""Fine-tuning for a task: it learns, and is measured after it was saved and loaded; what does not fit is named. The
other tasks: the recipes of tests/recipes."""

import json
from types import SimpleNamespace

import pytest
from support.small_shards import COLOURS
from support.training import MODEL, assert_falls, make_recipe

import onepeace
from onepeace.errors import UserError
from onepeace.evaluate.protocols import PROTOCOLS
from onepeace.train import trainer
from onepeace.train.terms.contrastive import Contrastive, ContrastiveOptions
from onepeace.train.terms.heads import Classification, ClassificationOptions

LABEL = {"shards": "squares.tar", "pair": ["image"], "targets": ["label"]}
BOX = {"shards": "squares.tar", "pair": ["image", "text"], "targets": ["box"]}
CHOICE = {"shards": "tones.tar", "pair": ["audio", "text"], "targets": ["candidates", "choice"]}


def task_recipe(root, out, source, *, term="classification/image", on="image", labels="auto", steps=1, **fields):
    head = {"kind": "classifier", "on": on}
    if labels:
        head["labels"] = labels
    model = {
        **MODEL,
        "modalities": source["pair"],
        "projections": [],
        "logit_scale": False,
        "init_std": 0.08,
        "layer_scale": 1.0,
        "heads": {"classifier": head},
    }
    fields = {"objective": {term: {}}, "data": {"train": [source]}, **fields}
    return make_recipe(root, out, steps=steps, model=model, **fields)


def test_task_is_learned(root, tmp_path):
    folder = trainer.train(task_recipe(root, tmp_path, LABEL, steps=40))

    assert_falls(tmp_path, "loss", factor=0.7)
    protocol = PROTOCOLS["head"](modality="image", shards="squares.tar")
    (ranking,) = protocol.run(onepeace.load(folder), root)
    top_1, *_ = ranking.figures()
    assert top_1.metric == "top-1 of 8"
    assert 0.7 < top_1.value <= 1


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (LABEL, {"objective": {"classification/image": {"head": "mood"}}}, r"model\.heads\.mood"),
        (LABEL, {"data": {"train": [{"shards": "squares.tar", "pair": ["image"]}]}}, "the target label"),
        (
            BOX,
            {"term": "box", "processors": {"image": {"resize": "crop"}}},
            r"processors\.image: .*set resize to squash",
        ),
        (
            BOX,
            {"term": "box", "data": {"train": [BOX], "augment": {"image": {"flip": True}}}},
            r"data\.augment\.image would move",
        ),
        (CHOICE, {"term": "choice", "on": "text"}, r"candidates of tones\.tar"),
    ],
)
def test_task_recipe_that_does_not_fit(root, tmp_path, source, options, message):
    """Before any data is read: the shards have no boxes and choices."""
    labels = "auto" if source is LABEL else None
    with pytest.raises(UserError, match=message):
        trainer.train(task_recipe(root, tmp_path, source, labels=labels, **options))


def test_label_that_is_no_class_is_named(root, tmp_path):
    labels = tmp_path / "names.json"
    labels.write_text(json.dumps([name for name in COLOURS if name != "red"]))

    with pytest.raises(UserError, match=r"red\d+: 'red' is not among the 7 labels"):
        trainer.train(task_recipe(root, tmp_path / "run", LABEL, steps=30, labels=str(labels)))


@pytest.mark.parametrize(("rows", "inputs"), [(2, 1), (1, 2)])
def test_head_that_reads_another_number_of_pictures_than_items_have_is_refused(rows, inputs):
    model = SimpleNamespace(config=SimpleNamespace(heads={"classifier": {"inputs": inputs}}))
    passes = SimpleNamespace(batch=SimpleNamespace(rows=rows, source="image"), model=model)
    options = ClassificationOptions(term="classification")
    with pytest.raises(UserError, match=rf"head reads {inputs} .* items of image have {rows} pictures"):
        Classification(options, model).outputs(passes)


def test_contrast_of_items_with_two_pictures_is_refused():
    """The text of an item would be a negative of itself."""
    batch = SimpleNamespace(rows=2, source="image+text")
    options = ContrastiveOptions(term="contrastive")
    with pytest.raises(UserError, match=r"objective\.contrastive: .*items of image\+text have 2 pictures"):
        Contrastive(options, None).loss({}, batch, None)
