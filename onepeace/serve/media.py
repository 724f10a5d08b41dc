"""Files of the index as they go to a browser: by the number of an item, never by a path that a client gave.

What is served is what was indexed. A file is opened first, and then the open file is compared with the index: one of
another size or time of change is refused, and with it a link that now leads elsewhere. A link that was there when the
index was made was followed then, so it is followed now.
"""

import contextlib
import io
import os
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from onepeace.errors import UserError
from onepeace.files.source import scheme, suffix
from onepeace.files.video import frame_at
from onepeace.index.content import content
from onepeace.index.sources import shard_of
from onepeace.index.store import Item
from onepeace.processors import AudioProcessor, ImageProcessor
from onepeace.serve.hits import EXCERPT, THUMBNAIL, VIDEO_TYPES, waveform
from onepeace.serve.limits import Refused

CHUNK = 1 << 18
CONVERTED_SECONDS = 600.0
"""Of a sound in a format that browsers do not play, so much is converted for them."""
TEXT = "text/plain; charset=utf-8"
TYPES = {
    ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".jpe": "image/jpeg", ".jfif": "image/jpeg", ".png": "image/png",
    ".apng": "image/apng", ".webp": "image/webp", ".gif": "image/gif", ".bmp": "image/bmp", ".avif": "image/avif",
    ".wav": "audio/wav", ".wave": "audio/wav", ".flac": "audio/flac", ".ogg": "audio/ogg", ".oga": "audio/ogg",
    ".opus": "audio/ogg", ".mp3": "audio/mpeg", ".m4a": "audio/mp4", ".m4b": "audio/mp4", ".aac": "audio/aac",
    ".txt": TEXT, **VIDEO_TYPES,
}  # fmt: skip
"""What browsers show by themselves, and nothing that could hold a script. Other files are only downloaded."""
OTHER = "application/octet-stream"
BARS = "#c47a35"
"""Colour of a waveform, to be seen on light and on dark."""
DECODERS = threading.BoundedSemaphore(4)
"""So many pictures and sounds are decoded at once: a large one takes half a gigabyte."""


@dataclass(frozen=True)
class Body:
    """Bytes to be sent, all or a part of them."""

    source: BinaryIO
    size: int
    type: str

    def chunks(self, start: int, stop: int) -> Iterator[bytes]:
        """The bytes from ``start`` to ``stop``, piece by piece; the source is closed at the end."""
        with contextlib.closing(self.source):
            self.source.seek(start)
            while start < stop and (data := self.source.read(min(CHUNK, stop - start))):
                start += len(data)
                yield data


def body_of(item: Item) -> Body:
    """The content of an item as it is; of a sound that browsers do not play, as WAV.

    Raises:
        Refused: it is not there any more (404), or not what was indexed (410); an address (404).
        UserError: a sound that cannot be read.
    """
    value = _checked(item)
    ending = suffix(item.path)
    kind = TEXT if item.modality == "text" else TYPES.get(ending, OTHER)
    if item.modality == "audio" and kind == OTHER:
        return _held(_wav(value), TYPES[".wav"])
    if isinstance(value, Path):
        return _file(value, item, kind)
    return _held(value.encode("utf-8", "replace") if isinstance(value, str) else value, kind)


def thumbnail(item: Item, at: float = 0.0) -> Body:
    """A small WebP of a picture or of what a video shows at a second, the waveform of a sound as SVG.

    Raises:
        Refused: as for `body_of`; there is none (404).
        UserError: the file cannot be read.
    """
    if item.modality not in ("image", "audio", "video"):
        raise Refused(404, f"item {item.id}: a {item.modality} has no small picture")
    value = _checked(item)
    with DECODERS:
        image = None
        if item.modality == "video":
            with contextlib.suppress(UserError):  # it has a sound only
                image = frame_at(value, at).image
        elif item.modality == "image":
            image = ImageProcessor(size=THUMBNAIL).load(value)
        if image is None:
            drawn = waveform(value).replace("<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" fill="{BARS}" ', 1)
            return _held(drawn.encode(), "image/svg+xml")
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=80)
    return _held(buffer.getvalue(), "image/webp")


def excerpt(item: Item) -> str:
    """The beginning of a text, "" if it cannot be read."""
    try:
        body = body_of(item)
        start = b"".join(body.chunks(0, min(body.size, 8 * EXCERPT))).decode("utf-8-sig", "replace").strip()
    except UserError:
        return ""
    return start if len(start) <= EXCERPT else start[:EXCERPT] + "..."


def _checked(item: Item) -> Path | bytes | str:
    """What an item is made of, as `content` gives it, if it still is what was indexed."""
    try:
        if shard := shard_of(item.path):
            _check(os.stat(shard), item, with_size=False)
        value = content(item)
        if isinstance(value, Path):
            _check(os.stat(value), item, with_size=True)
        elif scheme(item.path):
            raise Refused(404, f"item {item.id}: kept at an address, which is not fetched")
        return value
    except OSError as error:
        raise Refused(404, f"item {item.id}: cannot be opened now ({error.strerror or error})") from error
    except Refused:
        raise
    except UserError as error:
        raise Refused(404, str(error)) from error


def _file(path: Path, item: Item, kind: str) -> Body:
    """An open file, compared with the index again: what is sent is what was compared."""
    try:
        # O_NONBLOCK: a pipe that has taken the place of the file would be waited for without end.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise Refused(404, f"item {item.id}: cannot be opened now ({error.strerror or error})") from error
    file = os.fdopen(descriptor, "rb")
    try:
        _check(os.fstat(descriptor), item, with_size=True)
    except Refused:
        file.close()
        raise
    return Body(file, item.size, kind)


def _check(status: os.stat_result, item: Item, *, with_size: bool) -> None:
    same = stat.S_ISREG(status.st_mode) and status.st_mtime_ns == item.mtime_ns
    if not same or (with_size and status.st_size != item.size):
        raise Refused(410, f"item {item.id}: not the file any more that was indexed; run onepeace index update")


def _held(data: bytes, kind: str) -> Body:
    return Body(io.BytesIO(data), len(data), kind)


def _wav(value: Path | bytes | str) -> bytes:
    import soundfile

    processor = AudioProcessor()
    with DECODERS:
        samples = processor.load(value, seconds=CONVERTED_SECONDS).numpy()
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, processor.sample_rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()
