"""The picture processor: every kind of picture a user has, and every kind that is none."""

import io
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.broken_files import assert_refused, write_content
from support.golden import golden_tensors
from support.images import (
    encoded_image,
    grey_levels,
    levels,
    noise_pixels,
    pixels_of,
    png_header,
    smooth_pixels,
    turned,
)
from support.pixels import assert_original_pixels

from onepeace.errors import UserError
from onepeace.processors import ImageProcessor

GOLDEN = golden_tensors("media_preprocess.safetensors")

# Size


@pytest.mark.parametrize(
    ("name", "is_reduced"),
    [
        ("rgb_130x90", True),
        ("rgb_45x61", False),
    ],
)
def test_pixels_match_golden(name, is_reduced):
    pixels = ImageProcessor(size=64).decode(GOLDEN[f"{name}_uint8"].numpy())
    assert_original_pixels(pixels, GOLDEN[f"{name}_hub"], is_reduced, name)


WIDE = np.zeros((40, 120, 3), np.uint8)
WIDE[:, 40:80] = 255  # the middle third is white


@pytest.mark.parametrize(
    "pixels",
    [
        WIDE,
        WIDE.transpose(1, 0, 2),
    ],
    ids=["wide", "tall"],
)
def test_squash_keeps_everything_and_crop_keeps_the_shape(pixels):
    squashed = levels(pixels, resize="squash")

    assert squashed.mean() == pytest.approx(85, abs=3)
    assert squashed.min() == 0
    assert levels(pixels, resize="crop").min() > 230  # the filter looks a little over the edge of the cut


def test_large_jpeg_is_shrunk_while_decoding():
    """It stays at least twice as large as the target."""
    content = encoded_image(smooth_pixels(640, 1000), "JPEG", quality=95)
    drafted = grey_levels(size=64)
    full = grey_levels(size=64, draft=False)

    assert drafted.load(content).size == (250, 160), "a quarter; an eighth would be 80 high, less than 128"
    assert full.load(content).size == (1000, 640)
    assert grey_levels(size=400).load(content).size == (1000, 640)
    difference = (drafted.decode(content) - full.decode(content)).abs()
    assert difference.mean() < 1
    assert difference.max() < 6


# Forms of an item

PIXELS = noise_pixels(90, 130)
CHANNELS_FIRST = torch.from_numpy(PIXELS).permute(2, 0, 1)
PNG = encoded_image(PIXELS)


@pytest.mark.parametrize(
    "item",
    [
        bytearray(PNG),
        Image.open(io.BytesIO(PNG)),
        PIXELS[::-1].copy()[::-1],
        CHANNELS_FIRST,
        CHANNELS_FIRST / 255,
        (CHANNELS_FIRST - 0.4).clamp(min=0) / 255,
    ],
    ids=["bytearray", "lazy PIL", "reversed", "tensor", "floats", "between levels"],
)
def test_form_of_the_picture_does_not_matter(item):
    assert (levels(item) == levels(PNG)).all()


def test_one_channel_is_grey():
    grey = noise_pixels(8, 8, channels=1)
    expected = levels(np.repeat(grey, 3, axis=2))

    channels_first = torch.from_numpy(grey).permute(2, 0, 1)
    flat = grey[..., 0]
    for item in (grey, flat, channels_first, Image.fromarray(flat)):
        assert (levels(item) == expected).all()


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (np.zeros((4, 4, 3), np.float32), "float32: .*uint8"),
        (np.zeros((3, 4, 5), np.uint8), r"\(3, 4, 5\) uint8: .*\(H, W, 3\)"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "uint8 or floats"),
        (torch.full((3, 4, 4), 255.0), "0 and 1, .* 255 to 255"),
        (torch.full((3, 4, 4), torch.nan), "0 and 1"),
        (Image.fromarray(np.array([[0.5, np.nan]], np.float32)), "NaN"),
        ("a\0b.jpg", r"a\?b\.jpg: "),
    ],
)
def test_value_that_is_no_picture_is_an_error(item, words):
    assert_refused(ImageProcessor().decode, item, words)


# Orientation


@pytest.mark.parametrize(
    ("form", "orientation", "options", "tolerance"),
    [
        *(("JPEG", orientation, {"quality": 98}, 12) for orientation in range(1, 9)),
        ("PNG", 6, {}, 0),
        ("WEBP", 6, {"lossless": True}, 0),
        ("TIFF", 6, {}, 0),
    ],
)
def test_picture_is_turned_upright(form, orientation, options, tolerance):
    upright = smooth_pixels(48, 64)
    stored, exif = turned(upright, orientation)

    pixels = pixels_of(encoded_image(stored, form, exif=exif, **options))

    assert pixels.shape == upright.shape
    assert np.abs(pixels - upright).max() <= tolerance


def exif_data(*entries):
    """EXIF data of a directory with these entries."""
    directory = len(entries).to_bytes(2, "little") + b"".join(entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + directory + bytes(4)


WIDTH_AS_TEXT = b"\0\x01\x02\0\x04\0\0\0abc\0"
ORIENTATION_6 = b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"
ORIENTATION_77 = ORIENTATION_6.replace(b"\6", b"\x4d")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    ("exif", "size"),
    [
        (b"Exif\0\0II*\0\xff\xff\xff\xff\x01\x02junk", (5, 9)),
        (b"Exif\0\0no TIFF header", (5, 9)),
        (exif_data(ORIENTATION_77), (5, 9)),
        (exif_data(WIDTH_AS_TEXT, ORIENTATION_6), (9, 5)),
    ],
    ids=["damaged", "no header", "orientation 77", "width as text"],
)
def test_damaged_exif_is_no_reason_to_refuse(exif, size):
    content = encoded_image(noise_pixels(9, 5), "JPEG", exif=exif)

    assert grey_levels().load(content).size == size
    assert grey_levels().size_in_pixels(content) == size


# Colours


@pytest.fixture(scope="module")
def half_transparent() -> Image.Image:
    """Left: red and opaque. Right: blue, but fully transparent."""
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, :4] = (255, 0, 0, 255)
    pixels[:, 4:] = (0, 0, 255, 0)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    "form_of",
    [
        np.asarray,
        encoded_image,
        lambda image: image.convert("RGBa"),
        lambda image: encoded_image(image.quantize(8, method=Image.Quantize.FASTOCTREE)),
        lambda image: encoded_image(image, "GIF"),
    ],
    ids=["array", "PNG", "premultiplied", "palette PNG", "GIF"],
)
def test_transparent_pixels_are_white(half_transparent, form_of):
    expected = np.full((8, 8, 3), 255)
    expected[:, :4] = (255, 0, 0)

    pixels = pixels_of(form_of(half_transparent))

    assert np.abs(pixels - expected).max() <= 1


@pytest.mark.parametrize(
    "mode",
    [
        "1",
        "L",
        "P",
        "RGB",
        "CMYK",
        "YCbCr",
        "HSV",
        "RGBX",
    ],
)
def test_every_colour_mode_shows_the_same_white_and_black(mode):
    drawing = Image.new("RGB", (8, 8), "white")
    drawing.paste("black", (0, 0, 4, 8))

    pixels = levels(drawing.convert(mode))

    assert (pixels[:, :4] == 0).all()
    assert (pixels[:, 4:] == 255).all()


RAMP = np.linspace(0, 65535, 64).reshape(8, 8)
WIDE_RAMP = RAMP.astype(np.uint16)


@pytest.mark.parametrize(
    "item",
    [
        encoded_image(WIDE_RAMP),
        b"P5 8 8 65535 " + WIDE_RAMP.astype(">u2").tobytes(),
        Image.fromarray(WIDE_RAMP.astype(np.int32)),
        Image.fromarray((RAMP / 65535).astype(np.float32)),
        Image.fromarray((RAMP * 30000).astype(np.int32)),
        Image.fromarray((RAMP - 70000).astype(np.int32)),
        Image.fromarray((RAMP * 7 - 3).astype(np.float32)),
    ],
    ids=["PNG", "PGM", "I", "F", "32 bits", "negative", "floats"],
)
def test_sixteen_bits_are_scaled_and_not_clipped(item):
    assert np.abs(pixels_of(item)[..., 1] - np.round(RAMP / 257)).max() <= 1


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("GIF", {}),
        ("WEBP", {"lossless": True}),
        ("PNG", {}),
    ],
)
def test_animation_shows_its_first_frame(form, options):
    red = Image.new("RGB", (8, 8), "red")
    blue = Image.new("RGB", (8, 8), "blue")
    content = encoded_image(
        red,
        form,
        save_all=True,
        append_images=[blue],
        **options,
    )

    assert Image.open(io.BytesIO(content)).n_frames == 2
    assert levels(content)[3, 3] == pytest.approx((255, 0, 0), abs=2)


# Broken files


def test_picture_bomb_is_refused_before_it_is_decoded():
    assert_refused(ImageProcessor().decode, png_header(20000, 20000), "400000000 pixels .* 178956970")
    assert_refused(ImageProcessor().decode, png_header(300, 200), "cannot be decoded")


def half_a(form: str) -> bytes:
    content = encoded_image(smooth_pixels(200, 200), form)
    return content[: len(content) // 2]


UNKNOWN = "not a picture of a known format"
BROKEN = {
    "missing": (lambda path: None, "no such file"),
    "a pipe": (os.mkfifo, "not a regular file"),
    "half a JPEG": (half_a("JPEG"), "cannot be decoded"),
    "half a WebP": (half_a("WEBP"), "cannot be (decoded|opened)"),
    "empty": (b"", "empty"),
    "text": (b"not a picture at all", UNKNOWN),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", UNKNOWN),
    "beginning": (b"\x89PNG\r\n\x1a\n", f"{UNKNOWN}|cannot be opened"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_file_is_named_with_its_reason(kind, tmp_path):
    content, words = BROKEN[kind]
    path = write_content(tmp_path / "picture.png", content)

    assert_refused(ImageProcessor().decode, path, rf"picture\.png: .*({words})")


@pytest.mark.filterwarnings("ignore:::PIL")
@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"]), st.data())
def test_damaged_bytes_give_a_picture_or_a_user_error(form, data):
    content = bytearray(encoded_image(smooth_pixels(24, 24), form))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position] = data.draw(st.integers(0, 255))
    try:
        pixels = ImageProcessor(size=8).decode(bytes(content))
    except UserError:
        return
    assert pixels.shape == (3, 8, 8)
    assert torch.isfinite(pixels).all()
