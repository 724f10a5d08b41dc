"""Sounds that soundfile does not know: made by ffmpeg, read through PyAV."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from support.media import H264, RATE, SCENES, SECONDS, SOUND, media, sound

from onepeace.errors import UserError
from onepeace.files import sound_stream
from onepeace.processors import AudioProcessor, guess

pytest.importorskip("av")

VIDEO = (*SCENES, *SOUND, "-shortest")
KINDS = {
    "a.m4a": (*SOUND, "-c:a", "aac"),
    "a.aac": (*SOUND, "-c:a", "aac"),
    "a.wma": (*SOUND, "-c:a", "wmav2"),
    "a.weba": (*SOUND, "-c:a", "libopus", "-f", "webm"),
    "a.mka": (*SOUND, "-c:a", "libvorbis"),
    "a.wv": (*SOUND, "-c:a", "wavpack"),
    "v.mp4": (*VIDEO, *H264, "-c:a", "aac"),
    "v.mov": (*VIDEO, *H264, "-c:a", "pcm_s24le"),
    "pieces.mp4": (*VIDEO, *H264, "-c:a", "aac", "-movflags", "frag_keyframe+empty_moov"),
    "v.mkv": (*VIDEO, *H264, "-c:a", "libopus"),
    "v.avi": (*VIDEO, "-c:v", "mpeg4", "-c:a", "libmp3lame"),
    "v.wmv": (*VIDEO, "-c:v", "wmv2", "-c:a", "wmav2"),
    # As a browser writes it: nobody knew how long it would become.
    "recorded.webm": (*SOUND, "-c:a", "libopus", "-f", "webm", "-live", "1"),
}


def whole(item, **options) -> torch.Tensor:
    return AudioProcessor(sample_rate=RATE, max_seconds=None, **options).load(item)


def shift(loaded: np.ndarray, wanted: np.ndarray) -> tuple[int, float]:
    """By how many samples `loaded` is late, and the correlation there."""
    count = min(len(loaded), len(wanted))
    spectrum = np.fft.rfft(loaded[:count], 2 * count) * np.conj(np.fft.rfft(wanted[:count], 2 * count))
    match = np.fft.irfft(spectrum) / (np.linalg.norm(loaded[:count]) * np.linalg.norm(wanted[:count]))
    best = int(match.argmax())
    return (best if best < count else best - 2 * count), float(match.max())


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_read(name):
    path = media(name, *KINDS[name])
    assert guess(path, {"audio": None}) == guess(path.read_bytes(), {"audio": None}) == "audio"
    loaded = whole(path).numpy()
    assert len(loaded) / RATE == pytest.approx(SECONDS, abs=0.1)
    late, match = shift(loaded, sound().mean(axis=1))
    assert match > 0.98
    assert np.abs(loaded).max() == pytest.approx(sound().mean(axis=1).max(), rel=0.15)
    # Decoders of WMA drop their first two blocks, and not every format can say that its first block is a lead.
    exact = name.endswith((".m4a", ".mp4", ".mov", ".mka", ".mkv")) and name != "pieces.mp4"
    assert abs(late) < RATE * (0.01 if exact else 0.1)
    assert np.abs(whole(path.read_bytes()).numpy() - loaded).max() == 0
    processor, rate = AudioProcessor(min_seconds=0.1), 48000 if "libopus" in KINDS[name] else RATE
    loaded = AudioProcessor(sample_rate=rate, max_seconds=None).load(path)
    for start, end, samples in processor.windows(path, 0.7, 0.5):
        assert end - start <= 0.7 + 1e-4
        assert torch.equal(samples, processor.decode((loaded[round(start * rate) : round(end * rate)], rate)))


def test_only_what_is_asked_for_is_decoded(monkeypatch):
    """The first part, and of windows each sample once."""
    path = media("long.m4a", "-stream_loop", "9", *SOUND, "-c:a", "aac")
    decoded = []
    monkeypatch.setattr(
        sound_stream, "_mono", lambda *args, original=sound_stream._mono: decoded.append(original(*args)) or decoded[-1]
    )
    processor = AudioProcessor(sample_rate=RATE, max_seconds=2.0)
    processor.decode(path)
    assert sum(map(len, decoded)) < 2.2 * RATE
    decoded.clear()
    assert len(list(processor.windows(path, 4, 2))) == 14
    assert sum(map(len, decoded)) < 31 * RATE
    assert max(map(len, decoded)) < RATE


def test_sound_that_begins_after_the_pictures_keeps_its_time():
    path = media("late.mp4", *SCENES, "-itsoffset", "2", *SOUND, *H264, "-c:a", "aac", "-map", "0:v", "-map", "1")
    loaded = whole(path)
    assert len(loaded) / RATE == pytest.approx(2 + SECONDS, abs=0.1)
    assert loaded[: int(1.9 * RATE)].abs().max() == 0
    assert loaded[int(2.1 * RATE) :].abs().max() > 0.1


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("eight.m4a", ("-f", "lavfi", "-i", f"aevalsrc={'|'.join(['0.2*sin(2000*t)'] * 8)}:c=7.1:d=1", "-c:a", "aac")),
        ("turned.mov", (*SOUND, "-af", "channelmap=map=1|0:channel_layout=FR+FL", "-c:a", "pcm_s16le")),
    ],
)
def test_channels_that_end_the_process_in_pyav_do_not(name, arguments):
    """In a process of its own, which would not come back."""
    code = (
        "import sys, contextlib; from onepeace.files.sound_stream import SoundStream\n"
        "for _ in range(20):\n"
        "    with contextlib.ExitStack() as stack: samples = SoundStream(sys.argv[1], '', stack).read(40000)\n"
        "print(len(samples), abs(samples).max())"
    )
    path = media(name, *arguments)
    ended = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    count, loudest = ended.stdout.split()
    assert count == "40000"
    assert 0.1 < float(loudest) < 0.5


@pytest.mark.parametrize("name", ["v.mkv", "a.weba", "v.avi"])
def test_file_that_was_cut_off_is_read_up_to_there(name):
    data, processor = media(name, *KINDS[name]).read_bytes(), AudioProcessor(max_seconds=None, min_seconds=0.1)
    whole, part = (processor.load(data[: int(len(data) * keep)]) for keep in (1, 0.6))
    assert len(whole) / 4 < len(part) < len(whole)
    assert torch.equal(whole[: len(part) // 2], part[: len(part) // 2])


def test_stream_that_is_damaged_is_an_error(tmp_path):
    data = bytearray(media("v.mp4", *KINDS["v.mp4"]).read_bytes())
    path = tmp_path / "damaged.mp4"
    middle = data.index(b"mdat")
    data[middle + 1000 : data.index(b"moov") - 1000] = bytes(data.index(b"moov") - middle - 2000)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"damaged\.mp4: the sound cannot be decoded \(.+\)$") as caught:
        whole(path)
    assert "\n" not in str(caught.value)


def test_file_without_sound_is_an_error(tmp_path):
    for path in (media("silent.mp4", *SCENES, *H264), media("silent.avi", *SCENES, "-c:v", "mpeg4")):
        with pytest.raises(UserError, match=r"silent\.\w+: there is no sound in it that can be decoded"):
            AudioProcessor().decode(path)
    path = tmp_path / "text.mp4"
    for content, message in (
        (b"hello " * 100, "not a sound or video of a known format, or damaged$"),
        (b"", r"the file is empty \(0 bytes\)"),
        (bytes(5000), "not a sound or video of a known format, or damaged$"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "not a sound or video of a known format, or damaged$"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"text\.mp4: {message}") as caught:
            AudioProcessor().decode(path)
        assert "\n" not in str(caught.value)


def test_list_of_other_files_is_not_followed(tmp_path):
    """To ffmpeg, whose playlists may also hold addresses, their content counts and not the name."""
    secret = media("a.m4a", *KINDS["a.m4a"])
    path = tmp_path / "list.mp4"
    for content in (f"ffconcat version 1.0\nfile '{secret}'\n", f"#EXTM3U\n#EXTINF:3,\n{secret}\n#EXT-X-ENDLIST\n"):
        path.write_text(content)
        with pytest.raises(UserError, match=r"list\.mp4: not a sound or video of a known format, or damaged$"):
            AudioProcessor().decode(path)


def test_missing_pyav_is_named_with_its_extra(tmp_path, monkeypatch):
    path = tmp_path / "a.m4a"
    path.write_bytes(b"\0\0\0\x20ftypM4A " + bytes(100))
    monkeypatch.setitem(sys.modules, "av", None)
    message = r'a\.m4a: no sound that soundfile knows; AAC, .*needs av: pip install "onepeace\[media\]"$'
    with pytest.raises(UserError, match=message):
        AudioProcessor().decode(path)
