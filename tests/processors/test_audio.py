"""The sound processor: formats, rates, channels, number types, windows, and what cannot be read."""

import os
import struct

import numpy as np
import pytest
import soundfile
import torch
from support.broken_files import assert_refused, write_content
from support.golden import golden_tensors
from support.sounds import FORMATS, RATE, encoded_sound, noise, tone

from onepeace.processors import AudioProcessor
from onepeace.processors.sounds import Resample, resampler

GOLDEN = golden_tensors("media_preprocess.safetensors")
RESAMPLED = golden_tensors("resample.safetensors")
"""Noise, and what torchaudio's Resample makes of its beginnings, by rates and length."""


@pytest.fixture
def processor():
    return AudioProcessor()


# The original's numbers


@pytest.mark.parametrize("name", ["long", "stereo"])
def test_waveform_matches_golden(name):
    """Bit-equal to the original, which normalises the whole file and then cuts."""
    samples = GOLDEN["audio_long_in"]
    if name == "stereo":
        samples = torch.stack([samples, 0.5 * samples.flip(0)], dim=1)

    waveform = AudioProcessor(max_seconds=None).decode((samples, RATE))

    assert torch.equal(waveform[:RATE], GOLDEN[f"audio_{name}_out_max1s"])


def test_short_waveform_is_repeated_up_to_a_second(processor):
    first_turn = GOLDEN["audio_short_out"]
    waveform = processor.decode((GOLDEN["audio_short_in"], RATE))

    assert torch.equal(waveform, first_turn.repeat(4)[:RATE])


# Which part is read


@pytest.mark.parametrize("rate", [RATE, 44100])
def test_beginning_does_not_depend_on_what_follows(rate):
    processor = AudioProcessor(max_seconds=2.0)
    beginning = noise(2 * rate, 1)
    samples = np.concatenate([beginning, 0.01 * noise(7 * RATE, 3)])

    expected = processor.decode((beginning, rate))

    assert torch.equal(processor.decode((samples, rate)), expected)
    assert torch.equal(processor.decode(encoded_sound(samples, rate, subtype="FLOAT")), expected)


@pytest.fixture
def reads(monkeypatch):
    """The numbers of frames that are read from files."""
    counts = []
    read = soundfile.SoundFile.read

    def counting(self, frames=-1, *args, **kwargs):
        counts.append(frames)
        return read(self, frames, *args, **kwargs)

    monkeypatch.setattr(soundfile.SoundFile, "read", counting)
    return counts


@pytest.fixture(scope="module")
def minute():
    return encoded_sound(noise(60 * RATE), form="FLAC")


def test_decode_reads_the_beginning_alone(processor, minute, reads):
    assert len(processor.decode(minute)) == 15 * RATE
    assert sum(reads) == 15 * RATE


def test_overlapping_windows_are_read_once(processor, minute, reads):
    assert len(list(processor.windows(minute, 4, 2))) == 29
    assert sum(reads) == 60 * RATE
    assert max(reads) == 4 * RATE


# Forms of an item

INTEGERS = (noise(2 * RATE) * 32767).astype(np.int16)
FLOATS = INTEGERS / np.float32(32768)
WAV = encoded_sound(INTEGERS)


@pytest.mark.parametrize(
    "item",
    [
        bytearray(WAV),
        (INTEGERS[::-1].copy()[::-1], torch.tensor(RATE)),
        (torch.from_numpy(INTEGERS), RATE),
        (torch.from_numpy(FLOATS).requires_grad_(), RATE),
        (FLOATS[None], RATE),
        {"array": FLOATS, "sampling_rate": RATE, "path": None},
    ],
    ids=lambda item: type(item).__name__,
)
def test_form_of_the_samples_does_not_matter(processor, item):
    assert torch.equal(processor.decode(item), processor.decode(WAV))


@pytest.mark.parametrize(
    ("dtype", "zero", "full", "tolerance"),
    [
        (np.uint8, 128, 127, 0.01),
        (np.int16, 0, 2**15 - 1, 3e-4),
        (np.uint32, 2**31, 2**31 - 1, 3e-4),
        (np.float16, 0, 1, 3e-4),
    ],
)
def test_samples_are_scaled_by_the_range_of_their_type(processor, dtype, zero, full, tolerance):
    expected = noise(RATE)
    samples = zero + full * expected.astype(np.float64)
    if full > 1:
        samples = samples.round()

    loaded = processor.load((samples.astype(dtype), RATE))

    assert loaded.dtype == torch.float32
    np.testing.assert_allclose(loaded, expected, rtol=0, atol=tolerance)


STEREO = np.stack([noise(RATE, 1), noise(RATE, 2)], axis=1)


@pytest.mark.parametrize(
    "item",
    [
        (STEREO, RATE),
        (STEREO.T, RATE),
        encoded_sound(np.tile(STEREO, 3), subtype="FLOAT"),
    ],
    ids=["(n, 2)", "(2, n)", "file of six"],
)
def test_channels_are_averaged_in_every_layout(processor, item):
    np.testing.assert_allclose(processor.load(item), STEREO.mean(axis=1), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ((np.zeros((2, 2), np.float32), RATE), r"\(2, 2\)"),
        ((np.zeros((33, 50), np.float32), RATE), r"32 channels .*\(33, 50\)"),
        ((np.zeros((2, 0), np.float32), RATE), "0 samples"),
        ((np.zeros(100, np.int64), RATE), "int64"),
        (([[1.0], [1.0, 2.0]], RATE), "one array"),
        ((np.full(RATE, 1e300), RATE), "infinite"),
        ((np.full(RATE, 1e30, np.float32), RATE), r"ndarray \(\d+,\) float32: samples of up to 1e\+30"),
        (noise(100), r"\(samples, rate\)"),
        ((RATE, noise(100)), r"\(samples, rate\)"),
        ((noise(100), 0), r"rate .* 1 to 1000000"),
        ((noise(100), "fast"), r"rate .* 1 to 1000000"),
        ("https://user:secret@127.0.0.1:1/a.wav", r"^https://127\.0\.0\.1:1/a\.wav: "),
    ],
)
def test_value_that_is_no_sound_is_an_error(processor, item, words):
    assert_refused(processor.decode, item, words)


# Rates


@pytest.mark.parametrize("rate", [44100, 44101])
def test_any_rate_keeps_pitch_and_length(processor, rate):
    loaded = processor.load((tone(1.5, rate), rate))

    assert abs(len(loaded) - 1.5 * RATE) <= 1
    inner = slice(100, len(loaded) - 100)
    np.testing.assert_allclose(loaded[inner], tone(1.5)[inner], rtol=0, atol=0.01)


@pytest.mark.parametrize("length", [1, 5, 501])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (441, 160),
        (3, 1),
        (1, 2),
    ],
)
def test_resampling_equals_that_of_torchaudio(old, new, length):
    samples = Resample(old, new)(RESAMPLED["samples"][:, :length])
    torch.testing.assert_close(samples, RESAMPLED[f"{old}_{new}_{length}"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("rate", [1, 44_101, 999_983])
def test_unusual_rates_need_no_unusual_memory(rate):
    resample = resampler(rate, RATE)
    processor = AudioProcessor(min_seconds=0.01)

    assert resample.kernel.numel() < 16_000_000
    assert resample.old / resample.new == pytest.approx(rate / RATE, rel=1e-3)
    assert len(processor.load((noise(2 * rate), rate), seconds=0.01)) == RATE // 100


# Files


@pytest.mark.parametrize(("form", "subtype"), FORMATS)
def test_every_format_is_read(processor, form, subtype, tmp_path):
    samples = tone(2.5)
    path = tmp_path / "sound.bin"
    path.write_bytes(encoded_sound(samples, form=form, subtype=subtype))

    loaded = processor.load(path)

    assert len(loaded) == len(samples)
    assert np.corrcoef(loaded, samples)[0, 1] > 0.99
    assert torch.equal(processor.load(path.read_bytes()), loaded)
    assert torch.equal(processor.load(path, seconds=0.5), loaded[:8000])


@pytest.mark.parametrize(
    ("form", "subtype"),
    [pair for pair in FORMATS if pair[0] != "OGG"],
)
def test_file_that_was_cut_off_is_an_error(processor, form, subtype, tmp_path):
    content = encoded_sound(noise(6 * RATE), form=form, subtype=subtype)
    path = tmp_path / "cut.bin"
    path.write_bytes(content[: int(len(content) * 0.9)])

    words = r"cut\.bin: .*(cut off|cannot be decoded|malformed)"
    assert_refused(processor.decode, path, words)
    assert_refused(lambda path: list(processor.windows(path, 2, 2)), path, words)


@pytest.mark.parametrize(
    "size",
    [
        2 * RATE + 44,
        0xFFFFFFFF,
        0x7FFFFFFF,
    ],
)
def test_careless_header_is_not_a_file_that_was_cut_off(processor, size):
    """Some programs write sizes that are off by a few bytes, and piped sound has none at all."""
    content = bytearray(encoded_sound(noise(RATE)))
    start = content.index(b"data") + 4
    content[start : start + 4] = struct.pack("<I", size)

    assert len(processor.decode(bytes(content))) == RATE


CUT_MP3 = encoded_sound(noise(3 * RATE), form="MP3", subtype="MPEG_LAYER_III")[:-20]


def test_mp3_without_its_last_bytes_is_read():
    processor = AudioProcessor(min_seconds=0.02)

    assert 2.9 * RATE < len(processor.decode(CUT_MP3)) < 3 * RATE
    assert len(list(processor.windows(CUT_MP3, 1.0, 0.495))) == 6


NOT_A_SOUND = "(no sound that soundfile knows|not a sound or video of a known format)"
"""Without and with PyAV."""
BROKEN = {
    "missing": (lambda path: None, "no such file"),
    "a pipe": (os.mkfifo, "not a regular file"),
    "empty": (b"", "empty"),
    "no samples": (encoded_sound(noise(0)), "0 samples"),
    "text": (b"hello " * 100, NOT_A_SOUND),
    "m4a": (b"\0\0\0\x20ftypM4A " + bytes(100), NOT_A_SOUND),
    "damaged mp3": (b"\xff\xfb\x90\x00" + b"junk" * 100, "damaged MP3"),
    "nan": (
        encoded_sound(np.array([0.1, np.nan, 0.2]), subtype="FLOAT"),
        "1 of 3 samples are NaN",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_file_is_named_with_its_reason(processor, kind, tmp_path):
    content, words = BROKEN[kind]
    path = write_content(tmp_path / "sound.wav", content)

    assert_refused(processor.decode, path, rf"sound\.wav: .*{words}")


# Batches
