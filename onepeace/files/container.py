"""Containers of sounds and videos (MP4, Matroska, ASF, AVI, ...), opened by PyAV, which includes its own ffmpeg.

Only formats that contain their streams are allowed: ffmpeg also reads lists of other files and of URLs ("ffconcat
version 1.0", HLS), which it recognises by their content, regardless of the file name.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from fractions import Fraction
from typing import TYPE_CHECKING, BinaryIO, Literal, cast, overload

from onepeace.errors import UserError, need, reason_of
from onepeace.files.source import is_open_file

if TYPE_CHECKING:
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


@overload
def choose(container: "InputContainer", stream_type: Literal["audio"]) -> "AudioStream | None": ...


@overload
def choose(container: "InputContainer", stream_type: Literal["video"]) -> "VideoStream | None": ...


def choose(container: "InputContainer", stream_type: Literal["audio", "video"]) -> "AudioStream | VideoStream | None":
    """The stream of `stream_type` ("audio" or "video") that a player would choose; packets of the others are discarded.

    None if there is no such stream that can be decoded. The picture of an album's cover is not a video.
    """
    from av.stream import Discard, Disposition

    usable = (
        stream
        for stream in (container.streams.best(stream_type), *getattr(container.streams, stream_type))
        if stream is not None and stream.codec_context and not stream.disposition & Disposition.attached_pic
    )
    chosen: AudioStream | VideoStream | None = next(usable, None)
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
