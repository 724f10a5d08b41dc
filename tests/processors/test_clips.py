"""Videos as clips: which frames, that they are the pictures of those times, what is taken for a clip."""

from itertools import chain

import pytest
import torch
from PIL import Image
from support.clips import plain_video

from onepeace.errors import UserError
from onepeace.files import video
from onepeace.processors import VideoProcessor, guess, guessed, sniff


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """41 frames; frame i is grey of level 5 i."""
    path = tmp_path_factory.mktemp("clips") / "a.mp4"
    path.write_bytes(plain_video(41, level=5))
    return path


def levels(frames):
    return [round(frame.image.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))[0] / 5) for frame in frames]


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
def test_clip_is_every_so_many_frames_of_a_part(file, count, stride, place, expected):
    found = video.clip(file, count, stride, place)
    assert levels(found) == expected
    assert [frame.time for frame in found] == pytest.approx([i / 10 for i in expected], abs=1e-3)
    assert levels(video.clip(file.read_bytes(), count, stride, place)) == expected


def test_short_video_repeats_its_frames():
    assert levels(video.clip(plain_video(3, level=5), 5, 8)) == [0, 0, 1, 2, 2]


def test_decoded_frames_are_pictures_of_the_models_size(file):
    processor = VideoProcessor(frames=3, stride=4, size=32)
    sample = processor.decode(file)
    assert sample.shape == (3, 3, 32, 32)
    images = [frame.image for frame in video.clip(file, 3, 4)]
    assert torch.equal(sample, torch.stack([processor.finish(image) for image in images]))
    assert processor.collate([sample, sample])["pixels"].shape == (2, 3, 3, 32, 32)


def test_a_video_is_its_sound_unless_the_model_reads_frames_alone(file):
    assert "video" not in guessed()
    assert guess(file, ["image", "audio", "video"]) == guess(str(file), ["audio", "text"]) == "audio"
    assert guess(file, ["video"]) == guess(str(file), ["video"]) == guess(file.read_bytes(), ["video"]) == "video"
    assert sniff(file) == "audio"
    with pytest.raises(UserError, match="looks like image"):
        guess("a.jpg", ["video"])


def test_what_is_no_video_is_an_error(tmp_path):
    pytest.importorskip("av")
    (tmp_path / "a.mp4").write_bytes(b"no video")
    for item, reason in ((tmp_path / "a.mp4", "a.mp4: not a sound or video"), (3, "a path, an address or the bytes")):
        with pytest.raises(UserError, match=reason):
            VideoProcessor().decode(item)
    with pytest.raises(UserError, match=r"processors\.video\.size is 0"):
        VideoProcessor(size=0)
    with pytest.raises(UserError, match="frames 0 and stride 8 must be above 0"):
        VideoProcessor(frames=0)


def test_where_seeking_leads_behind_the_clip_all_is_decoded(file, monkeypatch):
    shown, starts = video._shown_at, []

    def behind(frames, seconds, wanted):
        starts.append(next(frames))
        return shown(frames if len(starts) == 1 else chain(starts[-1:], frames), seconds, wanted)

    monkeypatch.setattr(video, "_shown_at", behind)
    assert levels(video.clip(file, 2, 4, 0.0)) == [0, 4]
    assert len(starts) == 2
