"""Pictures as arrays, and as files."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from onepeace.processors import ImageProcessor

TURN = Image.Transpose
STORED = {
    1: None,
    2: TURN.FLIP_LEFT_RIGHT,
    3: TURN.ROTATE_180,
    4: TURN.FLIP_TOP_BOTTOM,
    5: TURN.TRANSPOSE,
    6: TURN.ROTATE_90,
    7: TURN.TRANSVERSE,
    8: TURN.ROTATE_270,
}
"""How a camera that is held in an orientation stores its picture: the opposite of what makes it upright (EXIF 2.3,
section 4.6.4)."""


def noise_pixels(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def smooth_pixels(height: int, width: int) -> np.ndarray:
    """A picture without sharp edges, for lossy formats."""
    y, x = np.mgrid[0:height, 0:width]
    colours = [255 * y / height, 255 * x / width, 127 + 120 * np.sin(x / 9)]
    return np.stack(colours, axis=-1).astype(np.uint8)


def encoded_image(image: Image.Image | np.ndarray, form: str = "PNG", **options: object) -> bytes:
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def turned(pixels: np.ndarray, orientation: int) -> tuple[Image.Image, Image.Exif]:
    """A picture as it is stored in an orientation, and the EXIF data that says so."""
    image = Image.fromarray(pixels)
    turn = STORED.get(orientation)
    if turn is not None:
        image = image.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    return image, exif


def png_header(width: int, height: int) -> bytes:
    """A PNG that only claims its size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    checksum = struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + checksum + b"\0\0\0\0IDAT"


def grey_levels(**options: object) -> ImageProcessor:
    """A processor whose output are the levels from 0 to 255, so that tests can name them."""
    return ImageProcessor(
        mean=[0, 0, 0],
        std=[1 / 255] * 3,
        **options,
    )


def levels(item: object, size: int = 8, **options: object) -> np.ndarray:
    """(H, W, 3) levels of a decoded picture."""
    return grey_levels(size=size, **options).decode(item).permute(1, 2, 0).numpy().round(2)


def pixels_of(item: object) -> np.ndarray:
    """(H, W, 3) int64 levels of a picture in its own size."""
    return np.asarray(grey_levels().load(item)).astype(int)
