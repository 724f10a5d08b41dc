"""Containers of sounds and videos (MP4, Matroska, ASF, AVI, ...), opened by PyAV, which includes its own ffmpeg; and
the sound in them (AAC, WMA, Opus, the sound track of a video), decoded from front to back (`SoundStream`).

Only formats that contain their streams are allowed: ffmpeg also reads lists of other files and of URLs ("ffconcat
version 1.0", HLS), which it recognises by their content, regardless of the file name.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from fractions import Fraction
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast

import numpy as np

from onepeace.errors import UserError, need, reason_of
from onepeace.files.source import is_open_file

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.video.stream import VideoStream

FORMATS = "mov,matroska,asf,avi,flv,mpeg,mpegts,mpegvideo,aac,ac3,eac3,amr,wv"
"""Formats that may be opened, by ffmpeg's names. Those that soundfile reads (WAV, FLAC, Ogg, MP3, ...) are omitted."""
GENERIC_INDEX = 0x0100
"""ffmpeg's flag of formats without a header for the whole file: durations are estimated from the bit rate."""
MAX_PIXELS = 178_956_970
"""Maximum pixels of a frame of a video or a raw picture; Pillow has the same limit for other pictures."""
LIMITS = {"max_pixels": str(MAX_PIXELS)}
NOTHING = np.zeros(0, np.float32)
MAX_CHANNELS = 32
MAX_PLANES = 8
"""Maximum planar channels: PyAV 18 reads past the end of a longer list of them."""
SAMPLE_TYPES = {
    "u8": (np.uint8, 128.0, 128.0),
    "s16": (np.int16, 0.0, 2.0**15),
    "s32": (np.int32, 0.0, 2.0**31),
    "flt": (np.float32, 0.0, 1.0),
    "dbl": (np.float64, 0.0, 1.0),
}
"""ffmpeg's sample formats: type, value of silence, and full scale above it."""
GAPS = (0.5, 600.0)
"""Seconds of silence inserted where time stamps leave a gap: minimum of a single gap, and maximum of all together.
Smaller gaps are due to rounding and to samples that decoders drop at the start, larger ones to clocks that jumped."""


@contextmanager
def open_container(file: str | os.PathLike[str] | BinaryIO, name: str) -> "Iterator[InputContainer]":
    """Open the container at a path, or in an open file or memory, which stay open; `name` is used in messages.

    Raises:
        UserError: PyAV is missing, or the file cannot be opened, is empty, or has a format that is not allowed.
    """
    av = need("av", "media", name)
    try:
        # ffmpeg gets no path, which it could interpret as a URL or as a pattern for many files.
        opened = nullcontext(file) if is_open_file(file) else open(cast("str", file), "rb")
    except OSError as error:
        raise UserError(f"cannot be opened ({reason_of(error)})", where=name) from error
    with opened as handle:
        if handle.seek(0, os.SEEK_END) == 0:
            raise UserError("the file is empty (0 bytes)", where=name)
        handle.seek(0)
        try:
            container = av.open(handle, "r", metadata_errors="replace", container_options={"format_whitelist": FORMATS})
        except (av.error.InvalidDataError, av.error.ArgumentError) as error:  # the latter: format not allowed
            raise UserError("not a sound or video of a known format, or damaged", where=name) from error
        except Exception as error:  # damaged headers may also cause a lack of memory
            raise UserError(f"the sound or video cannot be opened ({reason_of(error)})", where=name) from error
        with container:
            yield container


@contextmanager
def decoding(name: str, failed: str) -> Iterator[None]:
    """Context that turns any error of ffmpeg into a `UserError`: the file ``name``, what ``failed``, and why."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{failed} ({reason_of(error)})", where=name) from error


def choose(container: "InputContainer", stream_type: Literal["audio", "video"]) -> Any:
    """The stream of `stream_type` ("audio" or "video") that a player would choose; packets of the others are discarded.

    None if there is no such stream that can be decoded. The picture of an album's cover is not a video.
    """
    from av.stream import Discard, Disposition

    usable = (
        stream
        for stream in (container.streams.best(stream_type), *getattr(container.streams, stream_type))
        if stream is not None and stream.codec_context and not stream.disposition & Disposition.attached_pic
    )
    chosen = next(usable, None)
    if chosen is not None:
        chosen.codec_context.options = LIMITS
        for other in container.streams:
            if other.index != chosen.index:
                other.discard = Discard.all
    return chosen


def declared_duration(container: "InputContainer", stream: "AudioStream | VideoStream | None" = None) -> float | None:
    """Seconds from the start of the container to the end of a stream, or of the whole, by the header.

    None if the header has no duration, or an unreliable one.
    """
    if container.format.flags & GENERIC_INDEX:
        return None
    if stream is not None and stream.duration:
        return float(((stream.start_time or 0) + stream.duration) * tick(stream)) - start_of(container)
    return container.duration / 1e6 if container.duration else None


def counted_duration(container: "InputContainer", stream: "AudioStream | VideoStream") -> float:
    """Seconds from the start of the container to the end of a stream's last packet; reads the whole file."""
    end = 0.0
    for packet in container.demux(stream):
        if packet.pts is not None:
            end = max(end, float((packet.pts + (packet.duration or 0)) * tick(stream)))
    return max(end - start_of(container), 0.0)


def tick(stream: "AudioStream | VideoStream") -> Fraction:
    """Seconds per step of a stream's time stamps."""
    return stream.time_base or Fraction(0)


def start_of(container: "InputContainer") -> float:
    """Time in seconds at which the container begins, on the clock of its streams; 0 in most."""
    return (container.start_time or 0) / 1e6


class SoundStream:
    """Samples of the mean of all channels, with one block of them in memory at a time.

    Time is that of the container: a track that begins two seconds after the pictures begins with two seconds of
    silence, so that second 10 of the sound belongs to the picture of second 10.

    rate: samples per second. frames: number of samples, by the header until the end has been reached. `resources`
    closes the file. `UserError` if there is no sound, or it cannot be decoded.
    """

    def __init__(self, file: str | os.PathLike[str] | BinaryIO, name: str, resources: ExitStack) -> None:
        self.file, self.name = file, name
        self._resources = resources
        self.rate, self._held = 0, NOTHING
        self._begin()
        seconds = declared_duration(self._container, self._stream)
        if seconds is None:
            with decoding(name, "the sound cannot be read"):
                seconds = counted_duration(self._container, self._stream)
            self._begin()
        self.frames = round(seconds * self.rate)
        if self.frames < 1 or not len(self._held):
            raise UserError("0 samples; nothing to embed", where=name)

    def read(self, count: int) -> np.ndarray:
        """(count,) float32, the next samples; fewer at the end."""
        parts = []
        while count > 0:
            if not len(self._held):
                self._held = next(self._blocks, NOTHING)
            if not len(self._held):
                self.frames = self.position
                break
            part, self._held = self._held[:count], self._held[count:]
            self.position += len(part)
            count -= len(part)
            parts.append(part)
        return np.concatenate(parts) if parts else NOTHING

    def _begin(self) -> None:
        self._resources.close()
        self._container: InputContainer = self._resources.enter_context(open_container(self.file, self.name))
        stream = choose(self._container, "audio")
        if stream is None:
            raise UserError("there is no sound in it that can be decoded", where=self.name)
        self._stream: AudioStream = stream
        self.position = 0
        self._blocks = self._fill_gaps()
        self._held = next(self._blocks, NOTHING)

    def _fill_gaps(self) -> Iterator[np.ndarray]:
        """Yield non-empty blocks of samples, with silence in the gaps of the time stamps."""
        position = filled = 0
        for frame in self._frames():
            block = mono(frame, self.name)
            seconds = None if frame.pts is None else frame.pts * tick(self._stream) - start_of(self._container)
            missing = 0 if seconds is None else round(seconds * self.rate) - position
            if missing > GAPS[0] * self.rate and filled + missing < GAPS[1] * self.rate:
                for start in range(0, missing, self.rate):
                    yield np.zeros(min(self.rate, missing - start), np.float32)
                filled += missing
                position += missing
            position += len(block)
            if len(block):
                yield block

    def _frames(self) -> "Iterator[AudioFrame]":
        with decoding(self.name, "the sound cannot be decoded"):
            for packet in self._container.demux(self._stream):
                frames = packet.decode()
                for frame in frames:
                    _keep_layout(frame)
                for frame in frames:
                    self.rate = self.rate or frame.rate
                    if frame.rate != self.rate or frame.rate < 1:
                        raise UserError(f"its sample rate changes from {self.rate} to {frame.rate}", where=self.name)
                    yield frame


def _keep_layout(frame: "AudioFrame") -> None:
    """Keep PyAV up to 18.1 from freeing a list of channels twice, which crashes the process.

    A non-standard layout ("2 channels (FR+FL)") owns memory that the frame frees too. So the layout, some 40 bytes, is
    never freed.
    """
    if "(" in frame.layout.name or "+" in frame.layout.name:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(frame.layout))


def mono(frame: "AudioFrame", name: str) -> np.ndarray:
    """(n,) float32, the mean of the channels of a frame."""
    sample_type = frame.format.name.removesuffix("p")
    is_planar = frame.format.is_planar
    channels = frame.layout.nb_channels
    limit = MAX_PLANES if is_planar else MAX_CHANNELS
    if not 1 <= channels <= limit:
        raise UserError(f"{channels} channels are above the limit of {limit}", where=name)
    if sample_type not in SAMPLE_TYPES:
        raise UserError(f"unknown sample format {sample_type!r}", where=name)
    dtype, zero, full = SAMPLE_TYPES[sample_type]
    # Not frame.to_ndarray(): for 8 planar channels it reads a ninth, which crashes the process.
    if is_planar:
        planes = frame.planes[:channels]
        samples = np.stack([np.frombuffer(bytes(plane), dtype, count=frame.samples) for plane in planes])
    else:
        samples = np.frombuffer(bytes(frame.planes[0]), dtype, count=frame.samples * channels).reshape(-1, channels).T
    mean = samples.mean(axis=0, dtype=np.float32 if sample_type == "flt" else np.float64)
    return ((mean - zero) / full).astype(np.float32)
