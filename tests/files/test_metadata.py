"""Size, length and date of files, and nothing but emptiness of broken ones."""

import sys
from datetime import datetime, timezone

import numpy as np
import pytest
import soundfile
from PIL import Image
from support.media import H264, SCENES, SECONDS, SOUND, dng, media

from onepeace.files.metadata import Description, describe_media

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


@pytest.mark.parametrize("modality", ["audio", "text"])
def test_picture_says_nothing_as_something_else(modality, tmp_path):
    save_jpeg(tmp_path / "photo", exif({TAKEN: EXIF_DATE}))
    assert describe_media(tmp_path / "photo", modality) == Description()


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


def test_sound_without_samples_has_no_length(tmp_path):
    soundfile.write(tmp_path / "none.wav", np.zeros(0, np.float32), 16000)
    assert describe_media(tmp_path / "none.wav", "audio") == Description()


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


def test_video_without_pictures_has_the_length_of_its_sound():
    pytest.importorskip("av")
    description = describe_media(media("sound.mp4", SOUND, "-c:a aac"), "video")

    assert description == Description(duration=pytest.approx(SECONDS, abs=0.1))


# Broken files

MODALITIES = ["image", "audio", "video", "text"]


def video_content():
    return media("a.mp4", WITH_SOUND).read_bytes()


def half_a_video():
    content = video_content()
    return content[: len(content) // 2]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("ending", ["", ".dng", ".wav"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: b"",
        lambda: b"hello " * 100,
        lambda: bytes(5000),
        half_a_video,
        lambda: video_content()[:40],
        lambda: b"RIFF\x24\0\0\0WAVEfmt ",
        lambda: b"II*\0\x08\0\0\0\xff\xff" + bytes(range(256)),
    ],
    ids=[
        "empty",
        "text",
        "zeros",
        "half a video",
        "start of a video",
        "start of a sound",
        "start of a raw picture",
    ],
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


def test_missing_package_gives_an_empty_description(tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    path.write_bytes(video_content())
    monkeypatch.setitem(sys.modules, "av", None)

    assert describe_media(path, "video") == Description()
