"""Opens pictures of every format: by Pillow, HEIC by pillow-heif, raw files of cameras by their embedded preview."""

import io
import re
from typing import IO, TYPE_CHECKING

from onepeace.errors import UserError, need, one_line
from onepeace.files.container import MAX_PIXELS

if TYPE_CHECKING:
    from PIL import Image
    from rawpy import RawPy

# Formats that Pillow reads by itself. Left out: EPS, which starts Ghostscript, and formats without a signature.
FORMATS = (
    "JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF", "JPEG2000", "MPO", "PPM", "ICO", "DIB", "QOI", "PCX",
    "SGI", "DDS",
)  # fmt: skip
PICTURE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .apng .webp .gif .bmp .dib .tif .tiff .avif .heic .heif .hif .jp2 .j2k .ppm .pgm .pbm "
    ".pnm .ico .qoi .pcx .sgi .dds".split()
)
RAW_SUFFIXES = frozenset(".cr2 .cr3 .nef .arw .dng .raf .orf .rw2 .pef".split())
"""Canon, Nikon, Sony, Adobe and phones, Fujifilm, Olympus, Panasonic, Pentax."""
HEIF = re.compile(rb"....ftyp(?:hei[cxms]|hev[cxms]|mif[12]|msf1|avi[fs])", re.DOTALL)
VIDEO = re.compile(rb"....ftyp|\x1aE\xdf\xa3|RIFF....AVI |FLV\x01|\x30\x26\xb2\x75|\0\0\x01[\xb3\xba]", re.DOTALL)
"""MP4 (HEIC and CR3 are recognised before), Matroska and WebM, AVI, FLV, ASF, MPEG."""
OTHERS = {b"%PDF": "but a PDF document", b"PK\x03\x04": "but a ZIP archive or an office document"}
"""What files that are no pictures begin with, and what they are."""
RAW = re.compile(rb"II\*\0....CR|II(?:RO|RS|U\0)|MMOR|FUJIFILMCCD-RAW|....ftypcrx ", re.DOTALL)
"""Raw formats whose first bytes distinguish them from TIFF: CR2, ORF, RW2, RAF, CR3."""
TIFF = re.compile(rb"II\*\0|MM\0\*")
DNG_VERSION = 50706
ORIENTATION_TAG = 0x0112
EXIF_BY_FLIP = {3: 3, 5: 8, 6: 6}
"""EXIF orientation by LibRaw's `flip`."""
MIN_PREVIEW = 256
"""Minimum pixels of the shorter side of a preview; smaller ones are not used."""


def open_picture(file: IO[bytes], name: str, suffix: str = "") -> "Image.Image":
    """Open a picture, without reading its pixels if the format allows that; the EXIF data has its orientation.

    Args:
        file: a file, or bytes in memory, at the start.
        name: its name in messages.
        suffix: its file ending, lower case; without it, most raw files look like TIFF.

    Raises:
        UserError: not a picture, a damaged header, too large to be decoded safely, or a package is missing.
    """
    from PIL import Image, UnidentifiedImageError

    head = file.read(64)
    file.seek(0)
    if is_raw(file, head, suffix):
        return _open_raw(file, name)
    if HEIF.match(head):
        _prepare_heif(head, name)
    try:
        return Image.open(file, formats=_formats())
    except UnidentifiedImageError as error:
        if HEIF.match(head):
            raise UserError("the picture cannot be opened (damaged HEIC or AVIF)", where=name) from error
        if VIDEO.match(head):
            reason = "is a video, not a picture; to search by a video of an index, give it as `like`"
            raise UserError(reason, where=name) from error
        kinds = [f" ({kind})" for start, kind in OTHERS.items() if head.startswith(start)]
        raise UserError(f"not a picture of a known format{''.join(kinds)}", where=name) from error
    except Image.DecompressionBombError as error:
        pixels, limit = re.findall(r"\d+", str(error))[:2]
        raise UserError(f"{pixels} pixels are above the limit of {limit}; shrink the picture", where=name) from error
    except Exception as error:
        raise UserError(f"the picture cannot be opened ({one_line(error)})", where=name) from error


def looks_like_picture(file: IO[bytes]) -> bool:
    """Whether the first bytes are a picture's; reads the header only, and needs no optional package."""
    from PIL import Image

    head = file.read(64)
    file.seek(0)
    if HEIF.match(head) or is_raw(file, head):
        return True
    try:
        with Image.open(file, formats=_formats()):
            return True
    except Image.DecompressionBombError:
        return True
    except Exception:
        return False


def is_raw(file: IO[bytes], head: bytes, suffix: str = "") -> bool:
    """Whether a file that begins with `head` is a camera's raw file; for a TIFF, by its ending or if it is a DNG."""
    if RAW.match(head):
        return True
    if not TIFF.match(head) or suffix in RAW_SUFFIXES:
        return TIFF.match(head) is not None
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    try:
        tags = ImageFileDirectory_v2(file.read(8))
        file.seek(tags.next)
        tags.load(file)
        return DNG_VERSION in tags
    except Exception:  # a damaged TIFF; Pillow will say what is wrong with it
        return False
    finally:
        file.seek(0)


def orientation(image: "Image.Image") -> int:
    """The EXIF orientation, from 1 (upright) to 8."""
    # Not ImageOps.exif_transpose: it rewrites the EXIF data, and fails if another of its fields is damaged.
    try:
        value = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # damaged EXIF data; the pixels are fine
        value = 1
    return value if value in range(1, 9) else 1


def _formats() -> list[str]:
    """Entries of FORMATS that this Pillow supports (HEIF needs pillow-heif, AVIF depends on the build)."""
    from PIL import Image

    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _prepare_heif(head: bytes, name: str) -> None:
    """Register HEIC with Pillow; whether it supports AVIF depends on its build."""
    if b"avi" in head[8 : int.from_bytes(head[:4], "big")]:  # the brands
        if "AVIF" not in _formats():
            raise UserError("this Pillow cannot read AVIF: pip install --upgrade pillow", where=name)
        return
    need("pillow_heif", "media", name).register_heif_opener()


def _open_raw(file: IO[bytes], name: str) -> "Image.Image":
    """The embedded preview of a raw file, or the raw picture at half its size if there is none."""
    from PIL import Image

    rawpy = need("rawpy", "media", name)
    try:
        with rawpy.imread(file) as raw:
            preview = _preview(raw)
            if preview is not None:
                return preview
            width = raw.sizes.raw_width
            height = raw.sizes.raw_height
            if width * height <= MAX_PIXELS:
                return Image.fromarray(raw.postprocess(half_size=True, use_camera_wb=True).squeeze())
    except Exception as error:  # LibRaw's errors, whose texts are bytes, and numpy's about damaged sizes
        reason: object = error
        if error.args and isinstance(error.args[0], bytes):
            reason = error.args[0].decode("ascii", "replace")
        raise UserError(f"the raw picture cannot be opened ({one_line(reason)})", where=name) from error
    raise UserError(f"{width} x {height} pixels are above the limit of {MAX_PIXELS}; shrink the picture", where=name)


def _preview(raw: "RawPy") -> "Image.Image | None":
    """The largest preview that the camera embedded; None if there is none that is large enough."""
    from PIL import Image

    try:
        preview = raw.extract_thumb().data
        if isinstance(preview, bytes):
            image: Image.Image = Image.open(io.BytesIO(preview), formats=["JPEG"])
        else:
            image = Image.fromarray(preview)
    except Exception:  # none, of an unknown kind, or damaged
        return None
    exif = image.getexif()  # for a JPEG, LibRaw wrote it
    if ORIENTATION_TAG not in exif:
        exif[ORIENTATION_TAG] = EXIF_BY_FLIP.get(raw.sizes.flip, 1)
    return image if min(image.size) >= MIN_PREVIEW else None
