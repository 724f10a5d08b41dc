"""Pictures of phones and cameras: HEIC, AVIF, raw files."""

import io
import sys

import numpy as np
import pytest
from PIL import Image, features
from support.broken_files import assert_refused
from support.images import (
    encoded_image,
    grey_levels,
    noise_pixels,
    pixels_of,
    smooth_pixels,
    turned,
)
from support.media import dng

from onepeace.processors import ImageProcessor, guess


def heic(*images: Image.Image, **options) -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    heif = pillow_heif.HeifFile()  # not its plug-in for Pillow, which the tested code is to load
    for image in images:
        heif.add_from_pillow(image)
    heif.save(file, format="HEIF", **options)
    return file.getvalue()


def avif(*images: Image.Image, **options) -> bytes:
    if not features.check("avif"):
        pytest.skip("this Pillow was built without AVIF")
    return encoded_image(
        images[0],
        "AVIF",
        save_all=True,
        append_images=images[1:],
        **options,
    )


@pytest.fixture(params=[heic, avif], ids=["heic", "avif"])
def encode(request):
    return request.param


def assert_guessed(path):
    assert guess(path, ["image"]) == "image"
    assert guess(path.read_bytes(), ["image"]) == "image"


@pytest.mark.parametrize("orientation", [1, 5, 6])
def test_picture_of_a_phone_is_turned_upright(encode, orientation, tmp_path):
    upright = smooth_pixels(96, 128)
    stored, exif = turned(upright, orientation)
    path = tmp_path / f"photo.{encode.__name__.upper()}"
    path.write_bytes(encode(stored, exif=exif.tobytes(), quality=90))

    pixels = pixels_of(path)

    assert pixels.shape == upright.shape
    assert np.abs(pixels - upright).mean() < 4
    assert_guessed(path)


def test_transparent_pixels_are_white(encode):
    clear = Image.new("RGBA", (64, 64), (0, 0, 255, 0))
    assert pixels_of(encode(clear, quality=90)).min() > 250


def test_first_of_several_pictures_is_shown(encode):
    red = Image.new("RGB", (64, 64), "red")
    green = Image.new("RGB", (64, 64), "lime")
    content = encode(red, green, quality=90)

    assert len(content) > len(encode(red, quality=90)) + 50
    assert pixels_of(content)[9, 9] == pytest.approx((255, 0, 0), abs=6)


def with_claimed_size(content: bytes) -> bytes:
    """The file with 65,535 pixels as its width and height."""
    start = content.index(b"ispe") + 8
    return content[:start] + b"\0\0\xff\xff\0\0\xff\xff" + content[start + 8 :]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: b"\0\0\0\x18ftypmp42" + bytes(100), "is a video"),
        (lambda content: content[:40], "cannot be opened"),
        (lambda content: content[: len(content) // 2], "the picture cannot be"),
        (with_claimed_size, "(cannot be opened|above the limit)"),
    ],
    ids=["video", "beginning", "half", "too large"],
)
def test_broken_file_is_named_with_its_reason(encode, damage, words, tmp_path):
    path = tmp_path / f"photo.{encode.__name__}"
    path.write_bytes(damage(encode(Image.fromarray(noise_pixels(200, 200)))))

    assert_refused(ImageProcessor().decode, path, rf"photo\.\w+: .*{words}")


# Raw files

Y, X = np.mgrid[0:600, 0:800]
RAW = np.full((600, 800), 3000, np.uint16)
RAW[::2, ::2] = 60000 * X[::2, ::2] / 800  # red grows from left to right
RAW[1::2, 1::2] = 60000 * Y[1::2, 1::2] / 600  # and blue from top to bottom


def preview(width: int = 640, height: int = 480) -> Image.Image:
    """Blue, and red at its top left."""
    image = Image.new("RGB", (width, height), "blue")
    image.paste("red", (0, 0, width // 2, height // 2))
    return image


@pytest.mark.parametrize(
    ("jpeg", "orientation", "size", "row", "column"),
    [
        (True, 1, (640, 480), 10, 10),
        (True, 3, (640, 480), -10, -10),
        (True, 6, (480, 640), 10, -10),
        (False, 8, (480, 640), -10, 10),
    ],
)
def test_raw_file_shows_its_preview_upright(jpeg, orientation, size, row, column, tmp_path):
    """The row and column are red in the upright picture."""
    pytest.importorskip("rawpy")
    path = tmp_path / "photo.DNG"
    path.write_bytes(dng(RAW, preview(), jpeg=jpeg, orientation=orientation))

    assert_guessed(path)
    for item in (path, path.read_bytes()):
        image = grey_levels().load(item)
        assert image.size == size
        is_red = np.asarray(image)[..., 0] > 128
        assert is_red.mean() == pytest.approx(0.25, abs=0.01)
        assert is_red[row, column]


@pytest.mark.parametrize(
    "small_preview",
    [
        None,
        preview(160, 120),
    ],
    ids=["none", "small"],
)
@pytest.mark.parametrize("orientation", [1, 6])
def test_raw_file_without_a_large_preview_is_developed_at_half_size(small_preview, orientation):
    pytest.importorskip("rawpy")

    pixels = pixels_of(dng(RAW, small_preview, orientation=orientation))

    if orientation == 6:  # turn it back on its side
        pixels = np.rot90(pixels)
    assert pixels.shape == (300, 400, 3)
    red = pixels[..., 0]
    blue = pixels[..., 2]
    assert red[:, 350].mean() > red[:, 50].mean() + 100
    assert blue[250].mean() > blue[50].mean() + 100


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.dng", dng(RAW)[:200], r"raw picture cannot be opened \("),
        (
            "a.arw",
            encoded_image(smooth_pixels(40, 60), "TIFF"),
            r"raw picture cannot be opened \(",
        ),
        ("a.cr3", b"\0\0\0\x18ftypcrx \0\0\0\x01crx isom", r"raw picture cannot be opened \("),
    ],
)
def test_broken_raw_file_is_named_with_its_reason(name, content, words, tmp_path):
    pytest.importorskip("rawpy")
    path = tmp_path / name
    path.write_bytes(content)

    assert_refused(ImageProcessor().decode, path, rf"{name}: .*{words}(?!.*b')")  # no bytes of Python in the reason


# Missing packages

EMPTY_HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)


@pytest.mark.parametrize(
    ("name", "content", "package"),
    [
        ("a.heic", EMPTY_HEIC, "pillow_heif"),
        ("a.dng", dng(RAW, preview()), "rawpy"),
    ],
)
def test_missing_package_is_named_with_its_extra(name, content, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    path = tmp_path / name
    path.write_bytes(content)

    assert_guessed(path)
    error = assert_refused(ImageProcessor().decode, path, name)
    assert error.package == package
    assert error.extra == "media"
