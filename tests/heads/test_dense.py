"""Heads for each pixel and for boxes learn, at any size of picture, and their gradients reach the encoder."""

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import box_iou

from onepeace.config import Config, ModelConfig
from onepeace.embed.embedder import Embedder
from onepeace.errors import UserError
from onepeace.hub import weights as weight_files
from onepeace.model import OnePeace
from onepeace.plugins.torchvision import detector
from onepeace.processors import ImageProcessor

COLOURS = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.8, 0.2]])
"""Of the classes 1 and 2; the background is dark noise."""
SEGMENTATION = {"kind": "segmentation", "on": "image", "num_classes": 3, "channels": 32}


def small_network(size=64, dim=32, patch=16, stem="conv", heads=None):
    adapters = {"image": {"patch_size": patch, "grid": size // patch, "bias_grid": size // patch, "stem": stem}}
    config = ModelConfig(dim, 16, 2, 4, 48, 0.1, adapters=adapters, projections=("image",), heads=heads or {})
    return OnePeace(config).train()


def embedder(size=64, **options):
    return Embedder(
        small_network(size, **options), {"image": ImageProcessor(size=size, mean=[0.5] * 3, std=[0.25] * 3)}
    )


def scenes(count, height, width, seed=0):
    """Pictures (n, 3, H, W) with two rectangles, one of each class; their classes (n, H, W) and boxes (n, 2, 4)."""
    generator = torch.Generator().manual_seed(seed)
    pixels = 0.2 * torch.rand(count, 3, height, width, generator=generator)
    classes, boxes = torch.zeros(count, height, width, dtype=torch.long), torch.zeros(count, 2, 4)
    for i in range(count):
        for label in (1, 2):  # one in the left half and one in the right
            half, left = width // 2, (label - 1 + i) % 2 * (width // 2)
            w, h = (int(torch.randint(side // 3, side // 4 * 3, (), generator=generator)) for side in (half, height))
            x = left + int(torch.randint(0, half - w, (), generator=generator))
            y = int(torch.randint(0, height - h, (), generator=generator))
            pixels[i, :, y : y + h, x : x + w] += COLOURS[label - 1][:, None, None] * 0.8
            classes[i, y : y + h, x : x + w] = label
            boxes[i, label - 1] = torch.tensor([x, y, x + w, y + h])
    return pixels, classes, boxes


def segment(model, pixels):
    """Logits at the size of the picture, as the head's docstring makes them."""
    logits = model.predict({"image": {"pixels": pixels}}, head="segmentation")
    return F.interpolate(logits, pixels.shape[2:], mode="bilinear", align_corners=False)


def targets_of(classes, boxes, masks=False):
    targets = [{"boxes": each, "labels": torch.tensor([1, 2])} for each in boxes]
    if masks:
        for target, each in zip(targets, classes, strict=True):
            target["masks"] = torch.stack([each == 1, each == 2]).to(torch.uint8)
    return targets


def assert_two_steps_learn(model, loss_of, **options):
    """The loss falls with each of two steps, and the encoder's stem and first block have a share in it."""
    optimizer = torch.optim.AdamW(model.parameters(), **options)
    losses = []
    for _ in range(3):
        torch.manual_seed(0)  # detectors choose their samples by chance
        loss = loss_of()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        encoder = {name: p for name, p in model.named_parameters() if ".stem." in name or "blocks.0.attn" in name}
        assert len(encoder) > 8
        assert [name for name, p in encoder.items() if p.grad is None or not p.grad.any()] == []
        optimizer.step()
    assert losses[2] < losses[1] < losses[0]


@pytest.mark.parametrize("size", [(64, 64), (32, 96)])
def test_segmentation_learns_at_any_size(size):
    model = small_network(heads={"segmentation": SEGMENTATION})
    pixels, classes, _ = scenes(2, *size)
    logits = model.predict({"image": {"pixels": pixels}}, head="segmentation")
    assert logits.shape == (2, 3, size[0] // 4, size[1] // 4)
    assert_two_steps_learn(model, lambda: F.cross_entropy(segment(model, pixels), classes), lr=2e-3)


def test_segmentation_has_its_place_in_the_model(tmp_path):
    """It is saved with the model, its output can be replaced, and a picture's logits are its own."""
    model = small_network(heads={"segmentation": SEGMENTATION}).eval()
    pixels = scenes(3, 64, 64)[0]
    with torch.no_grad():
        logits = segment(model, pixels)
        assert torch.allclose(segment(model, pixels[1:2])[0], logits[1], atol=1e-5)
        assert (logits[0] - logits[1]).abs().max() > 1e-3
    weight_files.save(tmp_path / "model", model, Config(model.config, {"image": {"size": 64}}))
    again = weight_files.load(tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(segment(again, pixels), logits)
    again.reset_head("segmentation", 7)
    assert segment(again, pixels).shape == (3, 7, 64, 64)
    with pytest.raises(UserError, match=r"heads\.segmentation: classes is not a field; did you mean num_classes\?"):
        small_network(heads={"segmentation": {"kind": "segmentation", "on": "image", "classes": 3}})


def test_every_level_of_the_pyramid_counts():
    model = small_network(heads={"segmentation": SEGMENTATION})
    segment(model, scenes(1, 64, 64)[0]).square().mean().backward()
    head = dict(model.heads["segmentation"].named_parameters())
    assert [name for name, parameter in head.items() if parameter.grad is None or not parameter.grad.any()] == []


@pytest.mark.parametrize(("masks", "size"), [(False, 64), pytest.param(True, (64, 96), marks=pytest.mark.slow)])
def test_detector_learns_at_any_size(masks, size):
    network = detector(embedder(), 3, masks=masks, size=size, out_channels=32, anchor_scale=4)
    pixels, classes, boxes = scenes(2, 60, 100)  # of a size that is not the model's
    targets = targets_of(classes, boxes, masks)
    seen = []
    network.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[2:]))
    assert_two_steps_learn(network, lambda: sum(network(list(pixels), targets).values()), lr=1e-3)
    assert set(seen) == {(64, 64) if size == 64 else size}
    with torch.no_grad():
        found = network.eval()(list(pixels))
    assert [set(each) for each in found] == [{"boxes", "labels", "scores"} | ({"masks"} if masks else set())] * 2


@torch.no_grad()
def test_detector_sees_what_our_processor_makes():
    model = embedder()
    network = detector(model, 3, out_channels=8).eval()
    picture = (scenes(1, 64, 64)[0][0] * 255).round() / 255
    seen, _ = network.transform([picture])
    assert torch.allclose(seen.tensors[0], model.processors["image"].decode(picture.clamp(0, 1)), atol=1e-5)
    maps = network.backbone(seen.tensors)
    assert [(name, *each.shape[1:]) for name, each in maps.items()] == [
        ("0", 8, 16, 16), ("1", 8, 8, 8), ("2", 8, 4, 4), ("3", 8, 2, 2), ("pool", 8, 1, 1)]  # fmt: skip
    assert network.rpn.anchor_generator.sizes == ((32,), (64,), (128,), (256,), (512,))
    padded = detector(model, 3, out_channels=8, fixed_size=None, min_size=50, max_size=90).eval()
    seen, _ = padded.transform([torch.rand(3, 40, 60), torch.rand(3, 40, 40)])
    assert seen.tensors.shape == (2, 3, 64, 80)
    padded.backbone(seen.tensors)


def test_detector_shares_the_encoder():
    model = embedder()
    assert detector(model, 3).backbone.backbone.model is model.module


def test_what_no_detector_fits_is_one_line():
    for size in (40, (64, 40), 0, (64,)):
        with pytest.raises(UserError, match=r"it must be a multiple of the patch, 16, or two of them"):
            detector(embedder(), 3, size=size)
    odd = embedder()
    odd.module.adapters["image"].patch_size = 14
    with pytest.raises(UserError, match="the patch is 14 pixels; torchvision places boxes"):
        detector(odd, 3)
    with pytest.raises(UserError, match="a detector needs images; this model has text"):
        detector(Embedder(small_network(), {"text": None}), 3)


@pytest.mark.slow
def test_segmentation_learns_ten_pictures_by_heart():
    model = small_network(dim=64, heads={"segmentation": SEGMENTATION})
    pixels, classes, _ = scenes(10, 64, 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(160):
        loss = F.cross_entropy(segment(model, pixels), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        found = segment(model.eval(), pixels).argmax(1)
    for label in range(3):
        either = (found == label) | (classes == label)
        both = (found == label) & (classes == label)
        assert both.sum() / either.sum() > 0.9


@pytest.mark.slow
def test_detector_learns_ten_pictures_by_heart():
    options = {"rpn_batch_size_per_image": 64, "box_batch_size_per_image": 32, "rpn_post_nms_top_n_train": 100}
    network = detector(embedder(dim=64), 3, out_channels=32, anchor_scale=2, **options)
    pixels, classes, boxes = scenes(10, 64, 64)
    targets = targets_of(classes, boxes)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for _ in range(100):
        loss = sum(network(list(pixels), targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        found = network.eval()(list(pixels))
    for each, target in zip(found, targets, strict=True):
        for label in (1, 2):
            mine = each["labels"] == label
            best = each["scores"][mine].argmax()
            assert box_iou(each["boxes"][mine][best, None], target["boxes"][label - 1, None]).item() > 0.5
