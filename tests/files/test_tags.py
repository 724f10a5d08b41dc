"""What cameras, programs and people wrote into files is read, and nothing of damaged data."""

import numpy as np
import pytest
import soundfile
from PIL import ExifTags, Image

from onepeace.files.metadata import describe_media
from onepeace.files.tags import tags_of_container

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
    "keywords": ["sun", "beach"],
    "latitude": -33.865,
    "longitude": 151.21,
}


def exif():
    data = Image.Exif()
    data[ExifTags.Base.Make] = "FUJIFILM"
    data[ExifTags.Base.Model] = "X100V\0 "
    data[ExifTags.Base.Rating] = 2
    data[ExifTags.Base.XPKeywords] = "sun;beach".encode("utf-16-le")
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
    assert tags_of_picture(form, exif=exif()) == TAGS_OF_EXIF


def test_xmp_takes_precedence_over_exif(tags_of_picture):
    assert tags_of_picture(exif=exif(), xmp=XMP.encode()) == TAGS_OF_EXIF | TAGS_OF_XMP


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
    assert tags_of_picture(exif=exif(), xmp=xmp) == TAGS_OF_EXIF


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


@pytest.mark.parametrize(
    "form",
    [
        "wav",
        "flac",
        "ogg",
        "mp3",
    ],
)
def test_tags_of_a_sound_that_soundfile_reads(form, tmp_path):
    path = tmp_path / f"a.{form}"
    with soundfile.SoundFile(path, "w", 16000, 1) as sound:
        sound.title = "Für Elise"
        sound.artist = "Ann"
        sound.write(np.zeros(1600, np.float32))

    assert describe_media(path, "audio").tags == {"title": "Für Elise", "artist": "Ann"}


def test_tags_of_a_sound_that_pyav_reads(tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "a.m4a"
    with av.open(path, "w") as container:
        container.metadata.update({"title": "Hey", "album": "One", "genre": "Jazz", "keywords": "slow, piano"})
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))

    tags = describe_media(path, "audio").tags

    assert tags == {
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
        ("Munich", {}),
    ],
)
def test_position_of_a_video(position, degrees):
    assert tags_of_container({"com.apple.quicktime.location.ISO6709": position}) == degrees
