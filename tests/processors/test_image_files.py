"""The picture processor: every kind of picture a user has, and every kind that is none."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from support.pixels import assert_original_pixels

from onepeace.errors import UserError
from onepeace.processors import ImageProcessor

GOLDEN = load_file(str(Path(__file__).parents[1] / "golden" / "media_preprocess.safetensors"))
PICTURES = ["rgb_130x90", "rgb_45x61"]
TURN = Image.Transpose
# How a camera that is held so stores its picture: the opposite of what makes it upright (EXIF 2.3, section 4.6.4).
STORED = {
    2: TURN.FLIP_LEFT_RIGHT, 3: TURN.ROTATE_180, 4: TURN.FLIP_TOP_BOTTOM, 5: TURN.TRANSPOSE, 6: TURN.ROTATE_90,
    7: TURN.TRANSVERSE, 8: TURN.ROTATE_270,
}  # fmt: skip


def plain(**options) -> ImageProcessor:
    """Grey levels come out as they are, so that tests can name them."""
    return ImageProcessor(mean=[0, 0, 0], std=[1 / 255] * 3, **options)


def levels(item, size=8, **options) -> np.ndarray:
    """(H, W, 3) grey levels of a decoded picture."""
    return plain(size=size, **options).decode(item).permute(1, 2, 0).numpy().round(2)


def encoded(image: Image.Image, form: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def smooth(height: int, width: int) -> np.ndarray:
    """A picture without sharp edges, for lossy formats."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([255 * y / height, 255 * x / width, 127 + 120 * np.sin(x / 9)], -1).astype(np.uint8)


def forms_of(array: np.ndarray, folder: Path) -> dict[str, object]:
    """The same picture in every form a user may hand in."""
    path = folder / "picture.png"
    Image.fromarray(array).save(path)
    data = path.read_bytes()
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    return {
        "path": path,
        "str": str(path),
        "bytes": data,
        "bytearray": bytearray(data),
        "PIL": Image.fromarray(array),
        "lazy PIL": Image.open(path),
        "array": array,
        "reversed array": array[::-1].copy()[::-1],
        "tensor": tensor,
        "float tensor": tensor / 255,
        "double tensor": tensor.double() / 255,
    }


@pytest.mark.parametrize("name", PICTURES)
def test_pixels_match_golden(name, tmp_path):
    """As from the original's transform, whatever form the picture has."""
    for form, item in forms_of(GOLDEN[f"{name}_uint8"].numpy(), tmp_path).items():
        assert_original_pixels(ImageProcessor(size=64).decode(item), GOLDEN[f"{name}_hub"], name == "rgb_130x90", form)


def test_squash_keeps_everything_and_crop_keeps_the_shape():
    wide = np.zeros((40, 120, 3), np.uint8)
    wide[:, 40:80] = 255  # the middle third is white
    assert levels(wide, resize="squash")[4].mean() == pytest.approx(85, abs=3)
    tall = wide.transpose(1, 0, 2)
    for picture in (wide, tall):  # the filter looks a little over the edge of the cut
        assert levels(picture, resize="crop").min() > 230
        assert levels(picture, resize="squash").min() == 0


@pytest.mark.parametrize(
    ("form", "orientation"), [*(("JPEG", i) for i in range(1, 9)), ("PNG", 6), ("WEBP", 6), ("TIFF", 6)]
)
def test_exif_rotation(form, orientation):
    upright = smooth(48, 64)
    stored = Image.fromarray(upright)
    if orientation in STORED:
        stored = stored.transpose(STORED[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"lossless": True} if form == "WEBP" else {}
    data = encoded(stored, form, exif=exif, quality=98, **lossless)
    image = plain().load(data)
    assert image.size == (64, 48)
    assert np.abs(np.asarray(image).astype(int) - upright).max() <= (0 if form != "JPEG" else 12)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_is_no_reason_to_refuse(monkeypatch):
    for damage in (b"II*\0\xff\xff\xff\xff\x01\x02junk", b"no TIFF header"):
        data = encoded(Image.fromarray(noise(9, 9)), "JPEG", exif=b"Exif\0\0" + damage)
        assert levels(data).shape == (8, 8, 3)
    width_as_text = b"\0\x01\x02\0\x04\0\0\0abc\0"
    width_as_text = b"II*\0\x08\0\0\0\x02\0" + width_as_text + b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    assert plain().load(encoded(Image.fromarray(noise(9, 5)), "JPEG", exif=b"Exif\0\0" + width_as_text)).size == (9, 5)
    exif = Image.Exif()
    exif[0x0112] = 77
    data = encoded(Image.fromarray(noise(9, 5)), "JPEG", exif=exif)
    assert plain().size_in_pixels(data) == plain().load(data).size

    def refuse(self):
        raise SyntaxError("not a TIFF file")  # what Pillow 11 says to some of these

    monkeypatch.setattr(Image.Image, "getexif", refuse)
    assert levels(noise(9, 9)).shape == levels(encoded(Image.fromarray(noise(9, 9)))).shape


def half_transparent() -> Image.Image:
    """Left: red and opaque. Right: blue, but fully transparent."""
    array = np.zeros((8, 8, 4), np.uint8)
    array[:, :4] = (255, 0, 0, 255)
    array[:, 4:] = (0, 0, 255, 0)
    return Image.fromarray(array)


def test_alpha_is_on_white():
    rgba = half_transparent()
    expected = np.full((8, 8, 3), 255)
    expected[:, :4] = (255, 0, 0)
    grey = Image.merge("LA", [Image.new("L", (8, 8), 90), rgba.getchannel("A")])
    palette = rgba.quantize(8, method=Image.Quantize.FASTOCTREE)
    assert palette.mode == "P"
    for form, item in {
        "RGBA": rgba,
        "array": np.asarray(rgba),
        "tensor": torch.from_numpy(np.array(rgba)).permute(2, 0, 1),
        "RGBA PNG": encoded(rgba),
        "RGBA WebP": encoded(rgba, "WEBP", lossless=True),
        "premultiplied": rgba.convert("RGBa"),
        "palette PNG": encoded(palette),
        "GIF": encoded(rgba, "GIF"),
    }.items():
        assert np.abs(np.asarray(plain().load(item)).astype(int) - expected).max() <= 1, form
    assert np.asarray(plain().load(encoded(grey)))[0, :, 0].tolist() == [90] * 4 + [255] * 4


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV", "RGBX"])
def test_every_colour_mode_shows_the_same_white_and_black(mode):
    drawing = Image.new("RGB", (8, 8), "white")
    drawing.paste("black", (0, 0, 4, 8))
    out = levels(drawing.convert(mode))
    assert (out[:, :4] == 0).all()
    assert (out[:, 4:] == 255).all()


def test_sixteen_bits_are_scaled_and_not_clipped():
    ramp = np.linspace(0, 65535, 64).reshape(8, 8)
    expected = np.round(ramp / 257)
    wide = ramp.astype(np.uint16)
    for form, item in {
        "PNG": encoded(Image.fromarray(wide)),
        "TIFF": encoded(Image.fromarray(wide), "TIFF"),
        "PIL I;16": Image.fromarray(wide),
        "PIL I": Image.fromarray(wide.astype(np.int32)),
        "PGM": b"P5 8 8 65535 " + wide.astype(">u2").tobytes(),
        "PIL F": Image.fromarray((ramp / 65535).astype(np.float32)),
        "32-bit": Image.fromarray((ramp * 30000).astype(np.int32)),
        "negative": Image.fromarray((ramp - 70000).astype(np.int32)),
        "floats": Image.fromarray((ramp * 7 - 3).astype(np.float32)),
    }.items():
        assert np.abs(np.asarray(plain().load(item))[..., 1] - expected).max() <= 1, form


def test_nan_picture_is_an_error():
    with pytest.raises(UserError, match="NaN"):
        plain().load(Image.fromarray(np.array([[0.5, np.nan]], np.float32)))


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animation_shows_its_first_frame(form):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    options = {"lossless": True} if form == "WEBP" else {}
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert levels(data)[3, 3] == pytest.approx((255, 0, 0), abs=2)


def test_grey_arrays_and_single_channels():
    grey = noise(8, 8, 1)
    expected = levels(np.repeat(grey, 3, axis=2))
    for item in (grey, grey[..., 0], torch.from_numpy(grey).permute(2, 0, 1), Image.fromarray(grey[..., 0])):
        assert (levels(item) == expected).all()


def png_header(width: int, height: int) -> bytes:
    """A PNG that only claims its size."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head)) + b"\0\0\0\0IDAT"


def test_picture_bomb_is_refused_before_it_is_decoded(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(20000, 20000))
    with pytest.raises(UserError, match=r"bomb\.png: 400000000 pixels .* 178956970"):
        ImageProcessor().decode(path)
    path.write_bytes(png_header(300, 200))
    with pytest.raises(UserError, match="cannot be decoded"):  # what is left is a broken picture
        ImageProcessor().decode(path)


def half(form: str) -> bytes:
    data = encoded(Image.fromarray(smooth(200, 200)), form)
    return data[: len(data) // 2]


UNKNOWN = "not a picture of a known format"
# Contents of a file, or how to make what is no file, and what the message says besides the name.
BROKEN = {
    "missing": (lambda path: None, "no such file"),
    "a folder": (Path.mkdir, "is a folder"),
    "a pipe": (os.mkfifo, "not a regular file"),
    **{f"half a {form}": (half(form), "cannot be (decoded|opened)") for form in ("JPEG", "PNG", "WEBP", "GIF", "TIFF")},
    "empty": (b"", r"empty \(0 bytes\)"),
    "text": (b"not a picture at all", UNKNOWN),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", UNKNOWN),
    "zeros": (bytes(5000), UNKNOWN),
    "head": (b"\x89PNG\r\n\x1a\n", f"{UNKNOWN}|cannot be opened"),
    "sound": (b"RIFF\x24\0\0\0WAVEfmt ", UNKNOWN),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_file_is_named_with_its_reason(kind, tmp_path):
    content, message = BROKEN[kind]
    path = tmp_path / "picture.png"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)
    with pytest.raises(UserError, match=rf"picture\.png: .*({message})") as caught:
        ImageProcessor().decode(path)
    assert "\n" not in str(caught.value)
    assert "object at 0x" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:::PIL")
@settings(deadline=None, derandomize=True, max_examples=50)
@given(
    st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"]),
    st.data(),
)
def test_damaged_bytes_give_a_picture_or_a_user_error(form, data):
    content = bytearray(encoded(Image.fromarray(smooth(24, 24)), form))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        pixels = ImageProcessor(size=8).decode(bytes(content))
    except UserError:
        return
    assert pixels.shape == (3, 8, 8)
    assert torch.isfinite(pixels).all()


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), r"float32: a picture as an array is uint8 and \(H, W, 3\)"),
        (np.zeros((3, 4, 5), np.uint8), r"\(3, 4, 5\) uint8: a picture as an array is"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (torch.zeros(5, 4, 3), r"a picture as a tensor is \(3, H, W\)"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "uint8 or floats between 0 and 1"),
        (torch.full((3, 4, 4), 255.0), r"must lie between 0 and 1, these reach from 255 to 255"),
        (torch.full((3, 4, 4), torch.nan), "must lie between 0 and 1"),
        (3, "expected a path"),
        ("", "path is empty"),
        ("a\0b.jpg", r"a\?b\.jpg: (cannot be opened|no such file)"),
        ("x" * 5000 + ".jpg", r"xxx\.\.\.xx.*: (cannot be opened|no such file)"),
    ],
)
def test_value_that_is_no_picture_is_an_error(item, message):
    with pytest.raises(UserError, match=message) as caught:
        ImageProcessor().decode(item)
    assert len(str(caught.value)) < 400


def test_large_jpeg_is_shrunk_while_decoding_but_never_below_twice_the_target():
    data = encoded(Image.fromarray(smooth(640, 1000)), "JPEG", quality=95)
    drafted, full = plain(size=64), plain(size=64, draft=False)
    assert full.load(data).size == (1000, 640)
    width, height = drafted.load(data).size
    assert (width, height) == (250, 160), "a quarter; an eighth would be 80 high, less than 128"
    difference = (drafted.decode(data) - full.decode(data)).abs()
    assert difference.mean() < 1
    assert difference.max() < 6
    assert plain(size=400).load(data).size == (1000, 640)


def test_collate_stacks():
    processor = ImageProcessor(size=[8, 16])
    samples = [processor.decode(noise(9, 9, seed=i)) for i in range(3)]
    batch = processor.collate(samples)
    assert batch["pixels"].shape == (3, 3, 8, 16)
    assert torch.equal(batch["pixels"][1], samples[1])
    assert processor.size(samples[0]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size is 0"),
        ({"resize": "fit"}, "known: 'squash', 'crop'"),
        ({"std": [1, 1, 0]}, "std above 0"),
        ({"Size": 3}, r"processors\.image\.Size is not a setting; did you mean size"),
    ],
)
def test_wrong_setting_is_an_error(options, message):
    with pytest.raises(UserError, match=message):
        ImageProcessor.from_config(options)
