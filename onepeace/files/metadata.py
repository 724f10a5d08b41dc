"""Size, length, date and tags of a picture, sound or video, from its headers alone.

Tags are what cameras, programs and people wrote into it; Pillow (EXIF, IPTC and XMP), soundfile and PyAV read them. Of
these names each file has some:

    camera, make, lens, title, description, artist, album, genre    texts
    keywords, place      lists of texts; the latter of the location, city, state and country
    rating               -1 (rejected), or 1 to 5
    latitude, longitude  degrees, north and east
"""

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from onepeace.errors import need
from onepeace.files.container import choose, counted_duration, declared_duration, open_container
from onepeace.files.picture import TIFF, is_raw, open_picture, orientation
from onepeace.files.source import describe, is_open_file, suffix

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
LONGEST = 2000
"""Maximum characters of a text."""
MOST = 200
"""Maximum number of keywords."""
LISTS = ("keywords", "place")
POSITION = re.compile(r"([+-]\d{1,2}(?:\.\d+)?)([+-]\d{1,3}(?:\.\d+)?)")
"""Latitude and longitude in degrees (ISO 6709), as phones write them into videos."""
XMP_NAMES = {
    "title": "title", "description": "description", "subject": "keywords", "creator": "artist", "Rating": "rating",
    "Make": "make", "Model": "camera", "Lens": "lens", "LensModel": "lens",
    "Location": "place", "City": "place", "State": "place", "Country": "place",
}  # fmt: skip
IPTC_NAMES = {
    (2, 5): "title", (2, 25): "keywords", (2, 80): "artist", (2, 120): "description",
    (2, 92): "place", (2, 90): "place", (2, 95): "place", (2, 101): "place",
}  # fmt: skip
"""Tags by record and number (IIM 4.2)."""
CONTAINER_NAMES = {
    "title": "title", "artist": "artist", "album": "album", "genre": "genre", "keywords": "keywords",
    "comment": "description", "description": "description", "make": "make", "model": "camera",
    "com.apple.quicktime.make": "make", "com.apple.quicktime.model": "camera",
    "location": "position", "com.apple.quicktime.location.iso6709": "position",
}  # fmt: skip
"""Tags by the names of soundfile and ffmpeg, in small letters."""


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
    """Tags that cameras, programs and people wrote into it."""


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
    tags = _readable(image, lambda image: image.getexif().get_ifd(EXIF_IFD), lambda image: image.getexif())
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


def tags_of_picture(image: "Image.Image") -> dict[str, Any]:
    """Tags of an opened picture; those that people write with programs (XMP, then IPTC) before those of its camera."""
    return _readable(image, _tags_of_xmp, _tags_of_iptc, lambda image: tags_of_exif(image.getexif()))


def tags_of_exif(exif: "Image.Exif") -> dict[str, Any]:
    """Tags of EXIF data."""
    return _readable(exif, lambda exif: _texts_of_exif(exif.get_ifd(EXIF_IFD)), _texts_of_exif, _position_of_exif)


def _readable(source: Any, *readers: Callable[[Any], Mapping[Any, Any]]) -> dict[Any, Any]:
    """What several readers find in a picture, which may contradict; the first take precedence. Each stands alone: one
    whose part is damaged finds nothing."""
    found: dict[Any, Any] = {}
    for reader in readers:
        with suppress(Exception):  # many types of error, and the picture is fine
            found = {**reader(source), **found}
    return found


def _texts_of_exif(tags: Mapping[int, Any]) -> dict[str, Any]:
    from PIL.ExifTags import Base

    texts = {
        "make": tags.get(Base.Make),
        "camera": tags.get(Base.Model),
        "lens": tags.get(Base.LensModel),
        "artist": tags.get(Base.Artist),
        "description": tags.get(Base.ImageDescription),
        "rating": tags.get(Base.Rating),
    }
    return _tidy(texts.items())


def tags_of_container(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Tags of a sound or video, by the metadata of soundfile or ffmpeg."""
    pairs = []
    position = {}
    for key, value in metadata.items():
        name = CONTAINER_NAMES.get(key.lower())
        if name == "position":
            match = POSITION.match(value)
            position = _position(*map(float, match.groups())) if match else {}
        elif name == "keywords":
            pairs += [(name, word) for word in re.split("[;,]", value)]
        elif name is not None:
            pairs.append((name, value))
    return _tidy(pairs) | position


def _tags_of_xmp(image: "Image.Image") -> dict[str, Any]:
    xmp = image.getxmp()
    descriptions = (xmp.get("xmpmeta") or xmp["xapmeta"])["RDF"]["Description"]
    if isinstance(descriptions, dict):
        descriptions = [descriptions]
    pairs = []
    for description in descriptions:
        for key, name in XMP_NAMES.items():
            pairs += [(name, text) for text in _texts_of_xmp(description.get(key))]
    return _tidy(pairs)


def _texts_of_xmp(value: Any) -> list[str]:
    """Texts of a value, or of a list of values or of languages."""
    if isinstance(value, str):
        return [value]
    texts = []
    if isinstance(value, dict):
        value = [part for key, part in value.items() if key not in ("lang", "parseType")]
    for part in value or ():
        texts += _texts_of_xmp(part)
    return texts


def _tags_of_iptc(image: "Image.Image") -> dict[str, Any]:
    from PIL.ImageFile import ImageFile
    from PIL.IptcImagePlugin import getiptcinfo

    info = (isinstance(image, ImageFile) and getiptcinfo(image)) or {}
    pairs = []
    for key, name in IPTC_NAMES.items():
        values = info.get(key, [])
        for value in values if isinstance(values, list) else [values]:
            pairs.append((name, _decoded(value)))
    return _tidy(pairs)


def _decoded(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _position_of_exif(exif: "Image.Exif") -> dict[str, float]:
    from PIL.ExifTags import GPS, IFD

    degrees = []
    tags = exif.get_ifd(IFD.GPSInfo)
    for value, reference, negative in (
        (GPS.GPSLatitude, GPS.GPSLatitudeRef, "S"),
        (GPS.GPSLongitude, GPS.GPSLongitudeRef, "W"),
    ):
        if value not in tags:
            return {}
        whole, minutes, seconds = map(float, tags[value])
        sign = -1 if str(tags.get(reference, "")).strip("\0 ") == negative else 1
        degrees.append(sign * (whole + minutes / 60 + seconds / 3600))
    return _position(*degrees)


def _position(latitude: float, longitude: float) -> dict[str, float]:
    """A position; empty if it is not valid, or is 0, 0, which devices write that do not know theirs."""
    is_valid = math.isfinite(latitude + longitude) and abs(latitude) <= 90 and abs(longitude) <= 180
    if not is_valid or latitude == longitude == 0:
        return {}
    return {"latitude": round(latitude, 7), "longitude": round(longitude, 7)}


def _tidy(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Tags of names and values: of several values of a text, the first."""
    tags: dict[str, Any] = {}
    for name, value in pairs:
        text = " ".join(str(value or "").replace("\0", " ").split())[:LONGEST]
        if not text:
            continue
        if name in LISTS:
            texts = tags.setdefault(name, [])
            if text not in texts and len(texts) < MOST:
                texts.append(text)
        elif name == "rating":
            tags |= _rating(text)
        else:
            tags.setdefault(name, text)
    return tags


def _rating(text: str) -> dict[str, int]:
    """A rating of -1 (rejected) or 1 to 5 stars; empty for 0, which means no rating, and for anything else."""
    try:
        stars = round(float(text))
    except (ValueError, OverflowError):
        return {}
    return {"rating": stars} if stars in (-1, 1, 2, 3, 4, 5) else {}
