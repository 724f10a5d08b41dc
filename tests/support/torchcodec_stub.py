"""As much of torchcodec as the datasets library asks for to keep sounds, on soundfile: torchcodec needs ffmpeg."""

import io
import sys
import types

import numpy as np
import soundfile
import torch


class AudioEncoder:
    def __init__(self, samples, *, sample_rate):
        self.samples, self.rate = samples, sample_rate

    def to_file_like(self, file, format, num_channels=None):
        soundfile.write(file, np.atleast_2d(self.samples.numpy()).T, self.rate, format=format.upper(), subtype="FLOAT")


class AudioDecoder:
    def __init__(self, source, *, stream_index=None, sample_rate=None, num_channels=None):
        samples, self.rate = soundfile.read(io.BytesIO(source), dtype="float32", always_2d=True)
        assert sample_rate in (None, self.rate)
        self.samples, self.metadata = torch.from_numpy(samples.T.copy()), types.SimpleNamespace()

    def get_all_samples(self):
        return types.SimpleNamespace(data=self.samples, sample_rate=self.rate)

    def get_samples_played_in_range(self, start, end):
        return self.get_all_samples()


def install(monkeypatch):
    """In place of torchcodec until the test ends."""
    import datasets

    class VideoDecoder:
        pass

    decoders = types.SimpleNamespace(AudioDecoder=AudioDecoder, VideoDecoder=VideoDecoder)
    encoders = types.SimpleNamespace(AudioEncoder=AudioEncoder)
    for name, content in {"": {"decoders": decoders}, ".decoders": vars(decoders), ".encoders": vars(encoders)}.items():
        module = types.ModuleType(f"torchcodec{name}")
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(datasets.config, "TORCHCODEC_AVAILABLE", True)
