"""Size, length and date of files, and nothing but emptiness of broken ones."""

from datetime import datetime, timezone

import numpy as np
import pytest
import soundfile
from PIL import ExifTags, Image
from support.media import H264, SCENES, SECONDS, SOUND, dng, media

from onepeace.files.metadata import Description, describe_media, tags_of_container

EXIF_DATE = "2021:05:06 07:08:09"
LOCAL = datetime(2021, 5, 6, 7, 8, 9).timestamp()
TWO_HOURS_EAST = datetime(2021, 5, 6, 5, 8, 9, tzinfo=timezone.utc).timestamp()
TAKEN = 0x9003
SCANNED = 0x9004
ZONE_TAKEN = 0x9011
ZONE_SCANNED = 0x9012

# Pictures


def exif(tags) -> Image.Exif:
    """EXIF data with these tags of its own directory, and an orientation on the side."""
    data = Image.Exif()
    data[0x0112] = 6
    data.get_ifd(0x8769).update(tags)
    return data


def save_jpeg(path, exif):
    Image.new("RGB", (60, 40), "red").save(path, "JPEG", exif=exif)


def save_heic(path, exif):
    heif = pytest.importorskip("pillow_heif").from_pillow(Image.new("RGB", (60, 40), "red"))
    heif.info["exif"] = exif.tobytes()
    heif.save(path)


@pytest.mark.parametrize(
    ("tags", "date"),
    [
        ({TAKEN: EXIF_DATE}, LOCAL),
        ({TAKEN: EXIF_DATE, ZONE_TAKEN: "+02:00"}, TWO_HOURS_EAST),
        ({TAKEN: EXIF_DATE + "\0", ZONE_TAKEN: "   :  "}, LOCAL),
        (
            {TAKEN: "0000:00:00 00:00:00", SCANNED: EXIF_DATE, ZONE_SCANNED: "+02:00"},
            TWO_HOURS_EAST,
        ),
        ({TAKEN: "    :  :     :  :  "}, None),
        ({}, None),
    ],
)
@pytest.mark.parametrize("save", [save_jpeg, save_heic])
def test_size_and_date_of_a_picture(save, tags, date, tmp_path):
    """A HEIC picture is turned by its own tag, which its writer made of the one in the EXIF data."""
    path = tmp_path / "photo"
    save(path, exif(tags))

    assert describe_media(path, "image") == Description(40, 60, None, date)
    assert describe_media(str(path), "image") == Description(40, 60, None, date)


@pytest.mark.parametrize(
    ("orientation", "size", "written", "date"),
    [
        (1, (120, 80), EXIF_DATE, LOCAL),
        (6, (80, 120), EXIF_DATE, LOCAL),
        (1, (120, 80), "", None),
    ],
)
def test_size_and_date_of_a_raw_picture(orientation, size, written, date, tmp_path):
    pytest.importorskip("rawpy")
    path = tmp_path / "a.dng"
    path.write_bytes(dng(np.zeros((80, 120), np.uint16), orientation=orientation, date=written))

    camera = {"make": "Maker", "camera": "Model"}
    assert describe_media(path, "image") == Description(*size, None, date, camera)


# Sounds and videos

WITH_SOUND = f"{SCENES} {SOUND} {H264} -c:a aac"
CREATED = "-metadata creation_time=2021-05-06T05:08:09Z"
LIVE = "-live 1"
"""Nobody knows how long it will become."""


def test_length_of_a_sound_that_soundfile_reads(samples):
    for path in sorted((samples / "sounds").iterdir())[:3]:
        assert describe_media(path, "audio").duration == pytest.approx(soundfile.info(str(path)).duration)


@pytest.mark.parametrize(
    ("name", "options", "date"),
    [
        ("a.m4a", "-c:a aac", None),
        ("dated.m4a", f"-c:a aac {CREATED}", TWO_HOURS_EAST),
        ("a.aac", "-c:a aac", None),
        ("recorded.webm", f"-c:a libopus -f webm {LIVE}", None),
    ],
)
def test_length_and_date_of_a_sound_that_pyav_reads(name, options, date):
    pytest.importorskip("av")
    description = describe_media(media(name, SOUND, options), "audio")

    assert description == Description(duration=pytest.approx(SECONDS, abs=0.1), date=date)


OF_A_PHONE = (
    "-movflags use_metadata_tags -metadata creation_time=2020-01-01T00:00:00Z "
    "-metadata com.apple.quicktime.creationdate=2021-05-06T07:08:09+0200"
)


@pytest.mark.parametrize(
    ("name", "options", "date"),
    [
        ("dated.mp4", CREATED, TWO_HOURS_EAST),
        ("phone.mov", OF_A_PHONE, TWO_HOURS_EAST),
        ("unset.mkv", "-metadata creation_time=1970-01-01T00:00:00Z", None),
        ("recorded.mkv", LIVE, None),
    ],
)
def test_size_length_and_date_of_a_video(name, options, date):
    pytest.importorskip("av")
    path = media(name, WITH_SOUND, options)

    description = describe_media(path, "video")

    assert description.width == 160
    assert description.height == 120
    assert description.date == date
    assert description.duration == pytest.approx(6.0, abs=0.1)
    sound_seconds = 6.0 if name == "unset.mkv" else SECONDS  # Matroska may only say how long the whole is
    assert describe_media(path, "audio").duration == pytest.approx(sound_seconds, abs=0.1)


def test_size_of_a_turned_video():
    pytest.importorskip("av")
    path = media("upright.mp4", SCENES, H264)
    turned = media("turned.mp4", f"-display_rotation 90 -i '{path}' -c copy")

    description = describe_media(turned, "video")

    assert description.width == 120
    assert description.height == 160


# Broken files

MODALITIES = ["image", "audio", "video", "text"]


def beginning_of_a_video(share):
    content = media("a.mp4", WITH_SOUND).read_bytes()
    return content[: int(len(content) * share)]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("ending", ["", ".dng", ".wav"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: b"",
        lambda: b"hello " * 100,
        lambda: beginning_of_a_video(0.5),
        lambda: b"RIFF\x24\0\0\0WAVEfmt ",
        lambda: b"II*\0\x08\0\0\0\xff\xff" + bytes(range(256)),
    ],
    ids=["empty", "text", "half a video", "start of a sound", "start of a raw picture"],
)
def test_broken_file_has_an_empty_description(make, ending, tmp_path):
    path = tmp_path / f"broken{ending}"
    path.write_bytes(make())

    for modality in MODALITIES:
        assert describe_media(path, modality) == Description(), modality


@pytest.mark.parametrize("modality", MODALITIES)
def test_folder_and_missing_file_have_an_empty_description(modality, tmp_path):
    assert describe_media(tmp_path, modality) == Description()
    assert describe_media(tmp_path / "gone", modality) == Description()


XMP = """<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"
  xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:xmp="http://ns.adobe.com/xap/1.0/"
  xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/">
<rdf:Description xmp:Rating="4" photoshop:City="Zürich">
<dc:title><rdf:Alt><rdf:li xml:lang="x-default">Am See</rdf:li><rdf:li xml:lang="en">Lake</rdf:li></rdf:Alt></dc:title>
<dc:subject><rdf:Bag><rdf:li>beach</rdf:li><rdf:li>Rome, Italy</rdf:li></rdf:Bag></dc:subject>
<dc:creator><rdf:Seq><rdf:li>Ann</rdf:li></rdf:Seq></dc:creator></rdf:Description></rdf:RDF></x:xmpmeta>"""
TAGS_OF_XMP = {
    "title": "Am See",
    "keywords": ["beach", "Rome, Italy"],
    "rating": 4,
    "artist": "Ann",
    "place": ["Zürich"],
}
TAGS_OF_EXIF = {
    "make": "FUJIFILM",
    "camera": "X100V",
    "lens": "23 mm F2",
    "rating": 2,
    "latitude": -33.865,
    "longitude": 151.21,
}


def tagged_exif():
    data = Image.Exif()
    data[ExifTags.Base.Make] = "FUJIFILM"
    data[ExifTags.Base.Model] = "X100V\0 "
    data[ExifTags.Base.Rating] = 2
    data.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.LensModel] = "23 mm F2"
    position = data.get_ifd(ExifTags.IFD.GPSInfo)
    position[ExifTags.GPS.GPSLatitudeRef] = "S"
    position[ExifTags.GPS.GPSLatitude] = (33, 51, 54)
    position[ExifTags.GPS.GPSLongitudeRef] = "E"
    position[ExifTags.GPS.GPSLongitude] = (151, 12, 36)
    return data


@pytest.fixture
def tags_of_picture(tmp_path):
    """The tags of a picture that Pillow saves with these options."""

    def tags(form="jpg", **options):
        path = tmp_path / f"a.{form}"
        Image.new("RGB", (8, 8)).save(path, **options)
        return describe_media(path, "image").tags

    return tags


@pytest.mark.parametrize("form", ["jpg", "png", "webp"])
def test_exif_becomes_tags(tags_of_picture, form):
    assert tags_of_picture(form, exif=tagged_exif()) == TAGS_OF_EXIF


@pytest.mark.parametrize("latitude", [(33, 51), (), (33, 51, 54, 0)])
def test_malformed_position_leaves_the_other_tags(tags_of_picture, latitude):
    data = tagged_exif()
    data.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] = latitude

    expected = {name: value for name, value in TAGS_OF_EXIF.items() if name not in ("latitude", "longitude")}
    assert tags_of_picture(exif=data) == expected


def test_xmp_takes_precedence_over_exif(tags_of_picture):
    assert tags_of_picture(exif=tagged_exif(), xmp=XMP.encode()) == TAGS_OF_EXIF | TAGS_OF_XMP


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "xmp",
    [
        b"<x",
        b"<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>",
        b"<a/>",
        b"<a>" * 5000,
        b"\xff\0",
    ],
)
def test_damaged_xmp_leaves_the_exif(tags_of_picture, xmp):
    assert tags_of_picture(exif=tagged_exif(), xmp=xmp) == TAGS_OF_EXIF


def iptc_record(number, text):
    return bytes([0x1C, 2, number]) + len(text).to_bytes(2, "big") + text


def with_segment(jpeg, content):
    """A JPEG with a segment of Photoshop behind its first two bytes."""
    segment = b"Photoshop 3.0\0" + content
    marker = b"\xff\xed" + (len(segment) + 2).to_bytes(2, "big")
    return jpeg[:2] + marker + segment + jpeg[2:]


def test_iptc_becomes_tags(tmp_path):
    records = [
        iptc_record(25, b"beach"),
        iptc_record(25, "Zürich".encode()),
        iptc_record(90, "Köln".encode("latin-1")),
    ]
    iptc = b"".join(records)
    padding = bytes(len(iptc) % 2)
    path = tmp_path / "a.jpg"
    Image.new("RGB", (8, 8)).save(path)
    block = b"8BIM\x04\x04\0\0" + len(iptc).to_bytes(4, "big") + iptc + padding
    path.write_bytes(with_segment(path.read_bytes(), block))

    assert describe_media(path, "image").tags == {
        "keywords": ["beach", "Zürich"],
        "place": ["Köln"],
    }


@pytest.mark.parametrize("form", ["wav", "flac", "ogg", "mp3"])
def test_tags_of_a_sound_that_soundfile_reads(form, tmp_path):
    path = tmp_path / f"a.{form}"
    with soundfile.SoundFile(path, "w", 16000, 1) as sound:
        sound.title = "Für Elise"
        sound.artist = "Ann"
        sound.write(np.zeros(1600, np.float32))

    assert describe_media(path, "audio").tags == {"title": "Für Elise", "artist": "Ann"}


def test_tags_of_a_sound_that_pyav_reads():
    pytest.importorskip("av")
    tags = "-metadata title=Hey -metadata album=One -metadata genre=Jazz -metadata keywords='slow, piano'"

    description = describe_media(media("tagged.m4a", SOUND, "-c:a aac", tags), "audio")

    assert description.tags == {
        "title": "Hey",
        "album": "One",
        "genre": "Jazz",
        "keywords": ["slow", "piano"],
    }


@pytest.mark.parametrize(
    ("position", "degrees"),
    [
        ("+48.1371+011.5754+519.000/", {"latitude": 48.1371, "longitude": 11.5754}),
        ("-33.8650+151.2100/", {"latitude": -33.865, "longitude": 151.21}),
        ("+00.0000+000.0000/", {}),
        ("+99.0000+000.0000/", {}),
    ],
)
def test_position_of_a_video(position, degrees):
    assert tags_of_container({"com.apple.quicktime.location.ISO6709": position}) == degrees
