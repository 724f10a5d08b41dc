"""A detector as a head of the model: it learns, is saved with it, and says the same of a picture in any company."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from support.golden_cases import assert_near
from support.recipe_files import recipe_file
from support.small_models import network_of_pictures
from support.training import terms

from onepeace.cli import main
from onepeace.config import Config
from onepeace.data.batch import Batch
from onepeace.embed.predict import TASKS, Context
from onepeace.errors import UserError
from onepeace.hub import weights as weight_files
from onepeace.train.objective import Objective

box_ap = recipe_file("detection").box_ap

HEAD = {
    "kind": "detection",
    "on": "image",
    "labels": ["dog", "cat"],
    "num_classes": 2,
    "task": "boxes",
    "channels": 16,
    "hidden": 32,
    "anchor": 4,
    "detections": 7,
}
TARGETS = {
    "boxes": [
        [
            [0.1, 0.1, 0.5, 0.6],
            [0.5, 0.5, 0.5, 0.9],  # no area
        ],
        [],
    ],
    "box_labels": [["cat", "dog"], []],
}


def small_network():
    torch.manual_seed(0)
    return network_of_pictures({"classifier": HEAD})


def pixels(count=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 64, 64, generator=generator)


def training_batch(model, targets=TARGETS):
    batch = Batch({"image": {"pixels": pixels()}}, keys=["a", "b"], targets=targets)
    return batch.measured(model.adapters).split(2, model.adapters)


def test_losses_reach_the_encoder():
    model = small_network().train()
    objective = Objective(model, terms({"detection/image": {}}))
    losses = objective(training_batch(model))
    losses["loss"].backward()
    names = {name.rpartition("/")[2] for name in losses if name.startswith("detection/image/")}
    assert names == {"objectness", "rpn_box_reg", "classifier", "box_reg"}
    num_parameters = 0
    for name, parameter in model.named_parameters():
        if ".stem." in name or "blocks.0.attn" in name:
            assert parameter.grad.any(), name
            num_parameters += 1
    assert num_parameters > 8


def test_label_that_the_head_does_not_know():
    model = small_network().train()
    batch = training_batch(model, {**TARGETS, "box_labels": [["cow", "dog"], []]})
    with pytest.raises(UserError, match="a: 'cow'"):
        Objective(model, terms({"detection/image": {}}))(batch)


@pytest.fixture
def wide_pixels():
    """Pictures 96 wide and 32 high, six patches by two."""
    return torch.randn(2, 3, 32, 96)


@pytest.fixture
def detector(monkeypatch):
    """A network whose torchvision part finds one cat in each picture, and the arguments of its calls."""
    model = small_network()
    calls = []

    def find_cat(maps, proposals, sizes, targets=None):
        calls.append((sizes, targets))
        cat = {
            "boxes": torch.tensor([[24.0, 0.0, 96.0, 16.0]]),
            "scores": torch.tensor([0.7]),
            "labels": torch.tensor([2]),
        }
        return [cat] * len(sizes), {}

    monkeypatch.setattr(model.heads["classifier"].regions, "forward", find_cat)
    return model, calls


def test_torchvision_is_trained_in_its_own_units(detector, wide_pixels):
    """Pixels, and labels that count from the background."""
    model, calls = detector
    batch = Batch({"image": {"pixels": wide_pixels}}, ["a", "b"], targets=TARGETS)
    Objective(model.train(), terms({"detection/image": {}}))(batch)

    sizes, (first, second) = calls.pop()
    assert sizes == [(32, 96)] * 2
    assert first["boxes"][0].tolist() == pytest.approx([9.6, 3.2, 48.0, 19.2])
    assert first["labels"].tolist() == [2]  # the cat; the box without an area is left out
    assert second["boxes"].shape == (0, 4)


@torch.no_grad()
def test_torchvision_answers_in_its_own_units(detector, wide_pixels):
    model, _ = detector
    detections = model.eval().predict({"image": {"pixels": wide_pixels}})
    assert detections[1, 0].tolist() == pytest.approx([0.25, 0.0, 1.0, 0.5, 0.7, 1.0])
    assert not detections[:, 1:].any()


@pytest.fixture
def trained():
    return small_network().eval()


@torch.no_grad()
def test_detections_of_a_batch(trained):
    detections = trained.predict({"image": {"pixels": pixels(3)}})
    assert detections.shape == (3, 7, 6)
    is_found = detections[..., 4] > 0
    x0, y0, x1, y1, score, label = detections[is_found].unbind(1)
    assert len(score) >= 3
    assert ((x0 >= 0) & (x0 <= x1) & (x1 <= 1)).all()
    assert ((y0 >= 0) & (y0 <= y1) & (y1 <= 1)).all()
    assert set(label.tolist()) <= {0.0, 1.0}

    alone = trained.predict({"image": {"pixels": pixels(3)[1:2]}})
    assert_near(alone[0], detections[1], 1e-4)


def save(model, tmp_path):
    config = Config(model.config, {"image": {"size": 64}})
    return weight_files.save(tmp_path / "model", model, config)


def test_boxes_are_in_the_pixels_of_the_picture():
    output = torch.zeros(1, 2, 6)
    output[0, 0] = torch.tensor([0.1, 0.2, 0.5, 0.6, 0.9, 1.0])
    context = Context(labels=("dog", "cat"), size=(200, 100))
    (box,) = TASKS["boxes"].result(output, context)["boxes"]
    assert box["label"] == "cat"
    assert box["score"] == pytest.approx(0.9)
    assert box["box"] == pytest.approx([20, 20, 100, 60])


CAT = {"label": "cat", "score": 0.9, "box": [10.0, 5.0, 60.0, 30.0]}
UNLIKELY_DOG = {"label": "dog", "score": 0.2, "box": [10.0, 5.0, 60.0, 30.0]}


@pytest.fixture
def classify(trained, tmp_path, capsys, monkeypatch):
    """Prints the boxes of a grey picture, a.png: these two."""
    boxes = {"boxes": [CAT, UNLIKELY_DOG]}
    task = replace(TASKS["boxes"], result=lambda output, context: boxes)
    monkeypatch.setitem(TASKS, "boxes", task)
    model = str(save(trained, tmp_path))
    picture = tmp_path / "a.png"
    Image.new("RGB", (80, 40), (90, 90, 90)).save(picture)

    def run(*options):
        assert main(["classify", str(picture), "--model", model, *options]) == 0
        return capsys.readouterr().out

    return run


def test_command_prints_and_draws_boxes(classify, tmp_path):
    out = classify("--draw", str(tmp_path / "drawn"))
    assert "cat 0.90" in out
    assert "dog" not in out  # it is unlikely
    assert len(json.loads(classify("--json"))["boxes"]) == 2
    drawn = Image.open(tmp_path / "drawn" / "a.png.png").convert("RGB")
    assert drawn.size == (80, 40)
    assert drawn.getpixel((60, 20)) == (230, 40, 40)
    assert drawn.getpixel((30, 20)) == (90, 90, 90)


OBJECTS = [
    [
        ((0.0, 0.0, 0.5, 0.5), "dog"),
        ((0.5, 0.5, 1.0, 1.0), "cat"),
    ],
    [((0.2, 0.2, 0.8, 0.8), "dog")],
]
"""The boxes and classes of two pictures."""


@pytest.fixture
def coco():
    pytest.importorskip("pycocotools")


@pytest.mark.usefixtures("coco")
def test_average_precision_is_that_of_coco():
    """One of the two dogs is found, with an overlap of 0.81: right for thresholds up to 0.8, 7 of 10."""
    detections = [
        [
            ((0.0, 0.0, 0.5, 0.405), "dog", 0.8),
            ((0.5, 0.5, 1.0, 1.0), "cat", 0.7),
        ],
        [((0.0, 0.0, 1.0, 1.0), "bird", 0.9)],
    ]
    mean, at_half = box_ap(detections, OBJECTS)
    recall = 51 / 101  # of 101 points of recall those up to a half are reached
    assert at_half == pytest.approx((1 + recall) / 2)
    assert mean == pytest.approx((1 + 0.7 * recall) / 2)


@pytest.mark.usefixtures("coco")
def test_average_precision_of_no_boxes_or_objects():
    assert box_ap([[], []], OBJECTS) == (0.0, 0.0)
    with pytest.raises(UserError, match="object"):
        box_ap([[]], [[]])
