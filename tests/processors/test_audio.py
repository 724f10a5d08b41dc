"""The sound processor: formats, rates, channels, number types, windows, and what cannot be read."""

import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from onepeace.errors import UserError
from onepeace.processors import AudioProcessor
from onepeace.processors.resample import Resample

FOLDER = Path(__file__).parents[1] / "golden"
GOLDEN = load_file(str(FOLDER / "media_preprocess.safetensors"))
RESAMPLED = load_file(str(FOLDER / "resample.safetensors"))
"""Noise, and what torchaudio's Resample makes of its beginnings, by rates and length."""
RATE = 16000
FORMATS = [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"),
           ("AIFF", "PCM_16"), ("W64", "PCM_16"), ("AU", "PCM_16"), ("CAF", "PCM_16")]  # fmt: skip


def tone(seconds: float, rate: int = RATE, hertz: float = 440.0) -> np.ndarray:
    """(n,) float32: a tone that grows, so that no two places are alike."""
    t = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * hertz * t) * (0.2 + 0.8 * t / max(seconds, 1e-9))).astype(np.float32)


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, count).astype(np.float32)


def encoded(samples: np.ndarray, rate: int = RATE, form: str = "WAV", subtype: str | None = "PCM_16") -> bytes:
    file = io.BytesIO()
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    with soundfile.SoundFile(file, "w", rate, channels, format=form, subtype=subtype) as sound:
        for start in range(0, len(samples), rate):  # libsndfile's Vorbis writer overflows its stack on long blocks
            sound.write(samples[start : start + rate])
    return file.getvalue()


def test_waveforms_match_golden():
    """Bit-equal to the original, which normalises the whole file and then cuts."""
    long, short = GOLDEN["audio_long_in"], GOLDEN["audio_short_in"]
    whole = AudioProcessor(max_seconds=None)
    assert torch.equal(whole.decode((long, RATE))[:RATE], GOLDEN["audio_long_out_max1s"])
    stereo = torch.stack([long, 0.5 * long.flip(0)], dim=1)
    assert torch.equal(whole.decode((stereo, RATE))[:RATE], GOLDEN["audio_stereo_out_max1s"])
    # Shorter than a second: repeated, and cut to exactly one; the file holds the first turn.
    assert torch.equal(AudioProcessor().decode((short, RATE)), GOLDEN["audio_short_out"].repeat(4)[:RATE])


def test_prefix_vector_ignores_the_rest(tmp_path):
    processor = AudioProcessor(max_seconds=2.0)
    loud, quiet = 0.9 * noise(5 * RATE, 2), 0.01 * noise(7 * RATE, 3)
    for rate in (RATE, 44100):
        start = noise(2 * rate, 1)
        alone = processor.decode((start, rate))
        outputs = []
        for i, rest in enumerate((loud, quiet)):
            samples = np.concatenate([start, rest])
            path = tmp_path / f"{rate}-{i}.wav"
            path.write_bytes(encoded(samples, rate, subtype="FLOAT"))
            outputs += [processor.decode((samples, rate)), processor.decode(path)]
        for out in outputs:
            assert torch.equal(out, alone)


def test_only_what_is_asked_for_is_read(tmp_path, monkeypatch):
    path = tmp_path / "long.flac"
    path.write_bytes(encoded(noise(60 * RATE), form="FLAC"))
    read = []
    original = soundfile.SoundFile.read

    def counting(self, frames=-1, *args, **kwargs):
        read.append(frames)
        return original(self, frames, *args, **kwargs)

    monkeypatch.setattr(soundfile.SoundFile, "read", counting)
    processor = AudioProcessor(max_seconds=5.0)
    assert len(processor.decode(path)) == 5 * RATE
    assert sum(read) == 5 * RATE
    read.clear()
    assert len(list(processor.windows(path, 4, 2))) == 29
    assert sum(read) == 60 * RATE, "overlapping windows are not read twice"
    assert max(read) == 4 * RATE


def test_same_file_same_tensor_in_training_and_api(tmp_path):
    """One processor serves both, and the form of the item does not matter."""
    samples = np.round(noise(RATE * 2) * 32767).astype(np.int16)
    path = tmp_path / "a.wav"
    path.write_bytes(encoded(samples))
    floats = samples / np.float32(32768)
    processor = AudioProcessor()
    expected = processor.decode(path)
    for form, item in {
        "str": str(path),
        "bytes": path.read_bytes(),
        "bytearray": bytearray(path.read_bytes()),
        "memoryview": memoryview(path.read_bytes()),
        "int16": (samples, RATE),
        "int16 tensor": (torch.from_numpy(samples), RATE),
        "float32": (floats, RATE),
        "float64": (floats.astype(np.float64), np.int64(RATE)),
        "list": (floats.tolist(), float(RATE)),
        "big endian": (samples.astype(">i2"), RATE),
        "reversed view": (samples[::-1].copy()[::-1], torch.tensor(RATE)),
        "tensor with gradient": (torch.from_numpy(floats).requires_grad_(), RATE),
        "dict": {"array": floats, "sampling_rate": RATE, "path": None},
        "row": (floats[None], RATE),
        "column": (floats[:, None], RATE),
        "FLAC": encoded(samples, form="FLAC"),
    }.items():
        assert torch.equal(processor.decode(item), expected), form


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint32, np.float16])
def test_samples_are_scaled_by_the_range_of_their_type(dtype):
    wanted = noise(RATE)
    if np.dtype(dtype).kind == "f":
        given_samples = wanted.astype(dtype)
    else:
        half = 2.0 ** (8 * np.dtype(dtype).itemsize - 1)
        given_samples = (np.round(wanted * (half - 1)) + (half if np.dtype(dtype).kind == "u" else 0)).astype(dtype)
    loaded = AudioProcessor().load((given_samples, RATE))
    assert loaded.dtype == torch.float32
    assert np.abs(loaded.numpy() - wanted).max() < (0.01 if np.dtype(dtype).itemsize == 1 else 3e-4)


def test_channels_are_averaged_in_every_layout(tmp_path):
    left, right = noise(RATE, 1), noise(RATE, 2)
    both, mean = np.stack([left, right], 1), (left + right) / 2
    processor = AudioProcessor()
    for form, item in {
        "(n, 2)": (both, RATE),
        "(2, n)": (both.T, RATE),
        "tensor (2, n)": (torch.from_numpy(both.T.copy()), RATE),
        "file": encoded(both, subtype="FLOAT"),
        "int32": (np.round(both * 2.0**31).astype(np.int32).T, RATE),
    }.items():
        assert np.abs(processor.load(item).numpy() - mean).max() < 1e-6, form
    six = encoded(np.stack([left] * 6, 1), subtype="FLOAT")
    assert np.abs(processor.load(six).numpy() - left).max() < 1e-6


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 2), r"got \(2, 2\)"),
        ((33, 50), r"at most 32 channels .* got \(33, 50\)"),
        ((2, 3, 4), r"got \(2, 3, 4\)"),
        ((2, 0), "0 samples"),
    ],
)
def test_shape_that_is_no_sound_is_an_error(shape, message):
    with pytest.raises(UserError, match=message):
        AudioProcessor().decode((np.zeros(shape, np.float32), RATE))


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 44101, 48000])
def test_any_rate_keeps_pitch_and_length(rate):
    processor = AudioProcessor()
    loaded = processor.load((tone(1.5, rate), rate))
    assert abs(len(loaded) - 1.5 * RATE) <= 1
    wanted = torch.from_numpy(tone(1.5))[: len(loaded)]
    assert (loaded[:-100] - wanted[: len(loaded) - 100])[100:].abs().max() < 0.01
    assert len(processor.decode((tone(20, rate), rate))) == 15 * RATE, "exactly, whatever the rate"
    assert len(processor.decode((tone(0.3, rate), rate))) == RATE


@pytest.mark.parametrize(("old", "new"), [(441, 160), (3, 1), (1, 2)])
def test_resampling_equals_that_of_torchaudio(old, new):
    for length in (1, 5, 501):
        found = Resample(old, new)(RESAMPLED["samples"][:, :length])
        torch.testing.assert_close(found, RESAMPLED[f"{old}_{new}_{length}"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("rate", [1, 44_101, 999_983])
def test_strange_rates_need_no_strange_memory(rate):
    from onepeace.processors.resample import resampler

    resampler = resampler(rate, RATE)
    assert resampler.kernel.numel() < 16_000_000
    assert resampler.old / resampler.new == pytest.approx(rate / RATE, rel=1e-3)
    assert len(AudioProcessor(min_seconds=0.01).load((noise(2 * rate), rate), seconds=0.01)) == RATE // 100


def test_file_of_a_sample_a_second_is_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(16000), 1)
    with pytest.raises(UserError, match=r"a\.wav: the sample rate must be a whole number from 1000 to 1000000, got 1"):
        AudioProcessor().load(tmp_path / "a.wav")


@pytest.mark.parametrize("rate", [0, 1_000_001, 16000.5, float("nan"), "fast", None])
def test_wrong_rate_is_an_error(rate):
    with pytest.raises(UserError, match="sample rate must be a whole number from 1 to 1000000, got"):
        AudioProcessor().decode((noise(100), rate))


@pytest.mark.parametrize(("form", "subtype"), FORMATS)
def test_every_format_is_read(form, subtype, tmp_path):
    samples = tone(2.5)
    data = encoded(samples, form=form, subtype=subtype)
    path = tmp_path / "sound.bin"
    path.write_bytes(data)
    processor = AudioProcessor()
    loaded = processor.load(path)
    assert len(loaded) == len(samples)
    assert np.corrcoef(loaded.numpy(), samples)[0, 1] > 0.99
    assert torch.equal(processor.load(data), loaded)
    assert torch.equal(processor.load(path, seconds=0.5), loaded[:8000])


@pytest.mark.parametrize(("form", "subtype"), [form for form in FORMATS if form[0] != "OGG"])
def test_file_that_was_cut_off_is_an_error(form, subtype, tmp_path):
    data = encoded(noise(6 * RATE), form=form, subtype=subtype)
    path = tmp_path / "cut.bin"
    path.write_bytes(data[: int(len(data) * 0.9)])
    for decode in (AudioProcessor().decode, lambda x: list(windows(x))):
        with pytest.raises(UserError, match=r"cut\.bin: .*(cut off|cannot be decoded|malformed)") as caught:
            decode(path)
        assert "\n" not in str(caught.value)


def windows(item):
    return AudioProcessor().windows(item, 2, 2)


def test_careless_header_is_not_a_file_that_was_cut_off():
    """Some programs write sizes that are off by a few bytes, and piped sound has none at all."""
    data = bytearray(encoded(noise(RATE)))
    at = data.index(b"data") + 4
    for size in (2 * RATE + 44, 0xFFFFFFFF, 0x7FFFFFFF):
        data[at : at + 4] = struct.pack("<I", size)
        assert len(AudioProcessor().decode(bytes(data))) == RATE


def test_mp3_without_its_last_bytes_is_read():
    samples = noise(3 * RATE)
    data = encoded(samples, form="MP3", subtype="MPEG_LAYER_III")[:-20]
    processor = AudioProcessor(min_seconds=0.02)
    assert 2.9 * RATE < len(processor.decode(data)) < 3 * RATE
    ends = [end for _, end, _ in processor.windows(data, 1.0, 0.495)]
    assert len(ends) == 6
    # A window that begins where the samples are missing does not come, and is no error.
    processor = AudioProcessor(min_seconds=0.0005)
    starts = [start for start, _, _ in processor.windows(data, 0.5, 2.999 / 4)]
    assert len(starts) == 4


def empty_wav() -> bytes:
    return encoded(np.zeros(0, np.float32))


NOT_A_SOUND = "(no sound that soundfile knows|not a sound or video of a known format)"
"""Without and with PyAV."""
BROKEN = {
    "missing": (lambda path: None, "no such file"),
    "a folder": (Path.mkdir, "is a folder"),
    "a pipe": (os.mkfifo, "not a regular file"),
    "empty": (b"", r"empty \(0 bytes\)"),
    "no samples": (empty_wav(), "0 samples"),
    "text": (b"hello " * 100, NOT_A_SOUND),
    "picture": (b"\xff\xd8\xff\xe0" + bytes(100), NOT_A_SOUND),
    "zeros": (bytes(5000), NOT_A_SOUND),
    "m4a": (b"\0\0\0\x20ftypM4A " + bytes(100), NOT_A_SOUND),
    "damaged mp3": (b"\xff\xfb\x90\x00" + b"junk" * 100, r"cannot be opened \(damaged MP3\)$"),
    "head of a wav": (encoded(noise(RATE))[:20], "cannot be opened"),
    "nan": (encoded(np.array([0.1, np.nan, 0.2], np.float32), subtype="FLOAT"), "1 of 3 samples are NaN or infinite"),
    "infinite": (encoded(np.array([0.1, np.inf], np.float32), subtype="FLOAT"), "1 of 2 samples are NaN or infinite"),
    "33 channels": (encoded(np.zeros((50, 33), np.float32)), "33 channels are above the limit of 32"),
}


@pytest.mark.parametrize(("kind", "ending"), [*((kind, "wav") for kind in BROKEN), ("text", "raw"), ("nan", "raw")])
def test_broken_file_is_named_with_its_reason(kind, ending, tmp_path):
    content, message = BROKEN[kind]
    path = tmp_path / f"sound.{ending}"  # .raw: soundfile believes the ending and wants a rate
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)
    message = NOT_A_SOUND if ending == "raw" else message
    with pytest.raises(UserError, match=rf"sound\.{ending}: .*{message}") as caught:
        AudioProcessor().decode(path)
    assert "\n" not in str(caught.value)
    assert "object at 0x" not in str(caught.value)


def test_nan_and_infinite_samples_are_an_error():
    samples = np.stack([noise(RATE)] * 2)
    samples[1, 77] = np.nan
    with pytest.raises(UserError, match="1 of 16000 samples are NaN or infinite"):
        AudioProcessor().decode((samples, RATE))
    with pytest.raises(UserError, match="NaN or infinite"):
        AudioProcessor().decode((np.full(RATE, 1e300), RATE))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (noise(100), r"samples need their rate; give \(samples, rate\)"),
        ((RATE, noise(100)), r"a tuple is \(samples, rate\)"),
        ({"array": noise(100)}, "'array' and 'sampling_rate'"),
        ((np.zeros(100, np.int64), RATE), "integers of up to 32 bits, got int64"),
        (([[1.0], [1.0, 2.0]], RATE), "must form one array"),
        (3, "expected a path"),
        ("", "path is empty"),
        ("file:///etc/passwd", "must be http or https, not file"),
        ("https://user:secret@127.0.0.1:1/a.wav", r"https://127\.0\.0\.1:1/a\.wav: cannot be fetched"),
    ],
)
def test_value_that_is_no_sound_is_an_error(item, message):
    with pytest.raises(UserError, match=message):
        AudioProcessor().decode(item)


def test_silence_stays_silence(tmp_path):
    path = tmp_path / "silence.wav"
    path.write_bytes(encoded(np.zeros(5 * RATE, np.float32)))
    assert torch.equal(AudioProcessor().decode(path), torch.zeros(5 * RATE))


@settings(deadline=None, derandomize=True, max_examples=30)
@given(
    st.integers(1, 40_000),
    st.integers(1, 4),
    st.sampled_from([8000, 16000, 22050, 48000]),
    st.booleans(),
    st.floats(0.05, 1.5),
)
def test_any_clip_has_its_length(count, channels, rate, turned, least):
    samples = np.random.default_rng(0).normal(size=(count, channels)).astype(np.float32)
    processor = AudioProcessor(min_seconds=least, max_seconds=2.0)
    if count <= channels and channels > 1:
        return
    out = processor.decode((samples.T if turned else samples, rate))
    natural = min(-(-count * RATE // rate), 2 * RATE)
    assert len(out) == max(natural, round(least * RATE))
    assert torch.isfinite(out).all()


def test_collate_pads_with_zeros_on_the_right():
    processor = AudioProcessor()
    samples = [processor.decode((noise(n), RATE)) for n in (RATE, 2 * RATE)]
    batch = processor.collate(samples)
    assert batch["waveform"].shape == (2, 2 * RATE)
    assert batch["lengths"].tolist() == [RATE, 2 * RATE] == [processor.size(sample) for sample in samples]
    assert (batch["waveform"][0, RATE:] == 0).all()
    assert torch.equal(batch["waveform"][0, :RATE], samples[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample_rate": 0}, "sample_rate is 0"),
        ({"min_seconds": 3.0, "max_seconds": 2.0}, "in order"),
        ({"max_second": 3}, "did you mean max_seconds"),
    ],
)
def test_wrong_setting_is_an_error(options, message):
    with pytest.raises(UserError, match=message):
        AudioProcessor.from_config(options)


def test_text_in_place_of_a_number_is_one_line():
    with pytest.raises(UserError, match=r"^processors\.audio: "):
        AudioProcessor.from_config({"max_seconds": "x"})
