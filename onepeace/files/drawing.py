"""Draws the boxes and masks that a model found on the picture."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onepeace.errors import UsageError
from onepeace.files.atomic import write_atomic

if TYPE_CHECKING:
    from PIL import Image

INK = (230, 40, 40)
PAPER = (255, 255, 255)


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
