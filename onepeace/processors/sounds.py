"""Opens sounds of any kind (arrays, files, bytes, URLs) for reading from front to back, and resamples them."""

import io
import math
import numbers
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onepeace.errors import UserError, need
from onepeace.files import source
from onepeace.files.container import MAX_CHANNELS, SoundStream

if TYPE_CHECKING:
    from soundfile import SoundFile

MAX_RATE = 1_000_000
LOUDEST = 1e15
"""Absolute value above which samples cannot be normalised: their squares are not numbers of float32."""
MIN_FILE_RATE = 1000
"""Minimum samples per second of a file: at a rate of 1, one of 32 KB would be a sound of hours."""
# Many headers are off by a few bytes or MP3 frames; a file that lacks more than this was cut off.
SLACK_BYTES = 1024
SLACK_FRAMES = 4608
STREAMED = 0x7FFFF000
"""Sizes from this one on mean "not known when the header was written", as in piped sound."""


class ArraySound:
    """Samples in memory, converted to float32 as they are read.

    Args:
        samples: (n,), (channels, n) or (n, channels), an array or tensor of floats or integers.
        rate: samples per second.
        name: in messages.
    """

    def __init__(self, samples: object, rate: int, name: str) -> None:
        array = _checked_array(samples, name)
        self.rate = rate
        self.samples = array if array.shape[0] >= array.shape[1] else array.T
        self.frames = len(self.samples)
        self.position = 0

    def read(self, count: int) -> np.ndarray:
        """The next frames, (n, channels) float32, ``count`` or those that are left."""
        part = self.samples[self.position : self.position + count]
        self.position += len(part)
        if part.dtype.kind == "f":
            with np.errstate(over="ignore"):  # becomes infinite, which is refused later
                return part.astype(np.float32)
        half_range = 2.0 ** (8 * part.dtype.itemsize - 1)
        middle = 1.0 if part.dtype.kind == "u" else 0.0
        return (part / half_range - middle).astype(np.float32)


def _checked_array(samples: object, name: str) -> np.ndarray:
    """Samples as a matrix; UserError if they are not numbers, or neither side can be the channels."""
    if isinstance(samples, Tensor):
        samples = samples.detach().cpu()
        if samples.dtype == torch.bfloat16:
            samples = samples.float()
        samples = samples.numpy()
    try:
        array = np.asarray(samples)
    except ValueError as error:
        raise UserError(f"samples must form one array ({error})", where=name) from error
    is_float = array.dtype.kind == "f"
    is_integer = array.dtype.kind in "iu" and array.dtype.itemsize <= 4
    if not is_float and not is_integer:
        raise UserError(f"samples must be floats or integers of up to 32 bits, got {array.dtype}", where=name)
    if array.size == 0:
        raise UserError("0 samples; nothing to embed", where=name)
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or (array.shape[0] == array.shape[1] > 1) or min(array.shape) > MAX_CHANNELS:
        raise UserError(
            f"samples must be (n,), (channels, n) or (n, channels) with at most {MAX_CHANNELS} channels "
            f"and fewer channels than samples, got {array.shape}",
            where=name,
        )
    return array


class FileSound:
    """A file that soundfile reads.

    Raises:
        UserError: it is empty, has too many channels, or is cut off.
    """

    def __init__(self, sound: "SoundFile", name: str) -> None:
        self.sound = sound
        self.name = name
        self.rate = sound.samplerate
        self.frames = sound.frames
        self.position = 0
        # Otherwise soundfile seeks to its position after every read; in Ogg and MP3, libsndfile 1.2.2 may miss it.
        sound.seekable = lambda: False  # type: ignore[method-assign]
        if self.frames == 0:
            raise UserError("0 samples; nothing to embed", where=name)
        if sound.channels > MAX_CHANNELS:
            raise UserError(f"{sound.channels} channels are above the limit of {MAX_CHANNELS}", where=name)
        for claimed, present in re.findall(r"(\d+) \(should be (\d+)\)", sound.extra_info):
            if SLACK_BYTES < int(claimed) - int(present) and int(claimed) < STREAMED:
                raise UserError(
                    f"the file is cut off (its header says {claimed} bytes, {present} are there)", where=name
                )

    def read(self, count: int) -> np.ndarray:
        """The next frames, (n, channels) float32, ``count`` or those that are left.

        Raises:
            UserError: the file is damaged, or cut off.
        """
        try:
            data = self.sound.read(count, dtype="float32", always_2d=True)
        except (RuntimeError, OSError) as error:
            reason = getattr(error, "error_string", str(error))
            raise UserError(f"the sound cannot be decoded ({reason.rstrip('.')})", where=self.name) from error
        self.position += len(data)
        if len(data) < count:
            if self.position < max(self.frames - SLACK_FRAMES, 1):
                raise UserError(
                    f"the file is cut off (its header says {self.frames} samples, the data ends after {self.position})",
                    where=self.name,
                )
            self.frames = self.position  # the sound ends slightly earlier than the header says
        return data


Sound: TypeAlias = ArraySound | FileSound | SoundStream
"""An open sound, with ``rate``, ``frames``, and ``read(count)``, which returns the next frames."""


@contextmanager
def open_sound(item: object, name: str) -> Iterator[Sound]:
    """Context of an open sound.

    Args:
        item: see `onepeace.processors.AudioProcessor`.
        name: in messages.

    Raises:
        UserError: it is not a sound, or cannot be opened.
    """
    if isinstance(item, dict):
        if not {"array", "sampling_rate"} <= item.keys():
            raise UserError(f"a sound as a dict has the keys 'array' and 'sampling_rate', got {list(item)}", where=name)
        item = (item["array"], item["sampling_rate"])
    if isinstance(item, (np.ndarray, Tensor)):
        raise UserError("samples need their rate; give (samples, rate)", where=name)
    if isinstance(item, tuple):
        if len(item) != 2 or isinstance(item[0], numbers.Number):
            raise UserError("a sound as a tuple is (samples, rate)", where=name)
        yield ArraySound(item[0], checked_rate(item[1], name), name)
        return
    file = _file_of(item, name)
    sound = _open_with_soundfile(file, name)
    if sound is not None:
        with sound:
            checked_rate(sound.samplerate, name, MIN_FILE_RATE)
            yield FileSound(sound, name)
        return
    need("av", "media", name)  # AAC, M4A, WMA, the sound of a video, or no sound at all
    with ExitStack() as resources:
        stream = SoundStream(file, name, resources)
        checked_rate(stream.rate, name, MIN_FILE_RATE)
        yield stream


def _file_of(item: object, name: str) -> str | BinaryIO:
    """The path of a file, or its content, at its beginning. UserError if it is empty."""
    file: str | BinaryIO
    if isinstance(item, (str, os.PathLike)) and not source.scheme(item):
        file = str(source.local_path(item))
        is_empty = os.path.getsize(file) == 0
    elif source.is_open_file(item):
        file = item
        is_empty = file.seek(0, os.SEEK_END) == 0
        file.seek(0)
    else:
        content = source.read_bytes(item)
        file = io.BytesIO(content)
        is_empty = not content
    if is_empty:
        raise UserError("the file is empty (0 bytes)", where=name)
    return file


def _open_with_soundfile(file: str | BinaryIO, name: str) -> "SoundFile | None":
    """The sound in a file; None if soundfile does not know its format. UserError if it is damaged."""
    import soundfile

    # soundfile encodes a str as UTF-8, and a name may contain bytes that are not UTF-8.
    path_or_file = os.fsencode(file) if isinstance(file, str) and os.name == "posix" else file
    try:
        return soundfile.SoundFile(path_or_file)
    except (soundfile.SoundFileError, TypeError, OSError) as error:  # TypeError: "x.raw" is read as headerless
        reason = getattr(error, "error_string", "format not recognised").rstrip(".")
    if "not recognised" in reason:
        return None
    if "not a regular file" in reason:
        reason = "damaged MP3"
    raise UserError(f"the sound cannot be opened ({reason})", where=name)


def mono(samples: np.ndarray, name: str) -> Tensor:
    """The mean of the channels, (n, channels) or (n,) -> (n,); `UserError` if it is not finite, or above `LOUDEST`."""
    if samples.ndim == 2:
        samples = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)
    mean = torch.from_numpy(np.ascontiguousarray(samples))
    largest = float(mean.abs().max()) if len(mean) else 0.0
    if not math.isfinite(largest):
        count = int((~torch.isfinite(mean)).sum())
        raise UserError(f"{count} of {len(mean)} samples are NaN or infinite", where=name)
    if largest > LOUDEST:
        raise UserError(f"samples of up to {largest:g}; those of a sound are from -1 to 1", where=name)
    return mean


def checked_rate(rate: object, name: str, least: int = 1) -> int:
    """A sample rate as an integer; UserError if it is not a whole number from ``least`` to `MAX_RATE`."""
    try:
        number = float(rate)  # type: ignore[arg-type]  # numpy's numbers and tensors too
    except (TypeError, ValueError):
        number = math.nan
    if not least <= number <= MAX_RATE or number != int(number):  # a NaN compares as False
        raise UserError(f"the sample rate must be a whole number from {least} to {MAX_RATE}, got {rate!r}", where=name)
    return int(number)


class WindowReader:
    """Reads windows of a sound from front to back; only the samples of the current one are in memory."""

    def __init__(self, sound: Sound, name: str) -> None:
        self._sound = sound
        self._name = name
        self._samples = torch.empty(0)
        """Samples that were read, from frame `_first_frame` on, and are still needed."""
        self._first_frame = 0

    def read(self, first_frame: int, count: int) -> Tensor:
        """(n,) float32, mono: up to ``count`` frames from ``first_frame`` on, which never moves back."""
        end = self._first_frame + len(self._samples)
        while end < first_frame:
            num_skipped = min(self._sound.rate, first_frame - end)  # a second at a time
            self._sound.read(num_skipped)
            end += num_skipped
        kept = self._samples[first_frame - self._first_frame :]
        new = mono(self._sound.read(count - len(kept)), self._name)
        self._samples = torch.cat([kept, new])
        self._first_frame = first_frame
        return self._samples[:count]


ROLLOFF = 0.99
"""Cut-off frequency as a share of the lower of the two Nyquist frequencies."""
ZERO_CROSSINGS = 6
"""Zero crossings of the sinc on each side; the Hann window ends there."""
KERNEL_LIMIT = 1 << 21
"""Numbers of a kernel above which the ratio of the rates is replaced by a simpler one."""


class Resample(nn.Module):
    """Resamples from the rate ``old`` to the rate ``new``: (..., n) to (..., ceil(n * new / old)).

    Rates are whole numbers and should be in lowest terms: the kernel holds ``new`` filters of about
    ``2 * ZERO_CROSSINGS * max(old / new, 1) + old`` taps. The method is that of J. O. Smith, "Digital Audio
    Resampling", with the defaults of torchaudio: outputs equal those of its ``Resample``.
    """

    kernel: Tensor

    def __init__(self, old: int, new: int) -> None:
        super().__init__()
        self.old = old
        self.new = new
        cutoff = min(old, new) * ROLLOFF
        self.width = math.ceil(ZERO_CROSSINGS * old / cutoff)
        phases = torch.arange(new)[:, None] / new  # float32, as in torchaudio: vectors of indexes stay valid
        taps = torch.arange(-self.width, self.width + old, dtype=torch.float64) / old
        time = ((taps - phases) * cutoff).clamp(-ZERO_CROSSINGS, ZERO_CROSSINGS)
        window = torch.cos(time * math.pi / (2 * ZERO_CROSSINGS)) ** 2
        kernel = torch.sinc(time) * window * (cutoff / old)
        self.register_buffer("kernel", kernel[:, None].float(), persistent=False)

    def forward(self, samples: Tensor) -> Tensor:
        *leading, num_samples = samples.shape
        rows = samples.reshape(-1, 1, num_samples)
        padded = F.pad(rows, (self.width, self.width + self.old))
        phases = F.conv1d(padded, self.kernel, stride=self.old)  # (rows, new, frames)
        resampled = phases.transpose(1, 2).flatten(1)
        length = math.ceil(self.new * num_samples / self.old)
        return resampled[:, :length].reshape(*leading, length)


@lru_cache(maxsize=16)
def resampler(rate: int, target: int) -> Resample:
    """Band-limited resampler between two rates, cached.

    The kernel has (rate * target / gcd^2) numbers. Odd rates such as 44,101 Hz would need gigabytes; they are replaced
    by a ratio of smaller numbers, which changes the pitch by less than 0.1 %.
    """
    ratio = Fraction(rate, target)
    if ratio.numerator * ratio.denominator > KERNEL_LIMIT:
        ratio = ratio.limit_denominator(math.isqrt(KERNEL_LIMIT * target // rate))
    return Resample(ratio.numerator, ratio.denominator)
