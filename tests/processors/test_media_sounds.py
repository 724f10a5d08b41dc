"""Sounds that soundfile does not know: made by ffmpeg, read through PyAV."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from support.broken_files import assert_refused
from support.media import H264, RATE, SCENES, SECONDS, SOUND, media, sound

from onepeace.files import container
from onepeace.processors import AudioProcessor, guess

pytest.importorskip("av")

VIDEO = f"{SCENES} {SOUND} -shortest"
KINDS = {
    "a.m4a": f"{SOUND} -c:a aac",
    "a.aac": f"{SOUND} -c:a aac",
    "a.wma": f"{SOUND} -c:a wmav2",
    "a.weba": f"{SOUND} -c:a libopus -f webm",
    "a.mka": f"{SOUND} -c:a libvorbis",
    "a.wv": f"{SOUND} -c:a wavpack",
    "v.mp4": f"{VIDEO} {H264} -c:a aac",
    "v.mov": f"{VIDEO} {H264} -c:a pcm_s24le",
    "pieces.mp4": f"{VIDEO} {H264} -c:a aac -movflags frag_keyframe+empty_moov",
    "v.mkv": f"{VIDEO} {H264} -c:a libopus",
    "v.avi": f"{VIDEO} -c:v mpeg4 -c:a libmp3lame",
    "v.wmv": f"{VIDEO} -c:v wmv2 -c:a wmav2",
    # As a browser writes it: nobody knew how long it would become.
    "recorded.webm": f"{SOUND} -c:a libopus -f webm -live 1",
}
EXACT = {"a.m4a", "v.mp4", "v.mov", "a.mka", "v.mkv"}
"""Decoders of WMA drop their first two blocks, and not every format can say that its first block is a lead."""


@pytest.fixture(params=KINDS)
def path(request):
    return media(request.param, KINDS[request.param])


def load_whole(item, rate=RATE):
    return AudioProcessor(sample_rate=rate, max_seconds=None).load(item)


def spectrum(samples, count):
    samples = samples[:count]
    return np.fft.rfft(samples / np.linalg.norm(samples), 2 * count)


def delay_and_correlation(loaded, expected):
    """By how many samples `loaded` is late, and the correlation there."""
    count = min(len(loaded), len(expected))
    correlations = np.fft.irfft(spectrum(loaded, count) * spectrum(expected, count).conj())
    delay = int(correlations.argmax())
    if delay >= count:
        delay -= 2 * count
    return delay, float(correlations.max())


def test_sound_of_every_kind_is_read(path):
    expected = sound().mean(axis=1)
    loaded = load_whole(path).numpy()

    assert len(loaded) / RATE == pytest.approx(SECONDS, abs=0.1)
    assert np.abs(loaded).max() == pytest.approx(expected.max(), rel=0.15)
    delay, correlation = delay_and_correlation(loaded, expected)
    assert correlation > 0.98
    assert abs(delay) / RATE < (0.01 if path.name in EXACT else 0.1)


def test_content_is_read_like_the_file(path):
    content = path.read_bytes()

    assert torch.equal(load_whole(content), load_whole(path))
    assert guess(path, ["audio"]) == guess(content, ["audio"]) == "audio"


def test_windows_are_those_of_the_whole_sound(path):
    rate = 48000 if "libopus" in KINDS[path.name] else RATE
    loaded = load_whole(path, rate)
    processor = AudioProcessor(min_seconds=0.1)

    for start, end, samples in processor.windows(path, 0.7, 0.5):
        assert end - start <= 0.7 + 1e-4
        part = loaded[round(start * rate) : round(end * rate)]
        assert torch.equal(samples, processor.decode((part, rate)))


@pytest.fixture
def decoded_blocks(monkeypatch):
    """The lengths of the blocks that are decoded."""
    lengths = []
    mono = container.mono

    def counting(*arguments):
        block = mono(*arguments)
        lengths.append(len(block))
        return block

    monkeypatch.setattr(container, "mono", counting)
    return lengths


@pytest.fixture(scope="module")
def long_path():
    """Thirty seconds."""
    return media("long.m4a", f"-stream_loop 9 {SOUND} -c:a aac")


def test_overlapping_windows_are_decoded_once(long_path, decoded_blocks):
    windows = AudioProcessor(sample_rate=RATE).windows(long_path, 4, 2)

    assert len(list(windows)) == 14
    assert sum(decoded_blocks) < 31 * RATE
    assert max(decoded_blocks) < RATE


def test_sound_that_begins_after_the_pictures_keeps_its_time():
    path = media("late.mp4", f"{SCENES} -itsoffset 2 {SOUND} {H264} -c:a aac -map 0:v -map 1")
    silence = np.zeros(2 * RATE)
    loaded = load_whole(path).numpy()

    assert len(loaded) / RATE == pytest.approx(2 + SECONDS, abs=0.1)
    delay, correlation = delay_and_correlation(loaded, np.append(silence, sound().mean(axis=1)))
    assert correlation > 0.98
    assert abs(delay) / RATE < 0.1


EIGHT_CHANNELS = f"aevalsrc={'|'.join(['0.2*sin(2000*t)'] * 8)}:c=7.1:d=1"
READ_TWENTY_TIMES = """
import contextlib, sys
from onepeace.files.container import SoundStream
for _ in range(20):
    with contextlib.ExitStack() as stack:
        samples = SoundStream(sys.argv[1], '', stack).read(40000)
print(len(samples), abs(samples).max())
"""


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("eight.m4a", f"-f lavfi -i {EIGHT_CHANNELS} -c:a aac"),
        ("turned.mov", f"{SOUND} -af channelmap=map=1|0:channel_layout=FR+FL -c:a pcm_s16le"),
    ],
)
def test_channels_that_crash_pyav_are_read(name, options):
    """A crash would end this process, so another one reads."""
    command = [sys.executable, "-c", READ_TWENTY_TIMES, media(name, options)]
    process = subprocess.run(command, capture_output=True, text=True)

    assert process.returncode == 0, process.stderr[-2000:]
    count, loudest = process.stdout.split()
    assert count == "40000"
    assert 0.1 < float(loudest) < 0.5


@pytest.mark.parametrize("name", ["v.mkv", "a.weba", "v.avi"])
def test_file_that_was_cut_off_is_read_up_to_there(name):
    content = media(name, KINDS[name]).read_bytes()
    whole = load_whole(content)
    part = load_whole(content[: len(content) * 6 // 10])
    half = len(part) // 2

    assert len(whole) / 4 < len(part) < len(whole)
    assert torch.equal(part[:half], whole[:half])


def test_damaged_stream_is_an_error(tmp_path):
    content = bytearray(media("v.mp4", KINDS["v.mp4"]).read_bytes())
    start = content.index(b"mdat") + 1000
    end = content.index(b"moov") - 1000
    content[start:end] = bytes(end - start)
    path = tmp_path / "damaged.mp4"
    path.write_bytes(content)

    assert_refused(load_whole, path, r"damaged\.mp4: the sound cannot be decoded \(")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("silent.mp4", H264),
        ("silent.avi", "-c:v mpeg4"),
    ],
)
def test_video_without_sound_is_an_error(name, options):
    assert_refused(load_whole, media(name, SCENES, options), rf"{name}: there is no sound in it")


UNKNOWN = "not a sound or video of a known format"


@pytest.mark.parametrize(
    "playlist",
    ["ffconcat version 1.0\nfile '{}'\n", "#EXTM3U\n#EXTINF:3,\n{}\n#EXT-X-ENDLIST\n"],
)
def test_list_of_other_files_is_not_followed(playlist, tmp_path):
    """To ffmpeg, whose playlists may also hold addresses, their content counts and not the name."""
    path = tmp_path / "list.mp4"
    path.write_text(playlist.format(media("a.m4a", KINDS["a.m4a"])))

    assert_refused(load_whole, path, rf"list\.mp4: {UNKNOWN}")


def test_missing_pyav_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    path = tmp_path / "a.m4a"
    path.write_bytes(b"\0\0\0\x20ftypM4A " + bytes(100))

    error = assert_refused(load_whole, path, r"a\.m4a: needs av")
    assert error.package == "av"
    assert error.extra == "media"
