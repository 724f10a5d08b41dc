"""Sounds that soundfile does not know, and torchcodec does."""

import sys
import types

import numpy as np
import pytest
import torch
from test_audio import BROKEN, noise

from onepeace.errors import UserError
from onepeace.processors import AudioProcessor


def fake_torchcodec(monkeypatch, samples: np.ndarray, rate: int) -> None:
    class Decoder:
        def __init__(self, file):
            self.metadata = types.SimpleNamespace(sample_rate=rate, duration_seconds=len(samples) / rate)

        def get_samples_played_in_range(self, start, stop):
            part = samples[round(start * rate) : round(stop * rate)]
            return types.SimpleNamespace(data=torch.from_numpy(part.T.copy()))

    module = types.ModuleType("torchcodec.decoders")
    module.AudioDecoder = Decoder
    monkeypatch.setitem(sys.modules, "torchcodec", types.ModuleType("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", module)


def test_format_that_soundfile_does_not_know_goes_to_torchcodec(tmp_path, monkeypatch):
    path = tmp_path / "a.m4a"
    path.write_bytes(BROKEN["m4a"][0])
    stereo = np.stack([noise(44100 * 3, 1), noise(44100 * 3, 2)], 1)
    fake_torchcodec(monkeypatch, stereo, 44100)
    processor = AudioProcessor(max_seconds=2.0)
    assert torch.equal(processor.decode(path), processor.decode((stereo, 44100)))
    ours = [samples for _, _, samples in processor.windows(path, 1, 0.5)]
    for a, (_, _, b) in zip(ours, processor.windows((stereo, 44100), 1, 0.5), strict=True):
        assert torch.equal(a, b)


def test_missing_torchcodec_is_named_with_its_extra(tmp_path, monkeypatch):
    path = tmp_path / "a.m4a"
    path.write_bytes(BROKEN["m4a"][0])
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(UserError, match=r"a\.m4a: no sound .* AAC, M4A and video: .*torchcodec"):
        AudioProcessor().decode(path)
