"""As much of torchcodec as the datasets library asks for to keep sounds, on soundfile: torchcodec needs ffmpeg."""

import io
import sys
import types

import numpy as np
import soundfile
import torch


class AudioEncoder:
    def __init__(self, samples, *, sample_rate):
        self.samples = samples
        self.rate = sample_rate

    def to_file_like(self, file, format, num_channels=None):
        channels = np.atleast_2d(self.samples.numpy())
        soundfile.write(file, channels.T, self.rate, format=format.upper(), subtype="FLOAT")


class AudioDecoder:
    def __init__(self, source, *, stream_index=None, sample_rate=None, num_channels=None):
        samples, self.rate = soundfile.read(io.BytesIO(source), dtype="float32", always_2d=True)
        assert sample_rate in (None, self.rate)
        self.samples = torch.from_numpy(samples.T.copy())
        self.metadata = types.SimpleNamespace()

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
    contents = {
        "torchcodec": {"decoders": decoders},
        "torchcodec.decoders": vars(decoders),
        "torchcodec.encoders": vars(encoders),
    }
    for name, content in contents.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(datasets.config, "TORCHCODEC_AVAILABLE", True)
