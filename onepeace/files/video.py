"""Pictures of a video with their times, so that it can be searched like pictures; no model is needed.

For an index, a video is not a modality: it is added as pictures at their times and as the windows of its sound. `clip`
is for models that read frames.
"""

import io
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, NamedTuple, cast

import numpy as np

from onepeace.errors import UserError, reason_of
from onepeace.files.container import MAX_PIXELS, choose, declared_duration, decoding, open_container, start_of, tick
from onepeace.files.source import describe, is_open_file, local_path

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream
    from PIL import Image

VIDEO_SUFFIXES = frozenset(".mp4 .mov .mkv .webm .avi .m4v .3gp .mpg .mpeg .wmv .flv".split())
STEP = 1.0
"""Minimum seconds between two pictures that are examined."""
EVERY = 5.0
"""Seconds between two pictures of an unchanging scene."""
STRETCH = 3.0
"""Factor by which key frames may be farther apart before the frames between them are decoded too: encoders with a key
frame every 10 s add others where scenes change."""
CHANGE = 0.25
"""Share of the colours, compared place by place, that differ in a new scene: panning and zooming over a photo usually
changes 0.14 of them, rarely 0.30; two photos usually differ in 0.57, rarely in only 0.36. Similar pictures are left out
later (index/embed.py)."""
SLACK = 1e-3
"""Seconds by which two times of the same picture may differ, since they are stored rounded."""
MIN_COVERAGE = 0.9
"""Minimum share of a file's duration that its pictures cover, unless it was cut off or continues as sound only."""
LEVELS = 4
"""Levels of each of red, green and blue that are distinguished."""
Skipped = Literal["NONKEY", "NONREF"]
"""Pictures that are not decoded: all but key frames, or those that no other is decoded from."""

Source = str | os.PathLike[str] | bytes | BinaryIO


class Frame(NamedTuple):
    """A picture of a video."""

    time: float
    """Seconds from the start of the file."""
    image: "Image.Image"
    """Upright, RGB, as large as the video."""


def frames(path: Source, *, step: float = STEP) -> Iterator[Frame]:
    """Yield the first picture, those at changes of the scene, and others so that few gaps are longer than `EVERY`.

    Key frames are examined, since encoders put one at the start of a scene and every few seconds; nothing else is
    decoded, unless two of them are more than `STRETCH` times `EVERY` seconds apart. To know this, the headers of all
    packets are read first. Pictures are at least `step` seconds apart, and one at a time is in memory.

    Args:
        path: a local file, a file that was opened, or the content of one.
        step: minimum seconds between two pictures.

    Raises:
        UserError: PyAV is missing, the file has no pictures, its decoder fails on damaged data (perhaps in the middle),
            or the pictures end long before the file does by its header (raised after the last picture). Many decoders
            skip damaged data.
    """
    name = describe(path)
    every = max(EVERY, step)
    last_time = 0.0
    last_colours = None
    longest_gap, end, whole = _distances(path)
    skipped: Skipped = "NONKEY" if longest_gap <= STRETCH * every else "NONREF"
    with open_container(_file(path), name) as container, decoding(name, "the pictures cannot be decoded"):
        for time, frame in _candidates(container, name, skipped, step):
            colours = colour_histograms(frame)
            is_due = last_colours is None or abs(time - last_time) >= every
            if is_due or np.abs(colours - last_colours).sum() / 2 > CHANGE:
                last_time = time
                last_colours = colours
                yield Frame(time, _upright(frame))
    if last_colours is None:
        raise UserError("no picture in it can be decoded", where=name)
    if end + 1 < MIN_COVERAGE * whole:
        raise UserError(f"its pictures end at second {end:.0f} of {whole:.0f}; it may have been cut off", where=name)


def frame_at(path: Source, time: float) -> Frame:
    """The picture shown at a second of a video; the first picture for times before it, the last one after the end.

    Raises:
        UserError: as for `frames`.
    """
    (frame,) = _frames_at(path, [time])
    return frame._replace(time=max(frame.time, 0.0))


def clip(path: Source, count: int, stride: int, place: float = 0.5) -> list[Frame]:
    """Every `stride`-th picture of a part of a video, `count` of them.

    The headers of all packets are read first; then decoding begins at the key frame before the part.

    Args:
        place: position of the part, from 0 (start of the video) to 1 (end). From a video that is shorter than the part,
            pictures at equal distances over the whole video are returned, some of them repeatedly if necessary.

    Raises:
        UserError: as for `frames`.
    """
    name = describe(path)
    with open_container(_file(path), name) as container, decoding(name, "the pictures cannot be read"):
        stream = _pictures(container, name)
        seconds = _clock(container, stream)
        times = sorted(seconds(packet) for packet in container.demux(stream) if packet.size)
    return _frames_at(path, _times_of_clip(times, count, stride, place))


def _frames_at(path: Source, wanted: Sequence[float]) -> list[Frame]:
    """The pictures shown at ascending times, decoded from the key frame before the first of them."""
    name = describe(path)
    for is_sought in (True, False):
        with open_container(_file(path), name) as container:
            stream = _pictures(container, name)
            seconds = _clock(container, stream)
            try:
                if is_sought and wanted:
                    container.seek(int((wanted[0] + start_of(container)) / tick(stream)), stream=stream)
                shown_frames = list(_shown_at(container.decode(stream), seconds, wanted))
            except Exception as error:  # ffmpeg's errors come as several types
                if not is_sought:  # after a seek: the format cannot seek, or a packet is incomplete there
                    raise UserError(f"the pictures cannot be decoded ({reason_of(error)})", where=name) from error
                continue
            is_too_late = bool(shown_frames) and is_sought and shown_frames[0].time > wanted[0] + SLACK
            if shown_frames and not is_too_late:
                return shown_frames
    raise UserError("no picture in it can be decoded", where=name)


def _times_of_clip(times: Sequence[float], count: int, stride: int, place: float) -> list[float]:
    """Times of the pictures of a clip, chosen from the times of all pictures; empty if there are no pictures."""
    if not times:
        return []
    step = min(stride, (len(times) - 1) / max(count - 1, 1))
    last = len(times) - 1
    first = place * (last - step * (count - 1))
    numbers = [min(round(first + step * i), last) for i in range(count)]
    return [times[number] for number in numbers]


def _shown_at(
    decoded: "Iterator[VideoFrame]", seconds: "Callable[[Packet | VideoFrame], float]", wanted: Sequence[float]
) -> Iterator[Frame]:
    """Yield the last picture up to each of the ascending times, or the first picture if there is none before."""
    left = list(wanted)
    shown = None
    for frame in decoded:
        while shown is not None and left and seconds(frame) > left[0] + SLACK:
            left.pop(0)
            yield Frame(seconds(shown), _upright(shown))
        if not left:
            return
        shown = frame
    if shown is not None:
        yield from [Frame(seconds(shown), _upright(shown))] * len(left)


def _file(video: Source) -> Path | BinaryIO:
    if isinstance(video, bytes):
        return io.BytesIO(video)
    return video if is_open_file(video) else local_path(cast("str", video))


def _pictures(container: "InputContainer", name: str) -> "VideoStream":
    """The stream of pictures; `UserError` if there is none, or they are too large."""
    stream: VideoStream | None = choose(container, "video")
    if stream is None:
        raise UserError("there are no pictures in it that can be decoded", where=name)
    if stream.width * stream.height > MAX_PIXELS:
        raise UserError(f"{stream.width} x {stream.height} pixels are above the limit of {MAX_PIXELS}", where=name)
    stream.codec_context.thread_count = 1  # several files are decoded at once
    return stream


def _clock(container: "InputContainer", stream: "VideoStream") -> "Callable[[Packet | VideoFrame], float]":
    """Function that returns the time of a packet or picture in seconds."""
    origin = start_of(container)

    def seconds(item: "Packet | VideoFrame") -> float:
        ticks = item.dts if item.pts is None else item.pts
        return 0.0 if ticks is None else float(ticks * tick(stream)) - origin

    return seconds


def _distances(path: Source) -> tuple[float, float, float]:
    """Seconds between the two key frames farthest apart, up to the last picture, and of the whole by the header."""
    name = describe(path)
    times = [0.0]
    end = 0.0
    with open_container(_file(path), name) as container:
        stream = _pictures(container, name)
        seconds = _clock(container, stream)
        with suppress(Exception):  # damaged; an error where it is decoded
            for packet in container.demux(stream):
                if packet.size:  # the last one is empty
                    end = max(end, seconds(packet))
                    if packet.is_keyframe:
                        times.append(seconds(packet))
        whole = declared_duration(container, stream) or 0.0
    return float(np.diff([*times, end]).max()), end, whole


def _candidates(
    container: "InputContainer", name: str, skipped: Skipped, step: float
) -> "Iterator[tuple[float, VideoFrame]]":
    """Pictures at least `step` seconds apart, with their times; `skipped` is the kind that ffmpeg does not decode."""
    stream = _pictures(container, name)
    seconds = _clock(container, stream)
    stream.codec_context.skip_frame = skipped
    last_time = -math.inf
    for frame in container.decode(stream):
        if abs(seconds(frame) - last_time) >= step:
            last_time = seconds(frame)
            yield max(last_time, 0.0), frame


def colour_histograms(frame: "VideoFrame") -> np.ndarray:
    """(4, 64) histograms of the colours in each quarter of a picture; all entries together sum to 1.

    A colour is divided among the levels around it by its distance from them, so that a small change of the light
    changes little.
    """
    num_colours = LEVELS**3
    small = frame.reformat(32, 32, "rgb24", interpolation="AREA").to_ndarray()
    quarters = small.reshape(2, 16, 2, 16, 3).transpose(0, 2, 1, 3, 4).reshape(4, 256, 3)
    levels = quarters * ((LEVELS - 1) / 255)
    lower = np.minimum(levels.astype(np.int64), LEVELS - 2)
    above_lower = levels - lower
    histograms = np.zeros(4 * num_colours)
    first_cell = np.arange(4)[:, None] * num_colours
    for corner in np.ndindex(2, 2, 2):
        colour = (lower + corner) @ [LEVELS**2, LEVELS, 1]
        weight = np.where(corner, above_lower, 1 - above_lower).prod(axis=2)
        histograms += np.bincount((first_cell + colour).ravel(), weight.ravel(), len(histograms))
    return histograms.reshape(4, num_colours) / histograms.sum()


def _upright(frame: "VideoFrame") -> "Image.Image":
    from PIL import Image

    image = frame.to_image()
    turns = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
    turn = turns.get(round(frame.rotation / 90) * 90 % 360)
    return image if turn is None else image.transpose(turn)
