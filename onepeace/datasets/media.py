"""How layouts store pictures and sounds: small WebP files, and 16 kHz mono Ogg Vorbis; and what repeats."""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from onepeace.config.reader import Count, Positive, Probability, Range
from onepeace.datasets.layout import Encoded, Layout, Record, option

PICTURE_CAPTIONS = ("a photo of {a}", "a picture of {a}", "{a}")
"""Templates of captions for the label of a picture."""
Quality = Annotated[int, Range("from 0 to 100", lambda x: 0 <= x <= 100)]
"""Quality of a WebP file."""


@dataclass(frozen=True)
class Photographs(Layout):
    """A layout whose pictures are stored as small WebP files."""

    size: Count = option(256, "short side of the pictures in pixels")
    quality: Quality = option(78, "quality of the WebP files, up to 100")

    def encode(self, record: Record) -> Encoded:
        """The picture at the size and quality of this layout."""
        return photograph(record, self.size, self.quality)


@dataclass(frozen=True)
class SharedPhotographs(Photographs):
    """A layout in which several samples have the same picture, each with its own targets, or a sample has several."""

    def encode(self, record: Record) -> Encoded:
        """The pictures of a record at the size and quality of this layout; it is written even if others have them."""
        return super().encode(record)._replace(original=None)


def photograph(record: Record, size: int, quality: int) -> Encoded:
    """The pictures of a record as WebP, the second as "2.webp", their short sides at most `size` pixels."""
    value = record.inputs["image"]
    paths = value if isinstance(value, list) else [value]
    data = b""
    content_by_ending = {}
    for number, path in enumerate(paths, 1):
        data = path.read_bytes()
        ending = "webp" if number == 1 else f"{number}.webp"
        content_by_ending[ending] = webp(shrink(read_picture(data), size), quality)
    return Encoded(content_by_ending, data)


class DuplicateFilter:
    """Detects repeated content."""

    def __init__(self) -> None:
        self._hashes: set[bytes] = set()

    def __call__(self, content: bytes) -> bool:
        """Whether equal content was passed before."""
        digest = hashlib.sha1(content, usedforsecurity=False).digest()
        is_repeated = digest in self._hashes
        self._hashes.add(digest)
        return is_repeated


def read_picture(source: Path | bytes, mode: str = "RGB") -> Any:
    """Open a PIL picture, upright and in the given mode; OSError if it is not a picture."""
    from PIL import Image, ImageOps

    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        with Image.open(file) as picture:
            return ImageOps.exif_transpose(picture).convert(mode)
    except (ValueError, SyntaxError, Image.DecompressionBombError) as error:  # what PIL raises for some broken files
        raise OSError(f"not a picture ({error})") from error


def shrink(picture: Any, short: int) -> Any:
    """The picture with its short side at most `short` pixels, same proportions."""
    scale = short / min(picture.size)
    if scale >= 1:
        return picture
    from PIL import Image

    size = [max(1, round(side * scale)) for side in picture.size]
    return picture.resize(size, Image.Resampling.LANCZOS)


def webp(picture: Any, quality: int) -> bytes:
    """The picture as WebP."""
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=quality, method=6)
    return buffer.getvalue()


RATE = 16000
"""Samples per second of the sounds in the shards."""

SOUNDS = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3"})
"""Suffixes of the sound files that are read. Video files are not read: extract their sound first."""

SOUND_CAPTIONS = ("{}", "the sound of {}", "a recording of {}")
"""Templates of captions for the label of a sound."""

SOUND_HINT = f"{', '.join(sorted(SOUNDS))} are read, not videos: extract their sound"


@dataclass(frozen=True)
class Sounds(Layout):
    """A layout whose sounds are stored as Ogg Vorbis."""

    seconds: Positive = option(10.0, "longest sound; more is cut off")
    level: Probability = option(0.9, "compression of Vorbis, 0 (best) to 1 (smallest)")

    def encode(self, record: Record) -> Encoded:
        """The first `seconds` of the sound of a record."""
        samples = load_sound(record.inputs["audio"], self.seconds)
        return Encoded({"ogg": ogg(samples, self.level)})


def sounds_below(folder: Path) -> list[Path]:
    """The sound files of a folder and its subfolders, sorted by path."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SOUNDS)


def load_sound(path: Path, seconds: float) -> Any:
    """(n,) float32 from -1 to 1: the first `seconds` of a file, mono, at `RATE`; UserError when it cannot be read."""
    from onepeace.processors import AudioProcessor

    return AudioProcessor(sample_rate=RATE).load(path, seconds=seconds).clamp(-1, 1).numpy()


def ogg(samples: Any, level: float) -> bytes:
    """Mono float samples at `RATE` as Ogg Vorbis; level is libsndfile's, 0 (best) to 1 (smallest)."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, format="OGG", subtype="VORBIS", compression_level=level)
    return buffer.getvalue()
