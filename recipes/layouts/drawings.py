"""What the layouts of drawings share: pictures on white squares."""

from typing import Any

from onepeace.datasets.layout import Encoded, Record


def on_white_square(picture: Any, longest: int) -> Any:
    """An RGBA picture, at most `longest` pixels wide and high, in the middle of a white RGB square."""
    from PIL import Image

    picture = picture.copy()
    picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    side = max(picture.size)
    square = Image.new("RGBA", (side, side), "white")
    square.alpha_composite(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square.convert("RGB")


def is_plain(picture: Any) -> bool:
    """Whether a picture has almost no content: fewer than four colours at 16 x 16 pixels."""
    return len(picture.resize((16, 16)).getcolors()) < 4


def drawing(record: Record) -> Encoded:
    """Encode a record whose picture is WebP already."""
    return Encoded({"webp": record.inputs["image"]})
