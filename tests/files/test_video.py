"""Pictures of videos: which, when, upright, and of files that are none; the videos are made by ffmpeg."""

import io
import sys

import numpy as np
import pytest
from PIL import Image
from support.media import H264, SCENES, SOUND, ffmpeg, media

from onepeace.errors import UserError
from onepeace.files import container, video
from onepeace.files.video import frame_at

pytest.importorskip("av")

VP9 = ("-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-g", "5")
KINDS = {
    "a.mp4": H264,
    "a.mov": (*H264, "-bf", "2"),
    "a.mkv": H264,
    "a.webm": ("-c:v", "libvpx", "-deadline", "realtime"),
    "a.avi": ("-c:v", "mjpeg"),
    "a.3gp": ("-c:v", "h263", "-s", "176x144"),
    "a.wmv": ("-c:v", "wmv2"),
}


def frames(path, every=10.0, change=0.35, step=1.0):
    return video.frames(path, every=every, change=change, step=step, stretch=1.5)


def times(path, **options) -> list[float]:
    return [frame.time for frame in frames(path, **options)]


@pytest.mark.parametrize("name", KINDS)
def test_first_picture_of_every_scene_is_found(name):
    """Key frames lie half a second apart, so that each is found at most half a second late."""
    path = media(name, *SCENES, *KINDS[name], "-g", "5")
    found = list(frames(path))
    assert [frame.time for frame in found] == pytest.approx([0, 2, 4], abs=0.51)
    assert found[0].time < 0.05
    expected = ffmpeg("-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    width, height = found[0].image.size
    assert (width, height) == ((176, 144) if name == "a.3gp" else (160, 120))
    first = np.frombuffer(expected[: width * height * 3], np.uint8).reshape(height, width, 3)
    assert np.abs(np.asarray(found[0].image).astype(int) - first).mean() < 2
    navy = np.asarray(found[2].image)
    assert navy.reshape(-1, 3).mean(0) == pytest.approx((0, 0, 128), abs=12)


def same(image, other) -> bool:
    return image.size == other.size and np.abs(np.asarray(image).astype(int) - np.asarray(other)).mean() < 1


@pytest.mark.parametrize("name", KINDS)
def test_picture_of_a_second_is_that_which_was_found_there(name):
    path = media(name, *SCENES, *KINDS[name], "-g", "50")
    found = list(frames(path, every=1))
    assert len(found) >= 5
    for frame in found[::-1]:
        again = frame_at(path, round(frame.time, 3))
        assert again.time == pytest.approx(frame.time, abs=1e-6)
        assert same(again.image, frame.image)
    first, last = frame_at(path.read_bytes(), 0.0), frame_at(path, 1e6)
    assert same(first.image, found[0].image)
    assert last.time > 5
    assert np.asarray(last.image).reshape(-1, 3).mean(0) == pytest.approx((0, 0, 128), abs=12)
    assert frame_at(path, 3.99).time < frame_at(path, 4.2).time <= 4.2


def test_picture_of_a_second_of_what_cannot_be_sought():
    streamed = media("streamed.webm", *SCENES, *KINDS["a.webm"], "-live", "1", "-output_ts_offset", "5000")
    assert frame_at(streamed, 3.05).time == pytest.approx(3.0, abs=0.01)
    with pytest.raises(UserError, match=r"sound\.m4a: there are no pictures in it that can be decoded"):
        frame_at(media("sound.m4a", *SOUND, "-c:a", "aac"), 1.0)
    pieces = media("pieces.mp4", *SCENES, *H264, "-movflags", "frag_keyframe+empty_moov").read_bytes()
    with pytest.raises(UserError, match="no picture in it can be decoded"):
        frame_at(pieces[: pieces.index(b"moof") - 4], 1.0)


def test_a_scene_that_does_not_change_is_shown_every_few_seconds():
    path = media("still.mp4", "-f", "lavfi", "-i", "color=navy:d=25:s=64x48:r=4", *H264, "-g", "4")
    assert times(path) == [0, 10, 20]
    assert times(path, every=3) == [0, 3, 6, 9, 12, 15, 18, 21, 24]
    assert times(path, every=100) == [0]
    assert times(path, every=100, change=-1) == list(range(25)), "never two within a second"
    assert times(path, every=100, change=-1, step=6) == [0, 6, 12, 18, 24]
    for every in (0, -1, float("nan"), float("inf")):
        with pytest.raises(UserError, match=r"still\.mp4: every must be positive seconds"):
            times(path, every=every)


def test_between_distant_key_frames_everything_is_decoded(monkeypatch):
    """And where they are close, nothing but them."""
    scenes = "smptebars=d=9:s=64x48:r=5,setsar=1[a];color=navy:d=21:s=64x48:r=5,setsar=1[b];[a][b]concat"
    source = ("-f", "lavfi", "-i", scenes)
    far = media("far.mp4", *source, *H264, "-g", "1000", "-sc_threshold", "0")
    near = media("near.mp4", *source, *H264, "-g", "15", "-sc_threshold", "0")
    looked = []
    monkeypatch.setattr(
        video, "_colours", lambda frame, original=video._colours: looked.append(frame.time) or original(frame)
    )
    assert times(far) == pytest.approx([0, 9, 19, 29], abs=0.41)
    assert 25 <= len(looked) <= 31
    assert times(far, change=-1, step=6) == pytest.approx([0, 6, 12, 18, 24], abs=0.1)
    looked.clear()
    assert times(near) == [0, 9, 21]
    assert looked == list(range(0, 30, 3))
    looked.clear()
    assert max(np.diff(times(near, every=1.5))) < 2.5
    assert len(looked) >= 25
    monkeypatch.setattr(video, "HELD_BYTES", 10)
    looked.clear()
    assert times(near) == pytest.approx([0, 9, 19, 29], abs=0.41)
    assert len(looked) >= 25


@pytest.mark.parametrize("degrees", [90, 180])
def test_rotation_is_honoured(degrees):
    upright = media("upright.mp4", *SCENES, *H264)
    path = media(f"turned{degrees}.mp4", "-display_rotation", str(degrees), "-i", str(upright), "-c", "copy")
    expected = Image.open(io.BytesIO(ffmpeg("-i", path, "-frames:v", "1", "-f", "image2", "-c:v", "png", "-")))
    image = next(frames(path)).image
    assert image.size == expected.size == ((120, 160) if degrees != 180 else (160, 120))
    assert np.abs(np.asarray(image).astype(int) - np.asarray(expected.convert("RGB"))).mean() < 1


def test_only_what_is_asked_for_is_decoded():
    found = frames(media("a.mp4", *SCENES, *H264, "-g", "5"))
    assert next(found).time == 0
    found.close()
    assert list(found) == []


def test_file_without_pictures_is_an_error(tmp_path):
    cover = tmp_path / "cover.png"
    Image.new("RGB", (64, 64)).save(cover)
    album = media("album.m4a", *SOUND, "-i", str(cover), "-map", "0", "-map", "1", "-c:a", "aac", "-c:v", "png",
                  "-disposition:v", "attached_pic")  # fmt: skip
    for path in (album, media("sound.m4a", *SOUND, "-c:a", "aac")):
        with pytest.raises(UserError, match=r"\.m4a: there are no pictures in it that can be decoded"):
            times(path)
    whole = media("a.mp4", *SCENES, *H264, "-g", "5").read_bytes()
    pieces = media("pieces.mp4", *SCENES, *H264, "-movflags", "frag_keyframe+empty_moov").read_bytes()
    path = tmp_path / "broken.mp4"
    for content, message in (
        (b"", r"the file is empty \(0 bytes\)"),
        (b"hello " * 100, "not a sound or video of a known format, or damaged$"),
        (b"ffconcat version 1.0\nfile cover.png\n", "not a sound or video of a known format, or damaged$"),
        (whole[: len(whole) // 2], "not a sound or video of a known format, or damaged$"),
        (pieces[: pieces.index(b"moof") - 4], "no picture in it can be decoded"),
        (whole.replace(b"moov", b"none"), "not a sound or video of a known format, or damaged$"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"broken\.mp4: {message}") as caught:
            times(path)
        assert "\n" not in str(caught.value)
        assert "object at 0x" not in str(caught.value)
    with pytest.raises(UserError, match=r"gone\.mp4: no such file"):
        times(tmp_path / "gone.mp4")
    with pytest.raises(UserError, match="is a folder"):
        times(tmp_path)


def test_damaged_pictures_are_an_error_after_those_before(tmp_path):
    whole = bytearray(media("vp9.mp4", *SCENES, *VP9, "-movflags", "+faststart").read_bytes())
    middle = whole.index(b"mdat") + (len(whole) - whole.index(b"mdat")) // 2
    whole[middle:] = bytes(len(whole) - middle)
    path = tmp_path / "half.mp4"
    path.write_bytes(whole)
    found = frames(path)
    assert next(found).time == 0
    with pytest.raises(UserError, match=r"half\.mp4: the pictures cannot be decoded"):
        list(found)


def test_huge_picture_is_refused_before_it_is_decoded(monkeypatch):
    path = media("a.mp4", *SCENES, *H264, "-g", "5")
    monkeypatch.setattr(video, "MAX_PIXELS", 160 * 120 - 1)
    with pytest.raises(UserError, match=r"a\.mp4: 160 x 120 pixels are above the limit of 19199"):
        times(path)
    monkeypatch.undo()
    monkeypatch.setattr(container, "LIMITS", {"max_pixels": "100"})  # ffmpeg's own, for those that grow on the way
    with pytest.raises(UserError, match=r"a\.mp4: .*cannot be decoded"):
        times(path)


def test_missing_pyav_is_named_with_its_extra(tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"\0\0\0\x18ftypmp42")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r'a\.mp4: needs av: pip install "onepeace\[media\]"$'):
        times(path)
