"""A detector as a head of the model: it learns, is saved with it, and says the same of a picture in any company."""

import json

import pytest
import torch
from PIL import Image
from support.golden_cases import assert_near
from support.recipe_files import recipe_file
from support.small_models import network_of_pictures
from support.training import terms
from torchvision.models.detection.roi_heads import RoIHeads

from onepeace.cli import main
from onepeace.config import Config
from onepeace.data.batch import Batch
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
def calls(monkeypatch):
    """Torchvision's part finds a cat, and at the same place hardly a dog; the list gets the arguments of its calls."""
    calls = []

    def find(regions, maps, proposals, sizes, targets=None):
        calls.append((sizes, targets))
        found = {
            "boxes": torch.tensor([[8.0, 8.0, 48.0, 48.0]]).repeat(2, 1),
            "scores": torch.tensor([0.9, 0.2]),
            "labels": torch.tensor([2, 1]),
        }
        return [found] * len(sizes), {}

    monkeypatch.setattr(RoIHeads, "forward", find)
    return calls


def test_torchvision_is_trained_in_its_own_units(calls):
    """Pixels, and labels that count from the background."""
    wide_pixels = torch.randn(2, 3, 32, 96)
    batch = Batch({"image": {"pixels": wide_pixels}}, ["a", "b"], targets=TARGETS)
    Objective(small_network().train(), terms({"detection/image": {}}))(batch)

    sizes, (first, second) = calls.pop()
    assert sizes == [(32, 96)] * 2
    assert first["boxes"][0].tolist() == pytest.approx([9.6, 3.2, 48.0, 19.2])
    assert first["labels"].tolist() == [2]  # the cat; the box without an area is left out
    assert second["boxes"].shape == (0, 4)


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


@pytest.mark.usefixtures("calls")
def test_command_prints_and_draws_boxes_in_pixels(trained, tmp_path, capsys):
    """A grey picture, a.png, which the model sees squashed to 64 x 64."""
    config = Config(trained.config, {"image": {"size": 64}})
    model = weight_files.save(tmp_path / "model", trained, config)
    picture = tmp_path / "a.png"
    Image.new("RGB", (80, 40), (90, 90, 90)).save(picture)

    def classify(*options):
        assert main(["classify", str(picture), "--model", str(model), *options]) == 0
        return capsys.readouterr().out

    out = classify("--draw", str(tmp_path / "drawn"))
    assert "cat 0.90" in out
    assert "dog" not in out  # it is unlikely
    cat, _ = json.loads(classify("--json"))["boxes"]
    assert cat["label"] == "cat"
    assert cat["box"] == pytest.approx([10, 5, 60, 30])
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
