"""Sounds as arrays, and as files of the formats that soundfile writes."""

import io

import numpy as np
import soundfile

RATE = 16000
FORMATS = [
    ("WAV", "PCM_16"),
    ("FLAC", "PCM_16"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
    ("AIFF", "PCM_16"),
    ("W64", "PCM_16"),
    ("AU", "PCM_16"),
    ("CAF", "PCM_16"),
]


def tone(seconds: float, rate: int = RATE) -> np.ndarray:
    """(n,) float32: a tone that grows, so that no two parts are alike."""
    t = np.arange(round(seconds * rate)) / rate
    wave = np.sin(2 * np.pi * 440 * t) * (0.1 + 0.4 * t / seconds)
    return wave.astype(np.float32)


def noise(count: int, seed: int = 0) -> np.ndarray:
    """(n,) float32."""
    return np.random.default_rng(seed).uniform(-0.5, 0.5, count).astype(np.float32)


def encoded_sound(samples: np.ndarray, rate: int = RATE, form: str = "WAV", subtype: str | None = "PCM_16") -> bytes:
    """A file with samples (n,) or (n, channels)."""
    file = io.BytesIO()
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    with soundfile.SoundFile(file, "w", rate, channels, format=form, subtype=subtype) as sound:
        for start in range(0, len(samples), rate):  # libsndfile's Vorbis writer overflows its stack on long blocks
            sound.write(samples[start : start + rate])
    return file.getvalue()
