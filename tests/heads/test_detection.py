"""A detector as a head of the model: it learns, is saved with it, and says the same of a picture in any company."""

import json

import pytest
import torch
from PIL import Image
from support.small_models import network_of_pictures
from support.training import terms

from onepeace.cli import main
from onepeace.config import Config
from onepeace.data.batch import Batch
from onepeace.embed.tasks import TASKS, Context
from onepeace.errors import UserError
from onepeace.evaluate.detections import box_ap
from onepeace.hub import weights as weight_files
from onepeace.train.objective import Objective

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
    "boxes": [[[0.1, 0.1, 0.5, 0.6], [0.5, 0.5, 0.5, 0.9]], []],  # the second has no area, the last picture no object
    "box_labels": [["cat", "dog"], []],
}


def small_network():
    torch.manual_seed(0)
    return network_of_pictures({"classifier": HEAD})


def pixels(count=2):
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_its_losses_fall_and_reach_the_encoder():
    model = small_network().train()
    batch = Batch({"image": {"pixels": pixels()}}, ["a", "b"], ["", ""], [[], []], TARGETS)
    batch = batch.measured(model.adapters).split(2, model.adapters)
    objective = Objective(model, terms({"detection/image": {}}))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    totals = []
    for _ in range(4):
        torch.manual_seed(0)  # regions are drawn
        losses = objective(batch)
        totals.append(losses["loss"].item())
        optimizer.zero_grad()
        losses["loss"].backward()
        encoder = {name: p for name, p in model.named_parameters() if ".stem." in name or "blocks.0.attn" in name}
        assert len(encoder) > 8
        assert [name for name, p in encoder.items() if p.grad is None or not p.grad.any()] == []
        optimizer.step()
    assert totals[-1] < 0.5 * totals[0]
    names = {name.rpartition("/")[2] for name in losses if name.startswith("detection/image/")}
    assert names == {"objectness", "rpn_box_reg", "classifier", "box_reg"}
    wrong = Batch(batch.inputs, batch.keys, targets={**TARGETS, "box_labels": [["cow", "dog"], []]})
    with pytest.raises(UserError, match="a: 'cow' is not among the 2 labels of the head"):
        objective(wrong)


def test_torchvision_counts_in_its_own_units_and_from_the_background(monkeypatch):
    """Of a picture 96 wide and 32 high, six patches by two."""
    model = small_network()
    wide = {"image": {"pixels": pixels()[:, :, :32].repeat(1, 1, 1, 2)[..., :96]}}
    calls = []

    def regions(maps, proposals, sizes, targets=None):
        calls.append((sizes, targets))
        boxes = {
            "boxes": torch.tensor([[24.0, 0.0, 96.0, 16.0]]),
            "scores": torch.tensor([0.7]),
            "labels": torch.tensor([2]),
        }
        return [boxes] * len(sizes), {}

    monkeypatch.setattr(model.heads["classifier"].regions, "forward", regions)
    Objective(model.train(), terms({"detection/image": {}}))(Batch(wide, ["a", "b"], targets=TARGETS))
    sizes, targets = calls.pop()
    assert sizes == [(32, 96)] * 2
    assert torch.allclose(targets[0]["boxes"], torch.tensor([[9.6, 3.2, 48.0, 19.2]]))
    assert targets[0]["labels"].tolist() == [2]  # the cat; the box without an area is left out
    assert targets[1]["boxes"].shape == (0, 4)
    with torch.no_grad():
        detections = model.eval().predict(wide)
    assert torch.allclose(detections[1, 0], torch.tensor([0.25, 0.0, 1.0, 0.5, 0.7, 1.0]))
    assert not detections[:, 1:].any()


def test_it_has_its_place_in_the_model(tmp_path):
    """It is saved with the model, and a picture's boxes are its own."""
    model = small_network().eval()
    with torch.no_grad():
        detections = model.predict({"image": {"pixels": pixels(3)}})
        alone = model.predict({"image": {"pixels": pixels(3)[1:2]}})
    assert detections.shape == (3, 7, 6)
    assert torch.allclose(alone[0], detections[1], atol=1e-4)
    x0, y0, x1, y1, score, label = detections[detections[..., 4] > 0].unbind(1)
    assert len(score) >= 3
    assert ((x0 >= 0) & (x0 <= x1) & (x1 <= 1)).all()
    assert ((y0 >= 0) & (y0 <= y1) & (y1 <= 1)).all()
    assert set(label.tolist()) <= {0.0, 1.0}
    weight_files.save(tmp_path / "model", model, Config(model.config, {"image": {"size": 64}}))
    again = weight_files.load(tmp_path / "model")  # built on the meta device
    with torch.no_grad():
        assert torch.equal(again.predict({"image": {"pixels": pixels(3)}}), detections)


def test_boxes_are_in_the_pixels_of_the_picture():
    output = torch.tensor([[[0.1, 0.2, 0.5, 0.6, 0.9, 1.0], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]])
    result = TASKS["boxes"](output, Context(labels=("dog", "cat"), size=(200, 100)))
    (box,) = result["boxes"]
    assert box["label"] == "cat"
    assert box["score"] == pytest.approx(0.9)
    assert box["box"] == pytest.approx([20, 20, 100, 60])


def test_command_prints_and_draws_boxes(tmp_path, capsys, monkeypatch):
    model = small_network().eval()
    weight_files.save(tmp_path / "model", model, Config(model.config, {"image": {"size": 64}}))
    picture = tmp_path / "a.png"
    Image.new("RGB", (80, 40), (90, 90, 90)).save(picture)
    from onepeace.embed import predict

    cat = {"label": "cat", "score": 0.9, "box": [10.0, 5.0, 60.0, 30.0]}
    dog = {**cat, "label": "dog", "score": 0.2}
    monkeypatch.setattr(predict, "TASKS", {"boxes": lambda output, context: {"boxes": [cat, dog]}})
    arguments = ["classify", str(picture), "--model", str(tmp_path / "model")]
    assert main([*arguments, "--draw", str(tmp_path / "drawn")]) == 0
    text = capsys.readouterr().out
    assert "cat 0.90" in text
    assert "dog" not in text
    drawn = Image.open(tmp_path / "drawn" / "a.png.png").convert("RGB")
    assert drawn.size == (80, 40)
    assert drawn.getpixel((60, 20)) == (230, 40, 40)
    assert drawn.getpixel((30, 20)) == (90, 90, 90)
    assert main([*arguments, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["boxes"]) == 2


def test_average_precision_is_that_of_coco():
    pytest.importorskip("pycocotools")
    targets = [[((0.0, 0.0, 0.5, 0.5), "dog"), ((0.5, 0.5, 1.0, 1.0), "cat")], [((0.2, 0.2, 0.8, 0.8), "dog")]]
    right = [[(corners, label, 0.9) for corners, label in inside] for inside in targets]
    assert box_ap(right, targets) == (1.0, 1.0)
    # Of the two dogs one is found, with an overlap of 0.81: right for thresholds up to 0.8, 7 of 10.
    moved = [[((0.0, 0.0, 0.5, 0.405), "dog", 0.8), ((0.5, 0.5, 1.0, 1.0), "cat", 0.7)], [((0, 0, 1, 1), "bird", 0.9)]]
    every, half = box_ap(moved, targets)
    recall = 51 / 101  # of 101 points of recall those up to a half are reached
    assert half == pytest.approx((1 + recall) / 2)
    assert every == pytest.approx((1 + 0.7 * recall) / 2)
    assert box_ap([[], []], targets) == (0.0, 0.0)
    with pytest.raises(UserError, match="not one of 1 pictures has an object"):
        box_ap([[]], [[]])
