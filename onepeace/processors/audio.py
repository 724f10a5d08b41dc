"""Converts sounds of any format, rate and number of channels to (N,) float32, mono, normalised; long files in windows.

Only the requested part is read: `decode` reads the first 15 seconds of an hour-long sound, and `windows` holds one
window at a time. Every window is normalised on its own, so it depends on nothing outside it.
"""

import io
import logging
import math
import numbers
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, BinaryIO, ClassVar

import numpy as np
import torch
from torch import Tensor

from onepeace.errors import UserError, need
from onepeace.files import source
from onepeace.files.sound_stream import MAX_CHANNELS, SoundStream
from onepeace.processors.endings import ENDINGS
from onepeace.processors.processor import Processor, lengths_if_padded
from onepeace.processors.resample import Resample

if TYPE_CHECKING:
    from soundfile import SoundFile


logger = logging.getLogger(__name__)

MAX_RATE = 1_000_000
MIN_FILE_RATE = 1000
"""Minimum samples per second of a file: at a rate of 1, one of 32 KB would be a sound of hours."""
EPS = 1e-5
# Many headers are off by a few bytes or MP3 frames; a file that lacks more than this was cut off.
SLACK_BYTES = 1024
SLACK_FRAMES = 4608
SLACK_SECONDS = 0.5
"""Seconds of a sound whose loss is not reported."""
STREAMED = 0x7FFFF000
"""Sizes from this one on mean "not known when the header was written", as in piped sound."""
KERNEL_LIMIT = 1 << 21
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
        if source.suffix(item) in cls.suffixes:
            return True
        if isinstance(item, (bytes, bytearray, memoryview)):
            return SIGNATURE.match(item) is not None
        if isinstance(item, os.PathLike):
            try:
                with open(source.local_path(item), "rb") as file:
                    return SIGNATURE.match(file.read(16)) is not None
            except (OSError, UserError):
                return False
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
            raise UserError(f"{name}: seconds must be above 0, got {seconds}")
        with _open(item, name) as sound:
            count = sound.frames if seconds is None else min(math.ceil(seconds * sound.rate), sound.frames)
            samples = self._resample(_mono(sound.read(count), name), sound.rate)
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
        window = self.max_seconds if window is None else window
        if window is None:
            raise UserError("this model sets no length of sounds; give window= in seconds")
        hop = window if hop is None else hop
        shortest = 1 / self.sample_rate
        if not (shortest <= window < math.inf and shortest <= hop < math.inf):
            raise UserError(
                f"{name}: window and hop must be finite, at least one sample ({shortest:g} s), got {window} and {hop}"
            )
        with _open(item, name) as sound:
            length, rate = math.ceil(window * sound.rate), sound.rate
            held, at = torch.empty(0), 0  # samples read and still needed, and the frame of the first
            for k in range(math.ceil(sound.frames / rate / hop)):
                first = round(k * hop * rate)
                count = min(length, sound.frames - first)
                if count <= 0 or (k > 0 and count < min(length, self.min_seconds * rate)):
                    break
                for skipped in range(at + len(held), first, rate):
                    sound.read(min(rate, first - skipped))
                held, at = held[first - at :], first
                held = torch.cat([held, _mono(sound.read(count - len(held)), name)])
                if not len(held):
                    break
                samples = self._resample(held[:count], rate)[: self._samples(window)]
                yield first / rate, (first + count) / rate, self.finish(samples)
                if first + count >= sound.frames:
                    break

    def collate(self, samples: list[Tensor]) -> dict[str, Tensor]:
        """{"waveform": (B, N)}; if padded (with 0 on the right), also "lengths": (B,) int64 numbers of samples."""
        batch = {"waveform": torch.nn.utils.rnn.pad_sequence(samples, batch_first=True)}
        return batch | lengths_if_padded(samples)

    def _samples(self, seconds: float) -> int:
        return round(seconds * self.sample_rate)

    def _fill(self, samples: Tensor) -> Tensor:
        least = self._samples(self.min_seconds)
        return samples if len(samples) >= least else samples.repeat(math.ceil(least / len(samples)))[:least]

    def _resample(self, samples: Tensor, rate: int) -> Tensor:
        return samples if rate == self.sample_rate else _resampler(rate, self.sample_rate)(samples)


@contextmanager
def _open(item: object, name: str) -> "Iterator[_Array | _File | SoundStream]":
    """An open sound with `rate`, `frames` and `read`, which returns the next frames, (n,) or (n, channels) float32."""
    if isinstance(item, dict):
        if not {"array", "sampling_rate"} <= item.keys():
            raise UserError(f"{name}: a sound as a dict has the keys 'array' and 'sampling_rate', got {list(item)}")
        item = (item["array"], item["sampling_rate"])
    if isinstance(item, tuple):
        if len(item) != 2 or isinstance(item[0], numbers.Number):
            raise UserError(f"{name}: a sound as a tuple is (samples, rate)")
        yield _Array(item[0], _checked_rate(item[1], name), name)
        return
    if isinstance(item, (np.ndarray, Tensor)):
        raise UserError(f"{name}: samples need their rate; give (samples, rate)")
    if isinstance(item, (str, os.PathLike)) and not source.scheme(item):
        file: str | BinaryIO = str(source.local_path(item))
        empty = os.path.getsize(str(file)) == 0
    elif source.is_open_file(item):
        file = item
        empty = file.seek(0, os.SEEK_END) == 0
        file.seek(0)
    else:
        content = source.read_bytes(item)
        file = io.BytesIO(content)
        empty = not content
    if empty:
        raise UserError(f"{name}: the file is empty (0 bytes)")
    import soundfile

    try:
        # soundfile encodes a str as UTF-8, and a name may contain bytes that are not UTF-8.
        sound = soundfile.SoundFile(os.fsencode(file) if isinstance(file, str) and os.name == "posix" else file)
    except (soundfile.SoundFileError, TypeError, OSError) as error:  # TypeError: "x.raw" is read as headerless
        reason = getattr(error, "error_string", "format not recognised").rstrip(".")
    else:
        with sound:
            _checked_rate(sound.samplerate, name, MIN_FILE_RATE)
            yield _File(sound, name)
        return
    if "not recognised" not in reason:  # a known format, but damaged
        reason = "damaged MP3" if "not a regular file" in reason else reason
        raise UserError(f"{name}: the sound cannot be opened ({reason})")
    need("av", "media", f"{name}: no sound that soundfile knows; AAC, M4A, WMA and video")
    with ExitStack() as resources:
        stream = SoundStream(file, name, resources)
        _checked_rate(stream.rate, name, MIN_FILE_RATE)
        yield stream


class _Array:
    """Samples in memory, converted to float32 as they are read."""

    def __init__(self, samples: object, rate: int, name: str) -> None:
        self.rate = rate
        if isinstance(samples, Tensor):
            samples = samples.detach().cpu()
            samples = (samples.float() if samples.dtype == torch.bfloat16 else samples).numpy()
        try:
            array = np.asarray(samples)
        except ValueError as error:
            raise UserError(f"{name}: samples must form one array ({error})") from error
        if array.dtype.kind not in "fiu" or (array.dtype.kind != "f" and array.dtype.itemsize > 4):
            raise UserError(f"{name}: samples must be floats or integers of up to 32 bits, got {array.dtype}")
        if array.size == 0:
            raise UserError(f"{name}: 0 samples; nothing to embed")
        if array.ndim == 1:
            array = array[:, None]
        if array.ndim != 2 or (array.shape[0] == array.shape[1] > 1) or min(array.shape) > MAX_CHANNELS:
            raise UserError(
                f"{name}: samples must be (n,), (channels, n) or (n, channels) with at most {MAX_CHANNELS} channels "
                f"and fewer channels than samples, got {array.shape}"
            )
        self.samples = array if array.shape[0] >= array.shape[1] else array.T
        self.frames = len(self.samples)
        self.position = 0

    def read(self, count: int) -> np.ndarray:
        part = self.samples[self.position : self.position + count]
        self.position += len(part)
        if part.dtype.kind == "f":
            with np.errstate(over="ignore"):  # becomes infinite, which is refused later
                return part.astype(np.float32)
        half = 2.0 ** (8 * part.dtype.itemsize - 1)
        return (part / half - (1.0 if part.dtype.kind == "u" else 0.0)).astype(np.float32)


class _File:
    """A file that soundfile reads."""

    def __init__(self, sound: "SoundFile", name: str) -> None:
        self.sound, self.name = sound, name
        self.rate, self.frames = sound.samplerate, sound.frames
        self.position = 0
        # Otherwise soundfile seeks to its position after every read; in Ogg and MP3, libsndfile 1.2.2 may miss it.
        sound.seekable = lambda: False  # type: ignore[method-assign]
        if self.frames == 0:
            raise UserError(f"{name}: 0 samples; nothing to embed")
        if sound.channels > MAX_CHANNELS:
            raise UserError(f"{name}: {sound.channels} channels are above the limit of {MAX_CHANNELS}")
        for claimed, present in re.findall(r"(\d+) \(should be (\d+)\)", sound.extra_info):
            if SLACK_BYTES < int(claimed) - int(present) and int(claimed) < STREAMED:
                raise UserError(f"{name}: the file is cut off (its header says {claimed} bytes, {present} are there)")

    def read(self, count: int) -> np.ndarray:
        try:
            data = self.sound.read(count, dtype="float32", always_2d=True)
        except (RuntimeError, OSError) as error:
            reason = getattr(error, "error_string", str(error))
            raise UserError(f"{self.name}: the sound cannot be decoded ({reason.rstrip('.')})") from error
        self.position += len(data)
        if len(data) < count:
            if self.position < max(self.frames - SLACK_FRAMES, 1):
                raise UserError(
                    f"{self.name}: the file is cut off (its header says {self.frames} samples, "
                    f"the data ends after {self.position})"
                )
            self.frames = self.position  # the sound ends slightly earlier than the header says
        return data


def _mono(samples: np.ndarray, name: str) -> Tensor:
    """The mean of the channels, (n, channels) or (n,) -> (n,); `UserError` if it is not finite."""
    if samples.ndim == 2:
        samples = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)
    mono = torch.from_numpy(np.ascontiguousarray(samples))
    if not torch.isfinite(mono).all():
        bad = int((~torch.isfinite(mono)).sum())
        raise UserError(f"{name}: {bad} of {len(mono)} samples are NaN or infinite")
    return mono


@lru_cache(maxsize=16)
def _resampler(rate: int, target: int) -> Resample:
    """Band-limited resampler, cached by rate.

    The kernel has (rate * target / gcd^2) numbers. Odd rates such as 44,101 Hz would need gigabytes; they are replaced
    by a ratio of smaller numbers, which changes the pitch by less than 0.1 %.
    """
    ratio = Fraction(rate, target)
    if ratio.numerator * ratio.denominator > KERNEL_LIMIT:
        ratio = ratio.limit_denominator(math.isqrt(KERNEL_LIMIT * target // rate))
    return Resample(ratio.numerator, ratio.denominator)


def _checked_rate(rate: object, name: str, least: int = 1) -> int:
    try:
        number = float(rate)  # type: ignore[arg-type]  # numpy's numbers and tensors too
    except (TypeError, ValueError):
        number = math.nan
    if not least <= number <= MAX_RATE or number != int(number):  # a NaN compares as False
        raise UserError(f"{name}: the sample rate must be a whole number from {least} to {MAX_RATE}, got {rate!r}")
    return int(number)
