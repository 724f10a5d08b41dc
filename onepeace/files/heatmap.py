"""Draws heat maps: how well each part of a picture or each moment of a sound matches a query, over the picture or the
waveform."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from onepeace.files.drawing import label

if TYPE_CHECKING:
    from PIL import Image

STOPS = np.array([(13, 8, 65), (84, 39, 143), (203, 71, 119), (248, 149, 64), (255, 221, 60)], dtype=np.float64)
"""Colours from the least to the largest value, of increasing brightness, so that they also differ without hue."""
COLD, HOT = 0.7, 0.4
"""Opacity of the colour over the worst and the best match in a picture: the best match stays visible."""
WIDTH, HEIGHT, AXIS = 960, 240, 26
"""Size of the drawing of a sound in pixels, and height of the time line below it."""
BARS = 240
GROUND, INK = (24, 26, 30), (210, 212, 216)


def stretched(values: NDArray) -> NDArray[np.float64]:
    """Values scaled to 0 (the least) to 1 (the largest); all 0 if they are all equal."""
    low, high = float(values.min()), float(values.max())
    return (values.astype(np.float64) - low) / (high - low) if high > low else np.zeros(values.shape)


def colours(heat: NDArray) -> NDArray[np.uint8]:
    """(..., 3) RGB colours of numbers (...,) from 0 to 1."""
    places = np.linspace(0, 1, len(STOPS))
    return np.stack([np.interp(heat, places, channel) for channel in STOPS.T], axis=-1).round().astype(np.uint8)


def over_picture(
    picture: "Image.Image", values: NDArray, caption: str = "", area: Sequence[float] = (0.0, 0.0, 1.0, 1.0)
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
    """The waveform above a time line, with each moment in the colours of `over_picture`.

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
    # The map itself, which also shows silent moments.
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
    """Peak of each of ``count`` parts of a sound (at most one per sample), relative to the highest peak."""
    parts = np.array_split(np.abs(samples.astype(np.float64)), min(count, len(samples)))
    peaks = np.array([part.max() for part in parts])
    return peaks / (peaks.max() or 1.0)


def heat_at(moments: NDArray, times: NDArray, values: NDArray) -> NDArray[np.float64]:
    """Stretched values at given seconds, interpolated linearly between the centres of the frames."""
    return np.interp(moments, times.mean(axis=1), stretched(values))


def ticks(seconds: float) -> list[float]:
    """Round numbers of seconds for a time line, at most eleven."""
    steps = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600)
    step = next((step for step in steps if seconds / step <= 10), seconds / 10)
    return [round(step * number, 6) for number in range(int(seconds / step) + 1)]
