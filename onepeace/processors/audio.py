"""Converts sounds of any format, rate and number of channels to (N,) float32, mono, normalised; long files in windows.

Only the requested part is read: `decode` reads the first 15 seconds of an hour-long sound, and `windows` holds one
window at a time. Every window is normalised on its own, so it depends on nothing outside it.
"""

import logging
import math
import re
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from onepeace.errors import UserError
from onepeace.files import source
from onepeace.processors.endings import ENDINGS
from onepeace.processors.processor import Processor, lengths_if_padded
from onepeace.processors.sounds import WindowReader, mono, open_sound, resampler

logger = logging.getLogger(__name__)

EPS = 1e-5
SHORT_SECONDS, LONG_SECONDS = 0.5, 15.0
"""Lengths of examples, where the settings allow any."""
SLACK_SECONDS = 0.5
"""Seconds of a sound whose loss is not reported."""
# First bytes of the formats that soundfile reads, then of those that PyAV reads: MP4, Matroska and WebM, ASF, AVI, FLV,
# MPEG, AAC, AC-3, AMR, WavPack.
SIGNATURE = re.compile(
    rb"RIFF....WAVE|RF64|riff\x2e\x91\xcf\x11|fLaC|OggS|ID3|\xff[\xe2-\xe7\xf2-\xf7\xfa-\xff]|FORM....AIF[FC]|caff"
    rb"|\.snd|....ftyp(?:M4|mp4|iso|avc1|dash|qt|3g|MSNV|f4)|\x1aE\xdf\xa3|\x30\x26\xb2\x75|RIFF....AVI |FLV\x01"
    rb"|\0\0\x01[\xb3\xba]|\xff[\xf0\xf1\xf8\xf9]|\x0bw|#!AMR|wvpk",
    re.DOTALL,
)


class AudioProcessor(Processor):
    """Converts paths, http(s) URLs, bytes, (samples, rate), {"array": samples, "sampling_rate": rate} to waveforms.

    Samples are arrays or tensors of shape (n,), (channels, n) or (n, channels), the shorter side being the channels;
    floats, or integers scaled by the range of their type. max_seconds: length of the part that `decode` reads (None =
    all). min_seconds: shorter clips are repeated and cut to exactly this length. Only the part that is read is
    normalised: unlike in the original code, the first 15 seconds do not depend on minute ten.
    """

    key: ClassVar[str] = "audio"
    suffixes: ClassVar[frozenset[str]] = ENDINGS["audio"]

    def __init__(self, *, sample_rate: int = 16000, max_seconds: float | None = 15.0, min_seconds: float = 1.0) -> None:
        if sample_rate < 1:
            raise UserError(f"processors.audio.sample_rate is {sample_rate}; it must be positive")
        if min_seconds < 0 or (max_seconds is not None and not max_seconds >= min_seconds > 0):
            raise UserError(
                f"processors.audio.min_seconds {min_seconds} and max_seconds {max_seconds} must be above 0 and in order"
            )
        self.sample_rate = sample_rate
        self.max_seconds = max_seconds
        self.min_seconds = min_seconds
        self.report_cut = True
        """Whether the next sound longer than `max_seconds` is reported."""

    @classmethod
    def matches(cls, item: object) -> bool:
        if isinstance(item, (bytes, bytearray, memoryview)):
            return SIGNATURE.match(item) is not None
        return isinstance(item, tuple) or (isinstance(item, dict) and "array" in item)

    def decode(self, item: object) -> Tensor:
        """(N,) float32 of the first `max_seconds`, normalised, at least `min_seconds` long.

        Only the first sound that is longer is reported.
        """
        samples, duration = self._beginning(item, self.max_seconds)
        if self.report_cut and self.max_seconds is not None and duration > self.max_seconds + SLACK_SECONDS:
            self.report_cut = False
            logger.warning(
                "%s: only the first %g of %.0f seconds are read (said once)",
                source.describe(item),
                self.max_seconds,
                duration,
            )
        return self.finish(samples)

    def load(self, item: object, seconds: float | None = None) -> Tensor:
        """(N,) float32: the first `seconds` of sound, or all of it, mono, resampled, not normalised.

        Only this part is read; `UserError` if it is damaged, or contains NaN or infinite samples.
        """
        return self._beginning(item, seconds)[0]

    def _beginning(self, item: object, seconds: float | None) -> tuple[Tensor, float]:
        """The samples of `load`, and the duration of the whole sound in seconds."""
        name = source.describe(item)
        if not (seconds is None or 0 < seconds < math.inf):
            raise UserError(f"seconds must be above 0, got {seconds}", where=name)
        with open_sound(item, name) as sound:
            count = sound.frames
            if seconds is not None:
                count = min(math.ceil(seconds * sound.rate), sound.frames)
            samples = self._resample(mono(sound.read(count), name), sound.rate)
            duration = sound.frames / sound.rate
        if seconds is not None:
            samples = samples[: self._samples(seconds)]
        return samples, duration

    def finish(self, samples: Tensor) -> Tensor:
        """A window of raw samples as the model reads it: (x - mean) / sqrt(biased variance + 1e-5), then repeated up to
        `min_seconds`."""
        return self._fill(torch.nn.functional.layer_norm(samples, samples.shape, eps=EPS))

    def windows(
        self, item: object, window: float | None = None, hop: float | None = None
    ) -> Iterator[tuple[float, float, Tensor]]:
        """(start second, end second, samples as from `finish`) of windows that begin every `hop` seconds.

        By default, `window` is `max_seconds`, and `hop` is `window`. The file is read once, from front to back, one
        window in memory at a time. The last window is the first that reaches the end of the sound; if it is shorter
        than `window`, it is kept only if it has at least `min_seconds` or is the only one, so a tail shorter than
        `min_seconds` may be dropped.
        """
        name = source.describe(item)
        window, hop = self._window_and_hop(name, window, hop)
        with open_sound(item, name) as sound:
            reader = WindowReader(sound, name)
            rate = sound.rate
            frames_per_window = math.ceil(window * rate)
            for number in range(math.ceil(sound.frames / rate / hop)):
                first_frame = round(number * hop * rate)
                count = min(frames_per_window, sound.frames - first_frame)
                is_short_tail = number > 0 and count < min(frames_per_window, self.min_seconds * rate)
                if count <= 0 or is_short_tail:
                    return
                frames = reader.read(first_frame, count)
                if not len(frames):
                    return
                samples = self._resample(frames, rate)[: self._samples(window)]
                yield first_frame / rate, (first_frame + count) / rate, self.finish(samples)
                if first_frame + count >= sound.frames:
                    return

    def _window_and_hop(self, name: str, window: float | None, hop: float | None) -> tuple[float, float]:
        """Seconds of a window, and between the starts of two; UserError if they are below a sample or not finite."""
        if window is None:
            window = self.max_seconds
        if window is None:
            raise UserError("this model sets no length of sounds; give window= in seconds")
        if hop is None:
            hop = window
        shortest = 1 / self.sample_rate
        if not (shortest <= window < math.inf and shortest <= hop < math.inf):
            raise UserError(
                f"window and hop must be finite, at least one sample ({shortest:g} s), got {window} and {hop}",
                where=name,
            )
        return window, hop

    def collate(self, samples: list[Tensor]) -> dict[str, Tensor]:
        """{"waveform": (B, N)}; if padded (with 0 on the right), also "lengths": (B,) int64 numbers of samples."""
        batch = {"waveform": torch.nn.utils.rnn.pad_sequence(samples, batch_first=True)}
        return batch | lengths_if_padded(samples)

    def example(self, share: float, generator: torch.Generator) -> Tensor:
        shortest = max(self.min_seconds, SHORT_SECONDS)
        longest = LONG_SECONDS if self.max_seconds is None else max(self.max_seconds, shortest)
        return torch.randn(self._samples(shortest + share * (longest - shortest)), generator=generator)

    @property
    def rules(self) -> str:
        return (
            "The first max_seconds, mono (the mean of the channels) at sample_rate. Then (x - mean) / sqrt(variance + "
            "1e-5) over all of it; shorter than min_seconds: repeated and cut there. waveform is padded on the right "
            "with 0; lengths counts the samples of each sound."
        )

    def _samples(self, seconds: float) -> int:
        return round(seconds * self.sample_rate)

    def _fill(self, samples: Tensor) -> Tensor:
        least = self._samples(self.min_seconds)
        if len(samples) >= least:
            return samples
        return samples.repeat(math.ceil(least / len(samples)))[:least]

    def _resample(self, samples: Tensor, rate: int) -> Tensor:
        if rate == self.sample_rate:
            return samples
        return resampler(rate, self.sample_rate)(samples)
