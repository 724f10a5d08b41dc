"""Draws what a model found: boxes on a picture, heat maps over a picture or the waveform of a sound."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onepeace.errors import UsageError
from onepeace.files.atomic import write_atomic

if TYPE_CHECKING:
    from PIL import Image

INK = (230, 40, 40)
PAPER = (255, 255, 255)
STOPS = np.array([(13, 8, 65), (84, 39, 143), (203, 71, 119), (248, 149, 64), (255, 221, 60)], dtype=np.float64)
"""Colours from the least to the largest value, of increasing brightness, so that they also differ without hue."""
COLD = 0.7
HOT = 0.4
"""Opacity of the colour over the worst and the best match in a picture: the best match stays visible."""
WIDTH = 960
HEIGHT = 240
"""Size of the drawing of a sound in pixels."""
AXIS = 26
"""Height of the time line below it."""
BARS = 240
GROUND = (24, 26, 30)
AXIS_INK = (210, 212, 216)


class Drawings:
    """A folder of annotated pictures: PNGs named after the files, with a number added to repeated names.

    UsageError if the folder cannot be created; it is created with the first picture.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.parent.is_dir():
            raise UsageError(f"there is no folder {folder.parent}", where=folder)
        if folder.exists() and not folder.is_dir():
            raise UsageError("is a file; name a folder", where=folder)
        self.folder = folder
        self._count: Counter[str] = Counter()

    def save(self, drawn: "Image.Image", path: Path) -> Path:
        """Save the annotated picture of the file at `path`; returns the path of the PNG."""
        self._count[path.name] += 1
        number = self._count[path.name]
        name = path.name if number == 1 else f"{path.name}-{number}"
        target = self.folder / f"{name}.png"
        self.folder.mkdir(exist_ok=True)
        with write_atomic(target) as temporary:
            drawn.save(temporary, "PNG")
        return target


def with_box(picture: "Image.Image", box: Sequence[float], caption: str = "") -> "Image.Image":
    """A copy with the box [x0, y0, x1, y1], in pixels of the picture, and a caption above it."""
    from PIL import ImageDraw

    drawn = picture.copy()
    draw = ImageDraw.Draw(drawn)
    x0, x1 = sorted((box[0], box[2]))
    y0, y1 = sorted((box[1], box[3]))
    draw.rectangle((x0, y0, x1, y1), outline=INK, width=max(2, round(min(drawn.size) / 150)))
    if caption:
        label(draw, caption, (x0, y0), drawn.size)
    return drawn


def label(
    draw: Any,
    text: str,
    at: tuple[float, float],
    size: tuple[int, int],
    fill: tuple[int, int, int] = INK,
    below: bool = False,
) -> float:
    """Draw a line of text on a coloured background inside the picture; returns its lower edge."""
    from PIL import ImageFont

    font = ImageFont.load_default(max(11, round(min(size) / 24)))
    x0, y0, x1, y1 = draw.textbbox((0, 0), text, font=font)
    width = x1 - x0 + 6
    height = y1 - y0 + 6
    left = min(max(at[0], 0), max(size[0] - width, 0))
    top = at[1] if below else at[1] - height
    top = min(max(top, 0), max(size[1] - height, 0))
    draw.rectangle((left, top, left + width, top + height), fill=fill)
    draw.text((left + 3 - x0, top + 3 - y0), text, fill=PAPER, font=font)
    return top + height


def stretched(values: NDArray) -> NDArray[np.float64]:
    """Values scaled to 0 (the least) to 1 (the largest); all 0 if they are all equal."""
    low = float(values.min())
    high = float(values.max())
    if high == low:
        return np.zeros(values.shape)
    return (values.astype(np.float64) - low) / (high - low)


def colours(heat: NDArray) -> NDArray[np.uint8]:
    """(..., 3) RGB colours of numbers (...,) from 0 to 1."""
    stops = np.linspace(0, 1, len(STOPS))
    channels = [np.interp(heat, stops, channel) for channel in STOPS.T]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


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
    x0, y0, x1, y1 = area
    left = round(x0 * drawn.width)
    top = round(y0 * drawn.height)
    width = max(1, round(x1 * drawn.width) - left)
    height = max(1, round(y1 * drawn.height) - top)
    small = Image.fromarray(stretched(values).astype(np.float32))
    scaled = small.resize((width, height), Image.Resampling.BICUBIC)
    heat = np.clip(np.asarray(scaled, dtype=np.float64), 0, 1)
    opacity = (COLD + (HOT - COLD) * heat)[..., None]
    covered = np.asarray(drawn.crop((left, top, left + width, top + height)), dtype=np.float64)
    mixed = (1 - opacity) * covered + opacity * colours(heat)
    drawn.paste(Image.fromarray(mixed.round().astype(np.uint8)), (left, top))
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
    moments = (np.arange(len(loudness)) + 0.5) * seconds / len(loudness)
    heat = np.interp(moments, times.mean(axis=1), stretched(values))
    step = WIDTH / len(loudness)
    middle = HEIGHT / 2
    for number, (height, colour) in enumerate(zip(loudness, colours(heat).tolist(), strict=True)):
        left = number * step
        half = 2 + height * (middle - 30)
        draw.rectangle((left, middle - half, left + step - 1, middle + half), fill=tuple(colour))
    font = ImageFont.load_default(13)
    for second in _ticks(seconds):
        x = second / seconds * WIDTH
        draw.line((x, HEIGHT, x, HEIGHT + 5), fill=AXIS_INK)
        draw.text((min(x + 3, WIDTH - 40), HEIGHT + 6), f"{second:g} s", fill=AXIS_INK, font=font)
    if caption:
        label(draw, caption, (0.0, 0.0), (WIDTH, WIDTH // 2), (70, 74, 82), below=True)
    return drawn


def bars(samples: NDArray, count: int = BARS) -> NDArray[np.float64]:
    """Peak of each of ``count`` parts of a sound (at most one per sample), relative to the highest peak."""
    parts = np.array_split(np.abs(samples.astype(np.float64)), min(count, len(samples)))
    peaks = np.array([part.max() for part in parts])
    return peaks / (peaks.max() or 1.0)


def _ticks(seconds: float) -> list[float]:
    """Round numbers of seconds for a time line, at most eleven."""
    steps = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600)
    step = next((step for step in steps if seconds / step <= 10), seconds / 10)
    return [round(step * number, 6) for number in range(int(seconds / step) + 1)]
