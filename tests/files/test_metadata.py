"""Size, length and date of files, and nothing but emptiness of broken ones."""

import sys
from datetime import datetime, timezone

import numpy as np
import pytest
import soundfile
from PIL import Image
from support.media import H264, SCENES, SECONDS, SOUND, dng, media

from onepeace.files.metadata import Description, describe_media

LOCAL = datetime(2021, 5, 6, 7, 8, 9).timestamp()
TWO_HOURS_EAST = datetime(2021, 5, 6, 5, 8, 9, tzinfo=timezone.utc).timestamp()


def exif(**tags) -> Image.Exif:
    """EXIF data with these tags of its own directory, and an orientation on the side."""
    data = Image.Exif()
    data[0x0112] = 6
    data.get_ifd(0x8769).update({int(key[1:], 16): value for key, value in tags.items()})
    return data


@pytest.mark.parametrize(
    ("tags", "date"),
    [
        ({"x9003": "2021:05:06 07:08:09"}, LOCAL),
        ({"x9003": "2021:05:06 07:08:09", "x9011": "+02:00"}, TWO_HOURS_EAST),
        ({"x9003": "2021:05:06 07:08:09\0", "x9011": "   :  "}, LOCAL),
        ({"x9003": "0000:00:00 00:00:00", "x9004": "2021:05:06 07:08:09", "x9012": "+02:00"}, TWO_HOURS_EAST),
        ({"x9003": "    :  :     :  :  "}, None),
        ({}, None),
    ],
)
@pytest.mark.parametrize("form", ["jpg", "heic"])
def test_picture(form, tags, date, tmp_path):
    path = tmp_path / f"photo.{form}"
    picture = Image.new("RGB", (60, 40), "red")
    if form == "heic":
        heif = pytest.importorskip("pillow_heif").from_pillow(picture)
        heif.info["exif"] = exif(**tags).tobytes()
        heif.save(path)
    else:
        picture.save(path, exif=exif(**tags))
    # A HEIC picture is turned by its own tag, which its writer made of the one in the EXIF data.
    assert describe_media(path, "image") == Description(40, 60, None, date)
    assert describe_media(str(path), "image") == describe_media(path, "image")
    assert describe_media(path, "audio") == describe_media(path, "text") == Description()


def test_raw_picture(tmp_path):
    pytest.importorskip("rawpy")
    path = tmp_path / "a.dng"
    camera = {"make": "Maker", "camera": "Model"}
    for orientation, size in ((1, (120, 80)), (6, (80, 120))):
        path.write_bytes(dng(np.zeros((80, 120), np.uint16), orientation=orientation, date="2021:05:06 07:08:09"))
        assert describe_media(path, "image") == Description(*size, None, LOCAL, camera)
    path.write_bytes(dng(np.zeros((80, 120), np.uint16)))
    assert describe_media(path, "image") == Description(120, 80, tags=camera)


def test_sound_of_soundfile(samples, tmp_path):
    for path in sorted((samples / "sounds").iterdir())[:3]:
        assert describe_media(path, "audio").duration == pytest.approx(soundfile.info(str(path)).duration)
    soundfile.write(tmp_path / "none.wav", np.zeros(0, np.float32), 16000)
    assert describe_media(tmp_path / "none.wav", "audio") == Description()


@pytest.mark.parametrize(
    ("name", "arguments", "date"),
    [
        ("a.m4a", ("-c:a", "aac"), None),
        ("dated.m4a", ("-c:a", "aac", "-metadata", "creation_time=2021-05-06T05:08:09.000000Z"), TWO_HOURS_EAST),
        ("a.aac", ("-c:a", "aac"), None),
        ("recorded.webm", ("-c:a", "libopus", "-f", "webm", "-live", "1"), None),
    ],
)
def test_sound_of_pyav(name, arguments, date):
    pytest.importorskip("av")
    found = describe_media(media(name, *SOUND, *arguments), "audio")
    assert found.duration == pytest.approx(SECONDS, abs=0.1)
    assert (found.width, found.height, found.date) == (None, None, date)


@pytest.mark.parametrize(
    ("name", "arguments", "date"),
    [
        ("dated.mp4", ("-metadata", "creation_time=2021-05-06T05:08:09Z"), TWO_HOURS_EAST),
        (
            "phone.mov",
            ("-movflags", "use_metadata_tags", "-metadata", "creation_time=2020-01-01T00:00:00Z",
             "-metadata", "com.apple.quicktime.creationdate=2021-05-06T07:08:09+0200"),
            TWO_HOURS_EAST,
        ),
        ("unset.mkv", ("-metadata", "creation_time=1970-01-01T00:00:00Z"), None),
        ("recorded.mkv", ("-live", "1"), None),
    ],
)  # fmt: skip
def test_video(name, arguments, date):
    pytest.importorskip("av")
    path = media(name, *SCENES, *SOUND, *H264, "-c:a", "aac", *arguments)
    found = describe_media(path, "video")
    assert (found.width, found.height, found.date) == (160, 120, date)
    assert found.duration == pytest.approx(6.0, abs=0.1)
    turned = media(f"turned-{name}", "-display_rotation", "90", "-i", str(path), "-c", "copy")
    assert describe_media(turned, "video").width == 120
    whole = name == "unset.mkv"  # Matroska may only say how long the whole is
    assert describe_media(path, "audio").duration == pytest.approx(6.0 if whole else SECONDS, abs=0.1)


def test_video_without_pictures_has_the_length_of_its_sound():
    pytest.importorskip("av")
    found = describe_media(media("sound.mp4", *SOUND, "-c:a", "aac"), "video")
    assert found == Description(duration=pytest.approx(SECONDS, abs=0.1))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_files_have_an_empty_description(tmp_path, monkeypatch):
    video = media("a.mp4", *SCENES, *SOUND, *H264, "-c:a", "aac").read_bytes()
    contents = {
        "empty": b"",
        "text": b"hello " * 100,
        "zeros": bytes(5000),
        "half": video[: len(video) // 2],
        "head": video[:40],
        "wave": b"RIFF\x24\0\0\0WAVEfmt ",
        "raw": b"II*\0\x08\0\0\0\xff\xff" + bytes(range(256)),
    }
    paths = [
        tmp_path,
        tmp_path / "gone",
        *(tmp_path / f"{name}{end}" for name in contents for end in ("", ".dng", ".wav")),
    ]
    for path in paths[2:]:
        path.write_bytes(contents[path.stem])
    for modality in ("image", "audio", "video", "text"):
        for path in paths:
            assert describe_media(path, modality) == Description(), (path, modality)
    whole = tmp_path / "a.mp4"
    whole.write_bytes(video)
    for package in ("av", "rawpy", "pillow_heif"):
        monkeypatch.setitem(sys.modules, package, None)
    assert describe_media(whole, "video") == Description()
