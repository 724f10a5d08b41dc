"""Windows of a sound: where they lie, that each is what reading that part alone gives, and what is no window."""

import numpy as np
import pytest
import soundfile
import torch
from test_audio import FORMATS, RATE, encoded, noise, tone

from onepeace.errors import UserError
from onepeace.processors import AudioProcessor


@pytest.mark.parametrize(
    ("seconds", "window", "hop", "expected"),
    [
        (10, 4, 4, [(0, 4), (4, 8), (8, 10)]),
        (8.5, 4, 4, [(0, 4), (4, 8)]),  # half a second is less than min_seconds
        (0.5, 4, 4, [(0, 0.5)]),  # the only one is kept
        (3, 4, 1, [(0, 3)]),
        (10, 4, 2, [(0, 4), (2, 6), (4, 8), (6, 10)]),  # nothing new after the first that reaches the end
        (10, 2, 5, [(0, 2), (5, 7)]),
        (2, 0.5, 0.5, [(0, 0.5), (0.5, 1), (1, 1.5), (1.5, 2)]),
    ],
)
def test_windows_cover_the_sound(seconds, window, hop, expected):
    found = list(AudioProcessor().windows((tone(seconds), RATE), window, hop))
    assert [(start, end) for start, end, _ in found] == expected
    for start, end, samples in found:
        assert len(samples) == max(round((end - start) * RATE), RATE)


@pytest.mark.parametrize(("window", "hop"), [(2.0, 0.7), (1.0, 1.3)])
@pytest.mark.parametrize(("form", "subtype"), [FORMATS[i] for i in (0, 2, 3, 4)])
def test_windows_are_those_of_the_whole_sound(form, subtype, window, hop, tmp_path):
    """They are cut out of one reading pass; seeking to and fro in a Vorbis file would land elsewhere."""
    rate = 48000 if subtype == "OPUS" else 32000
    path = tmp_path / "sound.bin"
    path.write_bytes(encoded(noise(5 * rate + 1234), rate, form, subtype))
    processor = AudioProcessor()
    found = list(processor.windows(path, window, hop))
    assert len(found) >= 4
    whole, _ = soundfile.read(path, dtype="float32")
    for k, (start, end, samples) in enumerate(found):
        assert start == pytest.approx(k * hop, abs=1e-4)
        alone = processor.decode((whole[round(start * rate) : round(end * rate)], rate))
        assert len(samples) == len(alone)
        assert torch.equal(samples, alone)
        assert end - start <= window + 1e-4


@pytest.mark.parametrize("rate", [11025, 44100, 44101])
def test_windows_have_their_exact_length_at_any_rate(rate):
    processor = AudioProcessor(min_seconds=0.1)
    item = (noise(3 * rate), rate)
    lengths = [len(samples) for _, _, samples in processor.windows(item, 0.7, 0.5)]
    assert lengths[:-1] == [11200] * 5
    assert len(processor.load(item, seconds=0.7)) == 11200


def test_broken_sample_of_a_later_window_is_found_there():
    samples = noise(10 * RATE)
    samples[9 * RATE] = np.nan
    found = AudioProcessor().windows((samples, RATE), 4, 4)
    assert next(found)[0] == 0
    assert next(found)[0] == 4
    with pytest.raises(UserError, match="NaN"):
        next(found)
    assert len(AudioProcessor(max_seconds=5).decode((samples, RATE))) == 5 * RATE


@pytest.mark.parametrize(("window", "hop"), [(0, 1), (float("nan"), 1), (1, float("inf")), (1e-9, 1), (1, 1e-9)])
def test_wrong_window_is_an_error(window, hop):
    with pytest.raises(UserError, match="window and hop must be"):
        next(AudioProcessor().windows((noise(RATE), RATE), window, hop))


def test_wrong_length_is_an_error():
    for seconds in (0, -1, float("nan")):
        with pytest.raises(UserError, match="seconds must be above 0"):
            AudioProcessor().load((noise(RATE), RATE), seconds=seconds)
    assert len(AudioProcessor().load((noise(RATE), RATE), seconds=9)) == RATE
