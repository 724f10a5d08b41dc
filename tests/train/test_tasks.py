"""Fine-tuning for every kind of task: it learns, is measured, and its model predicts after it was saved and loaded."""

import json
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from support.small_shards import COLOURS
from support.task_shards import FEW, write_task_shards
from support.training import MODEL, assert_falls, make_recipe, with_slow

import onepeace
from onepeace.data.source import read_source
from onepeace.errors import UserError
from onepeace.evaluate.protocols import PROTOCOLS
from onepeace.train import trainer
from onepeace.train.terms.contrastive import Contrastive, ContrastiveOptions

PROCESSORS = {
    "image": {"size": 24},
    "text": {"max_tokens": 24},
    "audio": {"min_seconds": 0.4, "max_seconds": 1.0},
}


@dataclass(frozen=True)
class Task:
    shards: str
    pair: list[str]
    term: str
    targets: list[str]
    metric: str
    floor: float
    """Value of the metric that a trained model reaches."""
    kind: str = "classifier"
    on: str = "text"
    """The modality whose tokens the head reads."""
    labels: object = None
    steps: int = 60

    @property
    def source(self):
        source = {"shards": self.shards, "pair": self.pair, "targets": self.targets}
        if "candidates" in self.targets:
            source["candidates"] = "{text} answer: {candidate}"
        return source

    def head(self, labels):
        labels = labels or self.labels
        options = {"labels": labels} if labels else {}
        return {"kind": self.kind, "on": self.on, **options}


TASKS = {
    "label": Task(
        shards="squares.tar",
        pair=["image"],
        term="classification/image",
        targets=["label"],
        on="image",
        labels="auto",
        metric="top-1 of 8",
        floor=0.9,
    ),
    "answer": Task(
        shards="answers.tar",
        pair=["image", "text"],
        term="answers",
        targets=["answers"],
        labels=list(FEW),
        metric="VQA accuracy",
        floor=0.9,
    ),
    "box": Task(
        shards="boxes.tar",
        pair=["image", "text"],
        term="box",
        targets=["box"],
        on="image",
        metric="mean IoU",
        floor=0.4,
        steps=120,
    ),
    "choice": Task(
        shards="choices.tar",
        pair=["audio", "text"],
        term="choice",
        targets=["candidates", "choice"],
        metric="accuracy",
        floor=0.9,
        steps=40,
    ),
    "labels": Task(
        shards="tags.tar",
        pair=["audio"],
        term="multi_label/audio",
        targets=["labels"],
        on="audio",
        labels="auto",
        metric="mAP of 3 classes",
        floor=0.9,
    ),
}


@pytest.fixture(scope="module")
def tasks(root):
    return write_task_shards(root)


def task_recipe(root, out, task, *, steps=1, labels=None, **fields):
    model = {
        **MODEL,
        "modalities": task.pair,
        "projections": [],
        "logit_scale": False,
        "init_std": 0.08,
        "layer_scale": 1.0,
        "heads": {"classifier": task.head(labels)},
    }
    fields = {
        "objective": {task.term: {}},
        "processors": {key: PROCESSORS[key] for key in task.pair},
        "data": {"train": [task.source]},
        **fields,
    }
    return make_recipe(root, out, steps=steps, model=model, **fields)


def items_of(root, task):
    """The first item of the task's shards, and another one that differs in its picture or sound."""
    modality = task.pair[0]
    samples = read_source(task.shards, tuple(task.pair), root)
    item = {modality: samples[0].inputs[modality]}
    if "text" in task.pair:
        item["text"] = samples[0].captions[0]
    if "candidates" in task.targets:
        item["candidates"] = samples[0].targets["candidates"]
    return item, {**item, modality: samples[-1].inputs[modality]}


def numbers(value):
    """Every number in a result, in its order."""
    if isinstance(value, dict):
        return numbers(list(value.values()))
    if isinstance(value, float):
        return [value]
    result = []
    if isinstance(value, list):
        for element in value:
            result += numbers(element)
    return result


# Recipes of tests/recipes learn the others, are measured and predict.
@pytest.mark.parametrize("name", with_slow(TASKS, lambda name: name != "label"))
def test_task_is_learned_and_predicts(tasks, tmp_path, name):
    task = TASKS[name]

    folder = trainer.train(task_recipe(tasks, tmp_path, task, steps=task.steps))

    assert_falls(tmp_path, "loss", factor=0.7)
    model = onepeace.load(folder)
    protocol = PROTOCOLS["head"](modality=task.pair[0], shards=task.shards, others=tuple(task.pair[1:]))
    figures = {figure.metric: figure.value for figure in protocol.run(model, tasks)}
    assert task.floor <= figures[task.metric] <= 1

    item, longer = items_of(tasks, task)
    (alone,) = model.predict([item])
    _, among_others, _ = model.predict([longer, item, item])
    json.dumps(alone)
    assert numbers(among_others) == pytest.approx(numbers(alone), abs=1e-4)


WITHOUT_CANDIDATES = {"shards": "choices.tar", "pair": ["audio", "text"], "targets": ["candidates", "choice"]}


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("label", {"objective": {"classification/image": {"head": "mood"}}}, r"model\.heads\.mood"),
        ("label", {"data": {"train": [{"shards": "squares.tar", "pair": ["image"]}]}}, "the target label"),
        (
            "box",
            {"processors": {"image": {"resize": "crop"}}},
            r"processors\.image\.resize is crop",
        ),
        (
            "box",
            {"data": {"train": [TASKS["box"].source], "augment": {"image": {"flip": True}}}},
            r"data\.augment\.image would move",
        ),
        ("choice", {"data": {"train": [WITHOUT_CANDIDATES]}}, r"candidates of choices\.tar"),
    ],
)
def test_task_recipe_that_does_not_fit(tasks, tmp_path, name, fields, message):
    with pytest.raises(UserError, match=message):
        trainer.train(task_recipe(tasks, tmp_path, TASKS[name], **fields))


def test_label_that_is_no_class_is_named(root, tmp_path):
    labels = tmp_path / "names.json"
    labels.write_text(json.dumps([name for name in COLOURS if name != "red"]))

    with pytest.raises(UserError, match=r"red\d+: 'red' is not among the 7 labels"):
        trainer.train(task_recipe(root, tmp_path / "run", TASKS["label"], steps=30, labels=str(labels)))


def test_contrast_of_items_with_two_pictures_is_refused():
    """The text of an item would be a negative of itself."""
    batch = SimpleNamespace(rows=2, source="image+text")
    options = ContrastiveOptions(term="contrastive")
    with pytest.raises(UserError, match=r"objective\.contrastive: .*items of image\+text have 2 pictures"):
        Contrastive(options, None).loss({}, batch, None)
