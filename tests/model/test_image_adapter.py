"""Pictures of any size that is a multiple of the patch."""

import pytest
import torch
from support.small_models import small_model


@pytest.fixture(scope="module")
def model():
    return small_model("image")


@torch.no_grad()
@pytest.mark.parametrize("name", ["image", "image with conv stem"])
@pytest.mark.parametrize(
    ("height", "width"),
    [
        (48, 48),
        (32, 80),
        (16, 16),
    ],
)
def test_picture_of_any_shape(name, height, width):
    model = small_model(name)
    adapter = model.adapters["image"]
    batch = {"pixels": torch.randn(2, 3, height, width)}
    num_patches = (height // adapter.patch_size) * (width // adapter.patch_size)
    features = model.features({"image": batch})["image"]
    assert features.shape == (2, 1 + num_patches, 32)
    assert adapter.token_lengths(batch).tolist() == [num_patches, num_patches]


@torch.no_grad()
def test_patches_are_read_row_by_row(model):
    """The token of row r, column c of the patches is 1 + r * columns + c, and sees its own patch alone in the stem."""
    pixels = torch.zeros(1, 3, 32, 64)
    changed_pixels = pixels.clone()
    changed_pixels[:, :, 16:, 32:48] = 1.0
    stem = model.stems({"image": {"pixels": pixels}})["image"]
    changed = model.stems({"image": {"pixels": changed_pixels}})["image"]

    assert stem.grid == (2, 4)
    is_changed = (stem.tokens != changed.tokens).any(dim=2)
    assert is_changed[0].nonzero().flatten().tolist() == [6]


@pytest.mark.parametrize(
    ("height", "width"),
    [
        (48, 50),
        (0, 48),
    ],
)
def test_picture_that_patches_do_not_tile(model, height, width):
    with pytest.raises(ValueError, match=f"{height} x {width} .*16"):
        model({"image": {"pixels": torch.zeros(1, 3, height, width)}})


@torch.no_grad()
@pytest.mark.parametrize("stem", ["hmlp", "conv"])
def test_pictures_of_one_channel(stem):
    model = small_model("image", adapters={"image": {"stem": stem, "channels": 1}})
    vectors = model({"image": {"pixels": torch.rand(2, 1, 48, 48)}})["image"]
    assert vectors.norm(dim=1).tolist() == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stem": "lite0", "channels": 1}, "'lite0' reads 3 channels, not 1"),
        ({"patch_size": 8}, "16, not 8"),
        ({"stem": "convs"}, "'convs'; known: hmlp, conv"),
    ],
)
def test_stem_that_cannot_be_built(options, words):
    with pytest.raises(ValueError, match=words):
        small_model("image", adapters={"image": options})
