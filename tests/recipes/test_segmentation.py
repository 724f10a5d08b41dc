"""Heads for each pixel learn, at any size of picture, and their gradients reach the encoder."""

import pytest
import torch
from support.golden_cases import assert_near
from support.recipe_files import recipe_file
from support.small_models import network_of_pictures
from torch.nn import functional as F

from onepeace.errors import UserError

recipe_file("segmentation")

SEGMENTATION = {"kind": "segmentation", "on": "image", "num_classes": 3, "channels": 32}


def small_network(head=SEGMENTATION):
    return network_of_pictures({"segmentation": head}).train()


def scenes(count, height, width):
    """Pictures (n, 3, H, W) of dark noise with a green and a blue stripe, one of each class, and their classes."""
    pixels = 0.2 * torch.rand(count, 3, height, width)
    classes = torch.zeros(count, height, width, dtype=torch.long)
    for label, columns in ((1, slice(0, width // 3)), (2, slice(width // 2, None))):
        pixels[:, label, :, columns] += 0.8
        classes[:, :, columns] = label
    return pixels, classes


def segment(model, pixels):
    """Logits at the size of the picture, as the head's docstring makes them."""
    logits = model.predict({"image": {"pixels": pixels}}, head="segmentation")
    return F.interpolate(logits, pixels.shape[2:], mode="bilinear", align_corners=False)


def assert_all_have_a_share(model):
    """The loss reaches the stem, the first block and every level of the head."""
    num_parameters = 0
    for name, parameter in model.named_parameters():
        if ".stem." in name or "blocks.0.attn" in name or name.startswith("heads.segmentation"):
            num_parameters += 1
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name
    assert num_parameters > 8


def assert_two_steps_learn(model, loss_of):
    """The loss falls with each of two steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(3):
        loss = loss_of()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        assert_all_have_a_share(model)
        optimizer.step()
    assert losses[2] < losses[1] < losses[0]


@pytest.mark.parametrize("size", [(64, 64), (32, 96)])
def test_segmentation_learns_at_any_size(size):
    model = small_network()
    pixels, classes = scenes(2, *size)
    logits = model.predict({"image": {"pixels": pixels}}, head="segmentation")
    assert logits.shape == (2, 3, size[0] // 4, size[1] // 4)
    assert_two_steps_learn(model, lambda: F.cross_entropy(segment(model, pixels), classes))


@torch.no_grad()
def test_segmentation_does_not_depend_on_batch_mates():
    pixels, _ = scenes(3, 64, 64)
    model = small_network().eval()
    logits = segment(model, pixels)
    assert_near(segment(model, pixels[1:2])[0], logits[1], 1e-5)
    assert (logits[0] - logits[1]).abs().max() > 1e-3


def test_segmentation_with_a_misspelt_field():
    with pytest.raises(UserError, match=r"heads\.segmentation: classes .*num_classes"):
        small_network({"kind": "segmentation", "on": "image", "classes": 3})
