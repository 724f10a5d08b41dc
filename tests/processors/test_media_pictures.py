"""Pictures of phones and cameras: HEIC, AVIF, raw files."""

import io
import sys

import numpy as np
import pytest
from PIL import Image, features
from support.media import dng
from test_image_files import STORED, encoded, plain, smooth

from onepeace.errors import UserError
from onepeace.processors import ImageProcessor, guess

IMAGE = {"image": None}


def heic(*images: Image.Image, **options) -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif")
    file, heif = io.BytesIO(), pillow_heif.HeifFile()  # not its plug-in for Pillow, which the tested code is to load
    for image in images:
        heif.add_from_pillow(image)
    heif.save(file, format="HEIF", **options)
    return file.getvalue()


def avif(*images: Image.Image, **options) -> bytes:
    if not features.check("avif"):
        pytest.skip("this Pillow was built without AVIF")
    return encoded(images[0], "AVIF", save_all=True, append_images=images[1:], **options)


ENCODERS = {"heic": heic, "avif": avif}


@pytest.mark.parametrize(("form", "orientation"), [("heic", 1), ("heic", 5), ("heic", 6), ("avif", 6)])
def test_exif_rotation(form, orientation, tmp_path):
    upright = smooth(96, 128)
    stored = Image.fromarray(upright)
    if orientation in STORED:
        stored = stored.transpose(STORED[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"photo.{form.upper()}"
    path.write_bytes(ENCODERS[form](stored, exif=exif.tobytes(), quality=90))
    assert guess(path, IMAGE) == guess(path.read_bytes(), IMAGE) == "image"
    image = plain().load(path)
    assert image.size == (128, 96)
    assert np.abs(np.asarray(image).astype(int) - upright).mean() < 4


@pytest.mark.parametrize("form", ENCODERS)
def test_alpha_is_on_white_and_the_first_picture_is_shown(form):
    clear = Image.new("RGBA", (64, 64), (0, 0, 255, 0))
    assert np.asarray(plain().load(ENCODERS[form](clear, quality=90))).min() > 250
    red, green = (Image.new("RGB", (64, 64), colour) for colour in ("red", "lime"))
    several = ENCODERS[form](red, green, quality=90)
    assert len(several) > len(ENCODERS[form](red, quality=90)) + 50
    assert plain().load(several).getpixel((9, 9)) == pytest.approx((255, 0, 0), abs=6)


@pytest.mark.parametrize("form", ENCODERS)
def test_broken_file_is_named_with_its_reason(form, tmp_path):
    data = ENCODERS[form](Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)))
    path = tmp_path / f"photo.{form}"
    size = data.index(b"ispe") + 8
    for content, message in (
        (b"", r"the file is empty \(0 bytes\)"),
        (b"hello " * 100, "not a picture of a known format"),
        (b"\0\0\0\x18ftypmp42" + bytes(100), "is a video"),
        (data[:40], "cannot be opened"),
        (data[: len(data) // 2], "the picture cannot be"),
        (data[:size] + b"\0\0\xff\xff\0\0\xff\xff" + data[size + 8 :], "cannot be opened|above the limit"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"photo\.{form}: .*({message})") as caught:
            ImageProcessor().decode(path)
        assert "\n" not in str(caught.value)


# Red grows from left to right and blue from top to bottom.
Y, X = np.mgrid[0:600, 0:800]
RAW = np.full((600, 800), 3000, np.uint16)
RAW[::2, ::2] = 60000 * X[::2, ::2] / 800
RAW[1::2, 1::2] = 60000 * Y[1::2, 1::2] / 600


def preview(width: int = 640, height: int = 480) -> Image.Image:
    """Blue, and red at its top left."""
    image = Image.new("RGB", (width, height), "blue")
    image.paste("red", (0, 0, width // 2, height // 2))
    return image


@pytest.mark.parametrize(
    ("jpeg", "orientation", "corner"), [(True, 1, (0, 0)), (True, 3, (1, 1)), (True, 6, (1, 0)), (False, 8, (0, 1))]
)
def test_raw_file_shows_its_preview_upright(jpeg, orientation, corner, tmp_path):
    pytest.importorskip("rawpy")
    path = tmp_path / "photo.DNG"
    path.write_bytes(dng(RAW, preview(), jpeg=jpeg, orientation=orientation))
    assert guess(path, IMAGE) == guess(path.read_bytes(), IMAGE) == "image"
    turned = orientation in (6, 8)
    for item in (path, path.read_bytes()):
        image = plain().load(item)
        assert image.size == ((480, 640) if turned else (640, 480))
        red = np.asarray(image)[..., 0] > 128
        assert red.mean() == pytest.approx(0.25, abs=0.01)
        assert red[-10 if corner[1] else 10, -10 if corner[0] else 10]


@pytest.mark.parametrize("small", [None, preview(160, 120)])
def test_raw_file_without_a_preview_worth_it_is_developed_at_half_size(small, tmp_path):
    pytest.importorskip("rawpy")
    path = tmp_path / "photo.dng"
    for orientation in (1, 6):
        path.write_bytes(dng(RAW, small, orientation=orientation))
        image = np.asarray(plain().load(path)).astype(int)
        image = image if orientation == 1 else image[:, ::-1].transpose(1, 0, 2)  # back on its side
        assert image.shape == (300, 400, 3)
        red, blue = image[..., 0], image[..., 2]
        assert red[:, 350].mean() > red[:, 50].mean() + 100
        assert blue[250].mean() > blue[50].mean() + 100


def test_broken_raw_file_is_named_with_its_reason(tmp_path):
    pytest.importorskip("rawpy")
    for name, content, message in (
        ("a.dng", b"", r"the file is empty \(0 bytes\)"),
        ("a.dng", dng(RAW)[:200], r"the raw picture cannot be opened \(.+\)"),
        ("a.arw", encoded(Image.fromarray(smooth(40, 60)), "TIFF"), r"the raw picture cannot be opened \(.+\)"),
        ("a.cr3", b"\0\0\0\x18ftypcrx \0\0\0\x01crx isom", r"the raw picture cannot be opened \(.+\)"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}: {message}$") as caught:
            ImageProcessor().decode(path)
        assert "b'" not in str(caught.value)


def test_missing_packages_are_named_with_their_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rawpy", None)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for name, content, package in (
        ("a.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100), "pillow_heif"),
        ("a.dng", dng(RAW, preview()), "rawpy"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        assert guess(path, IMAGE) == guess(content, IMAGE) == "image"
        with pytest.raises(UserError, match=rf'{name}: needs {package}: pip install "onepeace\[media\]"$'):
            ImageProcessor().decode(path)
    monkeypatch.setattr("onepeace.files.picture.FORMATS", ("JPEG",))
    with pytest.raises(UserError, match="this Pillow cannot read AVIF: pip install --upgrade pillow"):
        ImageProcessor().decode(b"\0\0\0\x18ftypavif\0\0\0\0mif1avif" + bytes(100))
