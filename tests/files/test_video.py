"""Pictures of videos: which, when, upright, and of files that are none; the videos are made by ffmpeg."""

import io
import sys

import numpy as np
import pytest
from PIL import Image
from support.broken_files import assert_refused, write_content
from support.media import H264, SCENES, SOUND, ffmpeg, media

from onepeace.errors import UserError
from onepeace.files import container, video
from onepeace.files.container import open_container
from onepeace.files.video import frame_at

pytest.importorskip("av")

VP9 = "-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -g 5"
KINDS = {
    "a.mp4": H264,
    "a.mov": f"{H264} -bf 2",
    "a.mkv": H264,
    "a.webm": "-c:v libvpx -deadline realtime",
    "a.avi": "-c:v mjpeg",
    "a.3gp": "-c:v h263 -s 176x144",
    "a.wmv": "-c:v wmv2",
}
NAVY = (0, 0, 128)
"""The colour of the third scene."""


def frames(path, every=10.0, change=0.35, step=1.0):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video, "EVERY", every)
        patch.setattr(video, "CHANGE", change)
        patch.setattr(video, "STRETCH", 1.5)
        yield from video.frames(path, step=step)


def times(path, **options) -> list[float]:
    return [frame.time for frame in frames(path, **options)]


def mean_colour(image):
    return np.asarray(image).mean(axis=(0, 1))


def difference(image, expected) -> float:
    """The mean difference of the levels of two pictures of one size."""
    assert image.size == expected.size
    return np.abs(np.asarray(image).astype(int) - np.asarray(expected)).mean()


def first_picture(path) -> Image.Image:
    """The picture that ffmpeg shows first."""
    content = ffmpeg(f"-i '{path}' -frames:v 1 -f image2 -c:v png")
    return Image.open(io.BytesIO(content)).convert("RGB")


# Which pictures


@pytest.mark.parametrize("name", KINDS)
def test_first_picture_of_every_scene(name):
    """Key frames lie half a second apart, so that each is found at most half a second late."""
    path = media(name, SCENES, KINDS[name], "-g 5")

    first, second, third = frames(path)

    assert first.time < 0.05
    assert second.time == pytest.approx(2, abs=0.51)
    assert third.time == pytest.approx(4, abs=0.51)
    assert difference(first.image, first_picture(path)) < 2
    assert mean_colour(third.image) == pytest.approx(NAVY, abs=12)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0, 10, 20]),
        ({"every": 3}, range(0, 25, 3)),
        ({"every": 100}, [0]),
        ({"every": 100, "change": -1}, range(25)),  # never two within a second
        ({"every": 100, "change": -1, "step": 6}, range(0, 25, 6)),
    ],
)
def test_pictures_of_a_scene_that_does_not_change(options, expected):
    path = media("still.mp4", "-f lavfi -i color=navy:d=25:s=64x48:r=4", H264, "-g 4")
    assert times(path, **options) == list(expected)


@pytest.mark.parametrize("degrees", [90, 180])
def test_pictures_are_upright(degrees):
    upright = media("upright.mp4", SCENES, H264)
    path = media("turned.mp4", f"-display_rotation {degrees} -i '{upright}' -c copy")

    image = next(frames(path)).image

    assert image.size == {90: (120, 160), 180: (160, 120)}[degrees]
    assert difference(image, first_picture(path)) < 1


# What is decoded


@pytest.fixture
def examined(monkeypatch):
    """The times of the pictures that are decoded and compared."""
    seconds = []
    colour_histograms = video.colour_histograms

    def noted(frame):
        seconds.append(frame.time)
        return colour_histograms(frame)

    monkeypatch.setattr(video, "colour_histograms", noted)
    return seconds


def two_scenes(key_frames):
    """Nine seconds and 21, with a key frame every so many fifths of a second."""
    scenes = "smptebars=d=9:s=64x48:r=5,setsar=1[a];color=navy:d=21:s=64x48:r=5,setsar=1[b];[a][b]concat"
    return media("two.mp4", f"-f lavfi -i {scenes}", H264, f"-g {key_frames} -sc_threshold 0")


def test_between_distant_key_frames_everything_is_decoded(examined):
    assert times(two_scenes(1000)) == pytest.approx([0, 9, 19, 29], abs=0.41)
    assert 25 <= len(examined) <= 31


def test_of_close_key_frames_nothing_else_is_decoded(examined):
    assert times(two_scenes(15)) == [0, 9, 21]
    assert examined == list(range(0, 30, 3))


def test_close_key_frames_may_be_distant_for_a_short_interval(examined):
    assert max(np.diff(times(two_scenes(15), every=1.5))) < 2.5
    assert len(examined) >= 25


# The picture of a second


@pytest.mark.parametrize("name", ["a.mov", "a.mkv", "a.avi", "a.wmv"])
def test_picture_of_a_second_is_the_last_before_it(name):
    """Each of these is sought in another way."""
    path = media(name, SCENES, KINDS[name], "-g 50")
    pictures = list(frames(path, every=1))

    assert len(pictures) >= 5
    for picture in reversed(pictures):
        again = frame_at(path, round(picture.time, 3))
        assert again.time == pytest.approx(picture.time, abs=1e-6)
        assert difference(again.image, picture.image) < 1
    assert difference(frame_at(path.read_bytes(), 0.0).image, pictures[0].image) < 1
    assert frame_at(path, 3.99).time < frame_at(path, 4.2).time <= 4.2
    assert mean_colour(frame_at(path, 1e6).image) == pytest.approx(NAVY, abs=12)  # after the end


def test_picture_of_a_second_where_nothing_can_be_sought():
    path = media("streamed.webm", SCENES, KINDS["a.webm"], "-live 1 -output_ts_offset 5000")
    assert frame_at(path, 3.05).time == pytest.approx(3.0, abs=0.01)


# Files that are none


@pytest.fixture
def whole():
    """The content of a video."""
    return media("a.mp4", SCENES, H264, "-g 5").read_bytes()


@pytest.fixture
def header():
    """The content of a video up to its first picture."""
    content = media("pieces.mp4", SCENES, H264, "-movflags frag_keyframe+empty_moov").read_bytes()
    return content[: content.index(b"moof") - 4]


@pytest.fixture(params=[times, lambda path: frame_at(path, 1.0)], ids=["frames", "frame_at"])
def read(request):
    return request.param


def test_sound_is_no_video(read):
    assert_refused(read, media("sound.m4a", SOUND, "-c:a aac"), r"sound\.m4a: there are no pictures")


def test_cover_of_an_album_is_no_video(read, tmp_path):
    cover = tmp_path / "cover.png"
    Image.new("RGB", (64, 64)).save(cover)
    streams = f"{SOUND} -i '{cover}' -map 0 -map 1 -c:a aac -c:v png -disposition:v attached_pic"

    assert_refused(read, media("album.m4a", streams), r"album\.m4a: there are no pictures")


def test_video_without_pictures_is_an_error(read, header):
    assert_refused(read, header, "no picture in it can be decoded")


UNKNOWN = "not a sound or video of a known format"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"hello " * 100, UNKNOWN),
        (b"ffconcat version 1.0\nfile a.png\n", UNKNOWN),
    ],
)
def test_file_that_is_no_video_is_named(read, content, words, tmp_path):
    path = write_content(tmp_path / "broken.mp4", content)
    assert_refused(read, path, rf"broken\.mp4: .*{words}")


def test_video_without_its_index_is_an_error(read, whole):
    assert_refused(read, whole[: len(whole) // 2], UNKNOWN)
    assert_refused(read, whole.replace(b"moov", b"none"), UNKNOWN)


def test_damaged_pictures_are_an_error_after_those_before(tmp_path):
    content = bytearray(media("vp9.mp4", SCENES, VP9, "-movflags +faststart").read_bytes())
    middle = (content.index(b"mdat") + len(content)) // 2
    content[middle:] = bytes(len(content) - middle)
    path = write_content(tmp_path / "half.mp4", bytes(content))

    pictures = frames(path)

    assert next(pictures).time == 0
    assert_refused(list, pictures, r"half\.mp4: the pictures cannot be decoded")


def test_huge_picture_is_refused_before_it_is_decoded(read, whole, monkeypatch):
    monkeypatch.setattr(video, "MAX_PIXELS", 160 * 120 - 1)
    assert_refused(read, whole, "160 x 120 pixels .* 19199")


def test_picture_that_becomes_huge_is_refused(read, whole, monkeypatch):
    monkeypatch.setattr(container, "LIMITS", {"max_pixels": "100"})
    assert_refused(read, whole, "cannot be decoded")


def test_missing_pyav_is_named_with_its_extra(read, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    error = assert_refused(read, b"\0\0\0\x18ftypmp42", "needs av")
    assert error.package == "av"
    assert error.extra == "media"


def test_file_that_the_system_does_not_open_is_an_error(tmp_path):
    pytest.importorskip("av")
    with (
        pytest.raises(UserError, match=r"^a\.mp4: cannot be opened \(.+\)$"),
        open_container(tmp_path, "a.mp4"),
    ):
        pass
