"""What part of a picture the model sees is said by its processor alone; one of your own passes through everything."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from open_clip.transform import image_transform
from PIL import Image
from support.embedding import assert_same
from support.images import encoded_image, levels, smooth_pixels

import onepeace
from onepeace.config import Config
from onepeace.data.augment import ImageAugment
from onepeace.errors import UserError
from onepeace.export.folder import export_model
from onepeace.hub.folder import read_config
from onepeace.plugins.timm import data_config
from onepeace.processors import PROCESSORS, ImageProcessor
from onepeace.train.term import check_places

SIZES = [(60, 40), (40, 60), (33, 100), (100, 7), (24, 24)]
"""Width and height of pictures."""


class LeftHalf(ImageProcessor):
    """A geometry that only this file knows: the left half of a picture, and as much black above it and below."""

    def area(self, width, height, centering=0.5):
        return (0.0, -0.5 * height, 0.5 * width, 1.5 * height)

    @property
    def rules(self):
        return "the left half"


@pytest.fixture
def left_half(monkeypatch):
    monkeypatch.setitem(PROCESSORS, "image", LeftHalf)
    return LeftHalf


def unaugmented(item, processor):
    augment = ImageAugment(crop_scale=(1.0, 1.0))
    sample, _ = augment.vary(item, "a gull", processor, np.random.default_rng(0), lambda: None)
    return augment.collate([sample], processor)["pixels"][0]


@pytest.mark.parametrize("make", [LeftHalf, ImageProcessor])
@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
def test_training_without_augmentation_sees_what_the_model_sees(make, resize):
    processor = make(size=[16, 24], resize=resize)
    for width, height in SIZES:
        file = encoded_image(smooth_pixels(10 * height, 10 * width), "JPEG")  # decoded smaller than it is
        assert_same(unaugmented(file, processor), processor.decode(file))


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
def test_random_crops_come_from_what_is_seen_and_from_the_picture(resize):
    """Margins that the model sees are seen in training too."""
    processor = ImageProcessor(size=24, resize=resize)
    augment = ImageAugment(crop_scale=(0.9, 1.0))
    white = Image.new("RGB", (80, 20), "white")
    for seed in range(5):
        sample, _ = augment.vary(white, "", processor, np.random.default_rng(seed), lambda: None)
        assert (sample.pixels.min() == 0) == (resize == "pad")


@pytest.mark.parametrize("size", [32, 33, (24, 40)])
def test_pad_is_the_longest_of_open_clip(size):
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    theirs = image_transform(
        size, is_train=False, resize_mode="longest", mean=mean, std=std, interpolation="bicubic", fill_color=0
    )
    ours = ImageProcessor(size=size, mean=mean, std=std, resize="pad")
    for width, height in SIZES:
        picture = Image.fromarray(smooth_pixels(height, width))
        assert_same(ours.decode(picture), theirs(picture))


def test_pad_keeps_everything_and_the_shape():
    picture = np.full((10, 40, 3), 255, np.uint8)
    padded = levels(picture, resize="pad")[..., 0]
    assert padded[3:5].min() == 255
    assert padded[[0, 1, 2, 5, 6, 7]].max() == 0


@pytest.fixture(scope="module")
def seeing(random_folder):
    return onepeace.load(random_folder, device="cpu", modalities=["text", "image"])


@pytest.mark.parametrize(
    ("make", "resize", "area"),
    [
        (LeftHalf, "squash", (0, -0.5, 0.5, 1.5)),
        (ImageProcessor, "pad", (0, -0.5, 1, 1.5)),
        (ImageProcessor, "squash", (0, 0, 1, 1)),
    ],
)
def test_heat_map_covers_what_the_model_sees(seeing, monkeypatch, make, resize, area):
    monkeypatch.setitem(seeing.processors, "image", make(size=32, resize=resize))
    explanation = seeing.explain(smooth_pixels(30, 60), "a dog")
    assert explanation.area == area
    x, y = explanation.peak
    assert area[0] <= x <= area[2]
    assert 0 <= y <= 1  # never in a margin


@pytest.mark.parametrize(("resize", "is_whole"), [("squash", True), ("crop", False), ("pad", False)])
def test_targets_on_places_need_the_whole_picture(resize, is_whole, left_half, monkeypatch):
    options, data = SimpleNamespace(where="objective.box"), SimpleNamespace(augment={})
    config = Config(None, {"image": {"resize": resize}})
    with pytest.raises(UserError, match=r"processors\.image: .*whole picture"):
        check_places(options, "box", data, config)
    monkeypatch.setitem(PROCESSORS, "image", ImageProcessor)
    assert ImageProcessor(resize=resize).shows_whole_pictures == is_whole


def test_own_geometry_is_exported(left_half, random_folder, tmp_path):
    pictures = [smooth_pixels(20, 40), smooth_pixels(50, 30), smooth_pixels(9, 9)]
    model = onepeace.load(random_folder, device="cpu", modalities=["image"])
    assert isinstance(model.processors["image"], left_half)

    export_model(random_folder, tmp_path / "out", form="torch", modalities=["image"])

    branch = json.loads((tmp_path / "out" / "export.json").read_text())["branches"]["image"]
    assert branch["rules"] == "the left half"
    program = torch.export.load(tmp_path / "out" / branch["file"]).module()
    pixels = model.processors["image"].collate([model.processors["image"].decode(picture) for picture in pictures])
    assert_same(program(pixels["pixels"]), model.encode(pictures))


def test_names_of_timm(random_folder):
    config = read_config(random_folder)
    modes = {}
    for resize in ("squash", "crop", "pad"):
        modes[resize] = data_config(Config(config.model, {"image": {"resize": resize}}))["crop_mode"]
    assert modes == {"squash": "squash", "crop": "center", "pad": "border"}
