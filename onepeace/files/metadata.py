"""Size, length, date and tags of a picture, sound or video, from its headers alone."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from onepeace.errors import need
from onepeace.files.container import choose, counted_duration, declared_duration, open_container
from onepeace.files.picture import TIFF, is_raw, open_picture, orientation
from onepeace.files.source import describe, is_open_file, suffix
from onepeace.files.tags import tags_of_container, tags_of_exif, tags_of_picture

if TYPE_CHECKING:
    from av.container import InputContainer
    from PIL import Image

EXIF_IFD = 0x8769
EXIF_DATES = ((0x9003, 0x9011), (0x9004, 0x9012), (0x0132, 0x9010))
"""Tags of when a picture was taken, scanned, changed, and of the time zones (EXIF 2.31, sections 4.6.4 and 4.6.5)."""
EXIF_FORMAT = "%Y:%m:%d %H:%M:%S"
MAX_SECONDS = 1e8
"""Three years; headers with a longer duration were written before the end was known."""


Source = str | os.PathLike[str] | BinaryIO
"""Path of a file, or a file that is open and can be read from its start again."""


@dataclass(frozen=True)
class Description:
    """Facts about a file; None where it does not contain them, or is damaged."""

    width: int | None = None
    height: int | None = None
    """Pixels of a picture or video, as it is shown upright."""
    duration: float | None = None
    """Seconds of a sound or video, above 0."""
    date: float | None = None
    """When it was taken or recorded, in seconds since 1970. Many cameras store no time zone; it is then assumed to be
    that of this computer."""
    tags: dict[str, Any] = field(default_factory=dict)
    """Tags that cameras, programs and people wrote into it, by the names of tags.py."""


def describe_media(source: Source, modality: str) -> Description:
    """Facts in the headers of a file on this machine or in memory, whose modality is "image", "audio", "video" or
    "text".

    Nothing is decoded, except a video's first picture for its orientation; a file whose header has no duration (AAC
    without a container, recordings of browsers) is read to its end. No error is raised: the description of a file that
    is gone, is damaged or needs a missing package is empty.
    """
    reader = {"image": _picture, "audio": _sound, "video": _video}.get(modality)
    try:
        return Description() if reader is None else reader(source)
    except Exception:  # damaged files raise many types of error; the reason is reported when the file is embedded
        return Description()


def _picture(source: Source) -> Description:
    with _opened(source) as file:
        head = file.read(64)
        file.seek(0)
        if is_raw(file, head, suffix(source)):
            return _raw_picture(file, head)
        with open_picture(file, describe(source), suffix(source)) as image:
            width, height = image.size
            if orientation(image) >= 5:
                width, height = height, width
            return Description(width, height, date=_exif_date(image), tags=tags_of_picture(image))


@contextmanager
def _opened(source: Source) -> Iterator[BinaryIO]:
    """Context of an open file at its start."""
    if is_open_file(source):
        source.seek(0)
        yield source
    else:
        with open(cast("str", source), "rb") as file:
            yield file


def _raw_picture(file: BinaryIO, head: bytes) -> Description:
    with need("rawpy", "media").imread(file) as raw:
        width = raw.sizes.iwidth
        height = raw.sizes.iheight
        if raw.sizes.flip in (5, 6):
            width, height = height, width
        taken = raw.other.timestamp.timestamp()
    return Description(width, height, date=taken if taken > 0 else None, tags=_raw_tags(file, head))


def _raw_tags(file: BinaryIO, head: bytes) -> dict[str, Any]:
    """Tags of a raw file of a camera whose format begins as a TIFF, as most do."""
    from PIL import Image

    exif = Image.Exif()
    try:
        if TIFF.match(head):
            file.seek(0)
            exif.load_from_fp(file)
        return tags_of_exif(exif)
    except Exception:  # damaged
        return {}


def _exif_date(image: "Image.Image") -> float | None:
    try:
        exif = image.getexif()
        tags = {**exif, **exif.get_ifd(EXIF_IFD)}
    except Exception:  # damaged EXIF data; the picture is fine
        return None
    for date_tag, zone_tag in EXIF_DATES:
        date = str(tags.get(date_tag, "")).strip("\0 ")[:19]
        zone = str(tags.get(zone_tag, "")).strip("\0 ")
        seconds = _seconds(f"{date} {zone}", f"{EXIF_FORMAT} %z")
        if seconds is None:
            seconds = _seconds(date, EXIF_FORMAT)
        if seconds is not None:
            return seconds
    return None


def _sound(source: Source) -> Description:
    import soundfile

    try:
        with _opened(source) as file, soundfile.SoundFile(file) as sound:
            seconds = sound.frames / sound.samplerate
            return Description(duration=_plausible(seconds), tags=tags_of_container(sound.copy_metadata()))
    except Exception:  # PyAV may read what soundfile does not
        with open_container(source, describe(source)) as container:
            stream = choose(container, "audio")
            if stream is None:
                return Description()
            seconds = declared_duration(container, stream) or counted_duration(container, stream)
            return Description(
                duration=_plausible(seconds),
                date=_recorded(container),
                tags=tags_of_container(container.metadata),
            )


def _video(source: Source) -> Description:
    with open_container(source, describe(source)) as container:
        stream = choose(container, "video")
        try:
            first = None if stream is None else next(container.decode(stream))
        except Exception:  # no picture can be decoded
            first = None
        if stream is None or first is None:
            return _sound(source)
        width = stream.width
        height = stream.height
        is_turned = round(first.rotation / 90) % 2 == 1
        if is_turned:
            width, height = height, width
        seconds = declared_duration(container) or counted_duration(container, stream)
        return Description(
            width=width,
            height=height,
            duration=_plausible(seconds),
            date=_recorded(container),
            tags=tags_of_container(container.metadata),
        )


def _recorded(container: "InputContainer") -> float | None:
    """When a video or sound was recorded, according to the camera or program."""
    for key in ("com.apple.quicktime.creationdate", "creation_time"):  # the first with the camera's time zone
        text = re.sub(r"\.\d+", "", container.metadata.get(key, ""))
        seconds = _seconds(text, "%Y-%m-%dT%H:%M:%S%z")
        if seconds is not None and seconds > 0:  # a clock that was never set is at 1904 or 1970
            return seconds
    return None


def _seconds(text: str, form: str) -> float | None:
    """A date as seconds since 1970, in the time zone of this computer if it has none; None if it is invalid."""
    try:
        return datetime.strptime(text, form).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def _plausible(seconds: float) -> float | None:
    return seconds if 0 < seconds < MAX_SECONDS else None
