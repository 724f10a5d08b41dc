"""Files of the index as served to a browser or a model; they are looked up in the index, never by a client's path.

Only what was indexed is served. A file is opened, without following links out of the indexed folder; the open file is
then compared with the index, and refused if its size or modification time differs; and what is served, decoded or shown
is read from the open file, whatever its path means by then.
"""

import contextlib
import io
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from onepeace.errors import UserError
from onepeace.files.drawing import bars
from onepeace.files.source import is_open_file, suffix
from onepeace.files.video import frame_at
from onepeace.index import Item
from onepeace.index.content import open_content
from onepeace.index.items import mtime_of, shard_of
from onepeace.index.sources import Root
from onepeace.serve.requests import Refused

if TYPE_CHECKING:
    from PIL import Image

Roots = Mapping[str, Root]
THUMBNAIL = 480
"""Longest side of a thumbnail in pixels."""
LARGE = 1600
"""Longest side of an opened picture in pixels."""
BARS = 96
"""Number of bars of a waveform."""
PICTURED = ("image", "video", "audio")
"""Kinds of files that have a thumbnail, or a waveform."""
BAR = "#c47a35"
"""Colour of a waveform, visible on light and dark backgrounds."""
CONVERTED_SECONDS = 600.0
"""Maximum seconds that are converted of a sound whose format browsers do not play."""
TEXT = "text/plain; charset=utf-8"
OTHER = "application/octet-stream"
VIDEO_TYPES = {
    ".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/mp4", ".webm": "video/webm", ".mkv": "video/webm",
}  # fmt: skip
"""Video types that browsers play if they support the codec; of other videos only frames are shown."""
TYPES = {
    ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".jpe": "image/jpeg", ".jfif": "image/jpeg", ".png": "image/png",
    ".apng": "image/apng", ".webp": "image/webp", ".gif": "image/gif", ".bmp": "image/bmp", ".avif": "image/avif",
    ".wav": "audio/wav", ".wave": "audio/wav", ".flac": "audio/flac", ".ogg": "audio/ogg", ".oga": "audio/ogg",
    ".opus": "audio/ogg", ".mp3": "audio/mpeg", ".m4a": "audio/mp4", ".m4b": "audio/mp4", ".aac": "audio/aac",
    ".txt": TEXT, **VIDEO_TYPES,
}  # fmt: skip
"""Media types that browsers display and that cannot contain scripts. Other files are downloaded."""


@dataclass(frozen=True)
class Body:
    """Content of a response: an open file, or bytes, with its media type."""

    content: BinaryIO | bytes
    type: str

    def read(self) -> bytes:
        """All of it; a file is closed."""
        if isinstance(self.content, bytes):
            return self.content
        with self.content as file:
            return file.read()


def body_of(item: Item, roots: Roots) -> Body:
    """The unchanged content of a file of the index; sounds that browsers do not play are converted to WAV.

    Args:
        roots: roots of the index, see `onepeace.index.content.content`.

    Raises:
        Refused: the file is gone (404), or has changed since it was indexed (410).
        UserError: a sound cannot be read.
    """
    media_type = TEXT if item.kind == "text" else TYPES.get(suffix(item.path), OTHER)
    if item.kind == "audio" and media_type == OTHER:
        with _unchanged(item, roots) as value:
            return Body(_wav(value), TYPES[".wav"])
    value = _open(item, roots)
    if isinstance(value, str):
        value = value.encode()
    return Body(value, media_type)


def thumbnail(item: Item, roots: Roots, side: int = THUMBNAIL, at: float = 0.0) -> Body:
    """Thumbnail (WebP) of a file of the index, or the waveform (SVG) of a sound.

    Args:
        roots: roots of the index.
        side: longest side in pixels.
        at: position in a video, in seconds.

    Raises:
        Refused: as `body_of`; also for a text (404).
        UserError: the file cannot be read.
    """
    if item.kind not in PICTURED:
        raise Refused(404, f"item {item.id}: a {item.kind} has no thumbnail")
    if item.kind != "audio":
        with contextlib.suppress(NoPictures):
            return Body(webp(picture(item, roots, at, side), side), "image/webp")
    with _unchanged(item, roots) as value:
        svg = waveform(value)
    svg = svg.replace("<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" fill="{BAR}" ', 1)
    return Body(svg.encode(), "image/svg+xml")


class NoPictures(UserError):
    """Error for a video without frames."""


def picture(item: Item, roots: Roots, at: float = 0.0, side: int = LARGE) -> "Image.Image":
    """A picture of the index, decoded at ``side`` or larger if it is that large, or the frame of a video at ``at``.

    Raises:
        Refused: as `body_of`.
        UserError: the file cannot be read; NoPictures: a video without frames.
    """
    from onepeace.processors import ImageProcessor

    with _unchanged(item, roots) as value:
        if item.kind == "image":
            return ImageProcessor(size=side).load(value)
        try:
            return frame_at(value, at).image
        except UserError as error:
            raise NoPictures(str(error)) from error


def webp(image: "Image.Image", side: int) -> bytes:
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=80)
    return buffer.getvalue()


def waveform(value: object) -> str:
    """Waveform of a sound's first minute as SVG."""
    from onepeace.processors import AudioProcessor

    samples = AudioProcessor().load(value, seconds=60.0).numpy()
    rectangles = []
    for i, peak in enumerate(bars(samples, BARS)):
        height = round(96 * peak) + 2
        rectangles.append(f'<rect x="{4 * i}" y="{50 - height / 2:g}" width="3" height="{height}" rx="1"/>')
    view = f"0 0 {4 * len(rectangles)} 100"
    return f'<svg viewBox="{view}" preserveAspectRatio="none" aria-hidden="true">{"".join(rectangles)}</svg>'


@contextlib.contextmanager
def _unchanged(item: Item, roots: Roots) -> Iterator[BinaryIO | bytes | str]:
    """Context of the content of an item, see `_open`; an open file is closed at its end."""
    value = _open(item, roots)
    with value if is_open_file(value) else contextlib.nullcontext():
        yield value


def _open(item: Item, roots: Roots) -> BinaryIO | bytes | str:
    """The content of an item, as `open_content` returns it; Refused if it has changed since it was indexed."""
    try:
        if shard := shard_of(item.path):
            _check(os.stat(shard), item, with_size=False)
        value = open_content(item, roots)
    except OSError as error:
        raise Refused(404, f"item {item.id}: cannot be opened ({error.strerror or error})") from error
    except Refused:
        raise
    except UserError as error:
        raise Refused(404, str(error)) from error
    if is_open_file(value):
        try:
            _check(os.fstat(value.fileno()), item, with_size=True)
        except Refused:
            value.close()
            raise
    return value


def _check(status: os.stat_result, item: Item, *, with_size: bool) -> None:
    same = stat.S_ISREG(status.st_mode) and mtime_of(status) == item.mtime_ns
    if not same or (with_size and status.st_size != item.size):
        raise Refused(410, f"item {item.id}: has changed since it was indexed; run onepeace index update")


def _wav(value: object) -> bytes:
    import soundfile

    from onepeace.processors import AudioProcessor

    processor = AudioProcessor()
    samples = processor.load(value, seconds=CONVERTED_SECONDS).numpy()
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, processor.sample_rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()
