"""Heat map: how well each part of a picture or each moment of a sound fits a query, drawn over the picture or the
waveform."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from onepeace.files.drawing import label

if TYPE_CHECKING:
    from PIL import Image

STOPS = np.array([(13, 8, 65), (84, 39, 143), (203, 71, 119), (248, 149, 64), (255, 221, 60)], dtype=np.float64)
"""Colours from the least to the largest value, ever brighter, so that they also differ without hue."""
COLD, HOT = 0.7, 0.4
"""How much of the colour covers the least and the most fitting part of a picture: what fits is left to be seen."""
WIDTH, HEIGHT, AXIS = 960, 240, 26
"""Size of the drawing of a sound in pixels, and height of the time line below it."""
BARS = 240
GROUND, INK = (24, 26, 30), (210, 212, 216)


def stretched(values: NDArray) -> NDArray[np.float64]:
    """Values brought to 0 (the least) to 1 (the largest); all 0 where they are all the same."""
    low, high = float(values.min()), float(values.max())
    return (values.astype(np.float64) - low) / (high - low) if high > low else np.zeros(values.shape)


def colours(heat: NDArray) -> NDArray[np.uint8]:
    """(...,) numbers from 0 to 1 -> (..., 3)."""
    places = np.linspace(0, 1, len(STOPS))
    return np.stack([np.interp(heat, places, channel) for channel in STOPS.T], axis=-1).round().astype(np.uint8)


def over_picture(
    picture: "Image.Image",
    values: NDArray,
    caption: str = "",
    area: Sequence[float] = (0.0, 0.0, 1.0, 1.0),
) -> "Image.Image":
    """A copy with the map over it: dark where the values are low, yellow where they are the highest.

    Args:
        values: (H, W), any numbers: the colours go from the least to the largest.
        area: the part of the picture that the map covers, (x0, y0, x1, y1) from 0 to 1.
    """
    from PIL import Image, ImageDraw

    drawn = picture.convert("RGB")
    box = [round(edge * side) for edge, side in zip(area, drawn.size * 2, strict=True)]
    size = (max(1, box[2] - box[0]), max(1, box[3] - box[1]))
    scaled = Image.fromarray(stretched(values).astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    heat = np.clip(np.asarray(scaled, dtype=np.float64), 0, 1)
    share = (COLD + (HOT - COLD) * heat)[..., None]
    part = np.asarray(drawn.crop((box[0], box[1], box[0] + size[0], box[1] + size[1])), dtype=np.float64)
    mixed = (1 - share) * part + share * colours(heat)
    drawn.paste(Image.fromarray(mixed.round().astype(np.uint8)), (box[0], box[1]))
    if caption:
        label(ImageDraw.Draw(drawn), caption, (0.0, 0.0), drawn.size, GROUND, below=True)
    return drawn


def over_sound(samples: NDArray, seconds: float, times: NDArray, values: NDArray, caption: str = "") -> "Image.Image":
    """The waveform with its moments in the colours of `over_picture`, on a time line.

    Args:
        samples: (N,) of the whole sound.
        seconds: its length.
        times: (frames, 2) start and end of each value, in seconds.
        values: (frames,), any numbers.
    """
    from PIL import Image, ImageDraw, ImageFont

    drawn = Image.new("RGB", (WIDTH, HEIGHT + AXIS), GROUND)
    draw = ImageDraw.Draw(drawn)
    loudness = bars(samples)
    fill = colours(heat_at((np.arange(len(loudness)) + 0.5) * seconds / len(loudness), times, values))
    step = WIDTH / len(loudness)
    for number, (height, colour) in enumerate(zip(loudness, fill.tolist(), strict=True)):
        half = 2 + height * (HEIGHT / 2 - 30)
        left = number * step
        draw.rectangle((left, HEIGHT / 2 - half, left + step - 1, HEIGHT / 2 + half), fill=tuple(colour))
    # The map itself, also where nothing is heard.
    line = colours(heat_at((np.arange(WIDTH) + 0.5) * seconds / WIDTH, times, values))
    drawn.paste(Image.fromarray(np.broadcast_to(line, (8, WIDTH, 3)).copy()), (0, HEIGHT - 8))
    font = ImageFont.load_default(13)
    for second in ticks(seconds):
        place = second / seconds * WIDTH
        draw.line((place, HEIGHT, place, HEIGHT + 5), fill=INK)
        draw.text((min(place + 3, WIDTH - 40), HEIGHT + 6), f"{second:g} s", fill=INK, font=font)
    if caption:
        label(draw, caption, (0.0, 0.0), (WIDTH, WIDTH // 2), (70, 74, 82), below=True)
    return drawn


def bars(samples: NDArray, count: int = BARS) -> NDArray[np.float64]:
    """The loudest of each of ``count`` parts of a sound, or of fewer, from 0 to 1."""
    parts = np.array_split(np.abs(samples.astype(np.float64)), min(count, len(samples)))
    peaks = np.array([part.max() for part in parts])
    return peaks / (peaks.max() or 1.0)


def heat_at(moments: NDArray, times: NDArray, values: NDArray) -> NDArray[np.float64]:
    """Stretched values at some seconds, in straight lines between the middles of the frames."""
    return np.interp(moments, times.mean(axis=1), stretched(values))


def ticks(seconds: float) -> list[float]:
    """Round seconds of a time line, at most eleven."""
    steps = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600)
    step = next((step for step in steps if seconds / step <= 10), seconds / 10)
    return [round(step * number, 6) for number in range(int(seconds / step) + 1)]
