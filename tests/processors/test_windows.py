"""Windows of a sound: where they lie, that each is what reading that part alone gives, and what is no window."""

import io

import numpy as np
import pytest
import soundfile
import torch
from support.sounds import FORMATS, RATE, encoded_sound, noise, tone

from onepeace.errors import UserError
from onepeace.processors import AudioProcessor


@pytest.mark.parametrize(
    ("seconds", "window", "hop", "expected"),
    [
        (10, 4, 4, [(0, 4), (4, 8), (8, 10)]),
        (8.5, 4, 4, [(0, 4), (4, 8)]),  # half a second is less than min_seconds
        (0.5, 4, 4, [(0, 0.5)]),  # the only one is kept
        (3, 4, 1, [(0, 3)]),
        (
            10,
            4,
            2,
            [(0, 4), (2, 6), (4, 8), (6, 10)],
        ),  # nothing new after the first that reaches the end
        (10, 2, 5, [(0, 2), (5, 7)]),
        (2, 0.5, 0.5, [(0, 0.5), (0.5, 1), (1, 1.5), (1.5, 2)]),
    ],
)
def test_windows_cover_the_sound(seconds, window, hop, expected):
    windows = list(AudioProcessor().windows((tone(seconds), RATE), window, hop))

    assert [(start, end) for start, end, _ in windows] == expected
    for start, end, samples in windows:
        assert len(samples) == max(round((end - start) * RATE), RATE)


@pytest.mark.parametrize(
    ("window", "hop"),
    [
        (2.0, 0.7),
        (1.0, 1.3),
    ],
)
@pytest.mark.parametrize(
    ("form", "subtype"),
    [
        FORMATS[0],
        *FORMATS[2:5],
    ],
)
def test_windows_are_those_of_the_whole_sound(form, subtype, window, hop):
    """They are cut out of one reading pass; seeking to and fro in a Vorbis file would land elsewhere."""
    rate = 48000 if subtype == "OPUS" else 32000
    content = encoded_sound(noise(5 * rate + 1234), rate, form, subtype)
    whole, _ = soundfile.read(io.BytesIO(content), dtype="float32")
    processor = AudioProcessor()

    windows = list(processor.windows(content, window, hop))

    assert len(windows) >= 4
    for number, (start, end, samples) in enumerate(windows):
        assert start == pytest.approx(number * hop, abs=1e-4)
        assert end - start <= window + 1e-4
        part = whole[round(start * rate) : round(end * rate)]
        assert torch.equal(samples, processor.decode((part, rate)))


@pytest.mark.parametrize("rate", [11025, 44100, 44101])
def test_windows_have_their_exact_length_at_any_rate(rate):
    processor = AudioProcessor(min_seconds=0.1)
    item = (noise(3 * rate), rate)

    lengths = [len(samples) for _, _, samples in processor.windows(item, 0.7, 0.5)]

    assert lengths[:-1] == [11200] * 5
    assert len(processor.load(item, seconds=0.7)) == 11200


def test_broken_sample_fails_the_window_that_has_it():
    samples = noise(10 * RATE)
    samples[9 * RATE] = np.nan
    processor = AudioProcessor(max_seconds=4)

    windows = processor.windows((samples, RATE))

    assert next(windows)[:2] == (0, 4)
    assert next(windows)[:2] == (4, 8)
    with pytest.raises(UserError, match="NaN"):
        next(windows)
    assert len(processor.decode((samples, RATE))) == 4 * RATE


@pytest.mark.parametrize(
    ("window", "hop"),
    [
        (0, 1),
        (float("nan"), 1),
        (1, float("inf")),
        (1e-9, 1),
        (1, 1e-9),
    ],
)
def test_wrong_window_is_an_error(window, hop):
    with pytest.raises(UserError, match="window and hop"):
        next(AudioProcessor().windows((noise(RATE), RATE), window, hop))


@pytest.mark.parametrize(
    "seconds",
    [
        0,
        -1,
        float("nan"),
    ],
)
def test_wrong_length_is_an_error(seconds):
    with pytest.raises(UserError, match="seconds"):
        AudioProcessor().load((noise(RATE), RATE), seconds=seconds)
