"""Pictures of any size that is a multiple of the patch."""

import pytest
import torch
from support.small_models import small_model


@torch.no_grad()
@pytest.mark.parametrize("name", ["image", "image with conv stem"])
@pytest.mark.parametrize(("height", "width"), [(48, 48), (32, 80), (80, 32), (16, 16)])
def test_nonsquare(name, height, width):
    model = small_model(name)
    patch = model.adapters["image"].patch_size
    pixels = torch.randn(2, 3, height, width)
    tokens = model.features({"image": {"pixels": pixels}})["image"]
    assert tokens.shape == (2, 1 + (height // patch) * (width // patch), 32)
    assert model.adapters["image"].token_lengths({"pixels": pixels}).tolist() == [tokens.shape[1] - 1] * 2
    vectors = model({"image": {"pixels": pixels}})["image"]
    assert torch.allclose(vectors.norm(dim=1), torch.ones(2))
    assert torch.allclose(model({"image": {"pixels": pixels[1:]}})["image"], vectors[1:], atol=2e-6)


@torch.no_grad()
def test_patches_are_read_row_by_row():
    """The token of row r, column c of the patches is 1 + r * columns + c, and sees its own patch alone in the stem."""
    model = small_model("image")
    pixels = torch.zeros(1, 3, 32, 64)
    changed = pixels.clone()
    changed[:, :, 16:, 32:48] = 1.0
    stems = [model.stems({"image": {"pixels": x}})["image"] for x in (pixels, changed)]
    assert stems[0].grid == (2, 4)
    moved = (stems[0].tokens - stems[1].tokens).abs().amax(dim=(0, 2)) > 1e-6
    assert moved.nonzero().flatten().tolist() == [6]


def test_wrong_size_error_names_both_sizes():
    model = small_model("image")
    for height, width in ((40, 50), (48, 50), (47, 48), (0, 48)):
        with pytest.raises(ValueError, match=f"{height} x {width} pixels is not a multiple of the patch, 16"):
            model({"image": {"pixels": torch.zeros(1, 3, height, width)}})


def test_wrong_channels_are_named():
    model = small_model("image")
    for shape in ((1, 1, 48, 48), (3, 48, 48), (1, 48, 48, 3)):
        with pytest.raises(ValueError, match=r"\(B, 3, H, W\), not \(" + ", ".join(map(str, shape))):
            model({"image": {"pixels": torch.zeros(shape)}})


def test_stems_say_which_patches_they_have():
    with pytest.raises(ValueError, match="patches of 16, not 8"):
        small_model("image", adapters={"image": {"patch_size": 8}})
    with pytest.raises(ValueError, match="power of two, not 12"):
        small_model("image", adapters={"image": {"patch_size": 12, "stem": "conv"}})
    with pytest.raises(ValueError, match="no stem 'convs'; known: hmlp, conv"):
        small_model("image", adapters={"image": {"stem": "convs"}})
