"""Tags that cameras, programs and people wrote into pictures, sounds and videos.

Read by Pillow (EXIF, IPTC and XMP), soundfile and PyAV. The names of tags, of which each file has some:

    camera, make, lens, title, description, artist, album, genre    texts
    keywords, place      lists of texts; the latter of the location, city, state and country
    rating               -1 (rejected), or 1 to 5
    latitude, longitude  degrees, north and east
"""

import math
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

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


def tags_of_picture(image: "Image.Image") -> dict[str, Any]:
    """Tags of an opened picture; those that people write with programs (XMP, then IPTC) before those of its camera."""
    tags: dict[str, Any] = {}
    for reader in (_tags_of_xmp, _tags_of_iptc, _tags_of_picture_exif):
        with suppress(Exception):  # damaged; many types of error, and the picture is fine
            tags = reader(image) | tags
    return tags


def tags_of_exif(exif: "Image.Exif") -> dict[str, Any]:
    """Tags of EXIF data."""
    from PIL.ExifTags import IFD, Base

    camera = {**exif, **exif.get_ifd(IFD.Exif)}
    texts = {
        "make": camera.get(Base.Make),
        "camera": camera.get(Base.Model),
        "lens": camera.get(Base.LensModel),
        "artist": camera.get(Base.Artist),
        "description": camera.get(Base.ImageDescription),
        "rating": camera.get(Base.Rating),
        "title": _of_windows(camera.get(Base.XPTitle)),
    }
    keywords = [("keywords", word) for word in _of_windows(camera.get(Base.XPKeywords)).split(";")]
    return _tidy([*texts.items(), *keywords]) | _position_of_exif(exif)


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


def _tags_of_picture_exif(image: "Image.Image") -> dict[str, Any]:
    return tags_of_exif(image.getexif())


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


def _of_windows(value: Any) -> str:
    """Text that Windows wrote, in UTF-16; "" for none."""
    return value.decode("utf-16-le", "replace") if isinstance(value, bytes) else ""


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
