"""Videos as clips: which frames, that they are the pictures of those times, what is taken for a clip."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from support.broken_files import assert_refused
from support.clips import plain_video

from onepeace.errors import UserError
from onepeace.files import video
from onepeace.files.container import open_container
from onepeace.processors import VideoProcessor, guess, guessed, sniff


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """41 frames, ten a second; frame i is grey of level 5 i."""
    path = tmp_path_factory.mktemp("clips") / "a.mp4"
    path.write_bytes(plain_video(41, level=5))
    return path


def numbers(frames):
    """The numbers of the frames, by their levels."""
    return [round(np.asarray(frame.image).mean() / 5) for frame in frames]


@pytest.mark.parametrize(
    ("count", "stride", "place", "expected"),
    [
        (4, 8, 0.5, [8, 16, 24, 32]),
        (4, 8, 0.0, [0, 8, 16, 24]),
        (4, 8, 1.0, [16, 24, 32, 40]),
        (1, 8, 0.5, [20]),
        (5, 20, 0.5, [0, 10, 20, 30, 40]),  # longer than the video: spread over it
    ],
)
def test_clip_is_every_so_many_frames_of_a_part(path, count, stride, place, expected):
    frames = video.clip(path, count, stride, place)

    assert numbers(frames) == expected
    assert [frame.time for frame in frames] == pytest.approx([number / 10 for number in expected], abs=1e-3)
    assert numbers(video.clip(path.read_bytes(), count, stride, place)) == expected


def test_short_video_repeats_its_frames():
    assert numbers(video.clip(plain_video(3, level=5), 5, 8)) == [0, 0, 1, 2, 2]


def test_decoded_frames_are_pictures_of_the_models_size(path):
    processor = VideoProcessor(frames=3, stride=4, size=32)
    expected = [processor.finish(frame.image) for frame in video.clip(path, 3, 4)]

    sample = processor.decode(path)

    assert sample.shape == (3, 3, 32, 32)
    assert torch.equal(sample, torch.stack(expected))
    assert processor.collate([sample, sample])["pixels"].shape == (2, 3, 3, 32, 32)


def test_guess_takes_a_video_for_its_sound(path):
    assert "video" not in guessed()
    assert guess(path, ["image", "audio", "video"]) == "audio"
    assert guess(str(path), ["audio", "text"]) == "audio"
    assert sniff(path) == "audio"


def test_guess_takes_a_video_for_frames_where_nothing_else_is_read(path):
    for item in (path, str(path), path.read_bytes()):
        assert guess(item, ["video"]) == "video"
    with pytest.raises(UserError, match="looks like image"):
        guess("a.jpg", ["video"])


def test_item_that_is_no_video_is_an_error(tmp_path):
    pytest.importorskip("av")
    path = tmp_path / "a.mp4"
    path.write_bytes(b"no video")

    assert_refused(VideoProcessor().decode, path, r"a\.mp4: not a .*video")
    assert_refused(VideoProcessor().decode, 3, "path")


class Misled:
    """A container in which every seek leads to its last key frame."""

    def __init__(self, container, seeks):
        self.container = container
        self.seeks = seeks

    def __getattr__(self, name):
        return getattr(self.container, name)

    def seek(self, ticks, stream):
        self.seeks.append(ticks)
        self.container.seek(stream.duration, stream=stream)


def test_seek_that_leads_behind_the_clip_is_not_believed(path, monkeypatch):
    seeks = []

    @contextmanager
    def misled(file, name):
        with open_container(file, name) as container:
            yield Misled(container, seeks)

    monkeypatch.setattr(video, "open_container", misled)

    assert numbers(video.clip(path, 2, 4, 0.0)) == [0, 4]
    assert len(seeks) == 1
