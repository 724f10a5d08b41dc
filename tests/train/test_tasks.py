"""Fine-tuning for every kind of task: it learns, is measured, and its model predicts after it was saved and loaded."""

import json

import pytest
from support.small_shards import COLOURS
from support.task_shards import FEW, write_task_shards
from support.training import MODEL, recipe

import onepeace
from onepeace.data.shards import read_source
from onepeace.errors import UserError
from onepeace.evaluate.protocols import PROTOCOLS
from onepeace.train import loop
from onepeace.train.log import read_log

CANDIDATES = "{text} answer: {candidate}"
AUDIO = {"min_seconds": 0.4, "max_seconds": 1.0}
TASKS = {
    # name: (shards, modality, others, term, head, target and further fields of the source, the metric to reach)
    "label": ("squares", "image", (), "classification/image", {"labels": "auto"}, ["label"], ("top-1 of 8", 0.9)),
    "answer": ("answers", "image", ("text",), "answers", {"labels": list(FEW)}, ["answers"], ("VQA accuracy", 0.9)),
    "box": ("boxes", "image", ("text",), "box", {}, ["box"], ("mean IoU", 0.4)),
    "choice": ("choices", "audio", ("text",), "choice", {}, ["candidates", "choice"], ("accuracy", 0.9)),
    "labels": ("tags", "audio", (), "multi_label/audio", {"labels": "auto"}, ["labels"], ("mAP of 3 classes", 0.9)),
    "events": ("events", "audio", (), "events/audio", {"labels": "auto"}, ["events"], ("event F1", 0.5)),
}  # fmt: skip
STEPS = {"box": 120, "choice": 40}
"""Where they are not 60."""


@pytest.fixture(scope="module")
def tasks(root):
    return write_task_shards(root)


def task_recipe(root, out, task, steps, **fields):
    shards, modality, others, term, head, targets, _ = TASKS[task]
    pair = [modality, *others]
    kind = "frames" if task == "events" else "classifier"
    # The modality whose tokens the head reads: text where there is some, as released, but of a box the picture.
    on = "text" if others and task != "box" else modality
    model = {**MODEL, "modalities": pair, "projections": [], "logit_scale": False, "init_std": 0.08,
             "layer_scale": 1.0, "heads": {"classifier": {"kind": kind, "on": on, **head}}}  # fmt: skip
    own = {"shards": f"{shards}.tar", "pair": pair, "targets": targets}
    own |= {"candidates": CANDIDATES} if task == "choice" else {}
    every = {"image": {"size": 24}, "text": {"max_tokens": 24}, "audio": AUDIO}
    processors = {key: options for key, options in every.items() if key in pair}
    fields = {"objective": {term: {}}, "processors": processors, "data": {"train": [own]}, **fields}
    return recipe(root, out, steps=steps, model=model, **fields)


def measured(folder, root, task):
    shards, modality, others, *_ = TASKS[task]
    protocol = PROTOCOLS["head"](modality=modality, shards=f"{shards}.tar", others=others)
    return {figure.metric: figure.value for figure in protocol.run(onepeace.load(folder), root)}


def numbers(value):
    """Every number in a result, in its order."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for one in value for number in numbers(one)]
    return [value] if isinstance(value, float) else []


# Recipes of tests/recipes learn the others, are measured and predict.
@pytest.mark.parametrize(
    "task", [pytest.param(task, marks=[] if task == "label" else [pytest.mark.slow]) for task in TASKS]
)
def test_a_task_is_learned_measured_saved_and_predicts(tasks, tmp_path, task):
    shards, modality, others, _, *_, (metric, floor) = TASKS[task]
    folder = loop.train(task_recipe(tasks, tmp_path, task, steps=STEPS.get(task, 60)))
    first, *_, last = read_log(tmp_path / "log.jsonl")
    assert last["loss"] < 0.7 * first["loss"]
    figures = measured(folder, tasks, task)
    assert floor <= figures[metric] <= 1, figures
    model = onepeace.load(folder)
    sample = read_source(f"{shards}.tar", (modality, *others), tasks)[0]
    item = {modality: sample.inputs[modality], **({"text": sample.captions[0]} if others else {})}
    item |= {"candidates": sample.targets["candidates"]} if task == "choice" else {}
    (result,) = model.predict([item])
    json.dumps(result)
    # Batch mates change nothing.
    longer = {modality: read_source(f"{shards}.tar", (modality, *others), tasks)[-1].inputs[modality]}
    beside = model.predict([{**item, **longer}, item, item])
    assert numbers(beside[1]) == pytest.approx(numbers(result), abs=1e-4)


@pytest.mark.parametrize(
    ("task", "fields", "message"),
    [
        ("label", {"objective": {"classification/image": {"head": "mood"}}}, "needs model.heads.mood"),
        ("label", {"data": {"train": [{"shards": "squares.tar", "pair": ["image"]}]}}, "reads the target label"),
        ("box", {"data": {"augment": {"image": {"flip": True}}}}, "data.augment.image would move"),
        ("choice", {"data": {"train": [{"shards": "choices.tar", "pair": ["audio", "text"],
                                        "targets": ["candidates", "choice"]}]}}, "needs candidates of choices.tar"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(tasks, tmp_path, task, fields, message):
    whole = task_recipe(tasks, tmp_path, task, steps=1)
    if "augment" in (data := fields.get("data", {})):
        fields = {"data": {"train": [dict(vars(one)) for one in whole.data.train], **data}}
    with pytest.raises(UserError) as caught:
        loop.train(task_recipe(tasks, tmp_path, task, steps=1, **fields))
    assert message in str(caught.value)


def test_a_label_that_is_no_class_is_named(root, tmp_path):
    (tmp_path / "names.json").write_text(json.dumps([name for name in COLOURS if name != "red"]))
    made = task_recipe(root, tmp_path / "run", "label", steps=30)
    model = {
        **made.model,
        "heads": {"classifier": {"kind": "classifier", "on": "image", "labels": str(tmp_path / "names.json")}},
    }
    with pytest.raises(UserError, match=r"red\d+: 'red' is not among the 7 labels of the head"):
        loop.train(recipe(root, tmp_path / "run", steps=30, model=model, objective=made.objective,
                          data={"train": [{"shards": "squares.tar", "pair": ["image"], "targets": ["label"]}]},
                          processors=made.processors))  # fmt: skip
