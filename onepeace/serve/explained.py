"""Maps of `onepeace explain` as one HTML file that needs nothing else: each picture beside its map, each sound with its
player below its time line. A click on the time line plays from there. Only large sounds stay where they are.

Everything that comes from a file or a user is escaped.
"""

import io
import mimetypes
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from onepeace.embed.explain import Explanation
from onepeace.files.heatmap import STOPS, over_picture, over_sound
from onepeace.files.source import suffix
from onepeace.processors import AudioProcessor, ImageProcessor
from onepeace.serve import document
from onepeace.serve.media import readable

if TYPE_CHECKING:
    from PIL import Image

SIDE = 768
"""Longest side of a drawn picture; small ones are made at least half as large, so that the caption can be read."""


class Shown(NamedTuple):
    """A file and its map."""

    path: Path
    explanation: Explanation
    drawing: "Image.Image"
    plain: "Image.Image | None" = None
    """The picture alone; None of a sound."""
    seconds: float = 0.0
    """Length of a sound: the whole width of its drawing."""


def draw(path: Path, explanation: Explanation, query: str) -> Shown:
    """The map of a file over its picture or waveform, with the query and the similarity as a caption.

    Raises:
        UserError: the file cannot be read.
    """
    caption = f"{readable(query)}: {explanation.similarity:.2f}"
    values = explanation.values.numpy()
    if explanation.modality == "image":
        picture = ImageProcessor(size=SIDE // 2).load(path)
        picture.thumbnail((SIDE, SIDE))
        scale = max(1, round(SIDE / 2 / max(picture.size)))
        picture = picture.resize((picture.width * scale, picture.height * scale))
        return Shown(path, explanation, over_picture(picture, values, caption, explanation.area), plain=picture)
    processor = AudioProcessor()
    samples = processor.load(path).numpy()
    seconds = len(samples) / processor.sample_rate
    drawing = over_sound(samples, seconds, explanation.positions.numpy(), values, caption)
    return Shown(path, explanation, drawing, seconds=seconds)


def render(query: str, shown: Sequence[Shown], folder: Path, model: str) -> str:
    """The page as a string.

    Args:
        query: what was asked for, in words or as the name of a file.
        folder: where the page will lie; links lead from there.
        model: name of the model, for the summary.
    """
    embedding = document.Embedding(folder)
    colors = ", ".join(f"rgb({red:.0f} {green:.0f} {blue:.0f})" for red, green, blue in STOPS)
    scale = f'least <span class="scale" style="background: linear-gradient(90deg, {colors})"></span> largest value'
    said = f'<p class="heading">where it is, by the model {escape(model)} &middot; {scale} in each file</p>'
    cards = "\n".join(_card(one, embedding) for one in shown)
    body = f'<main class="explained">\n<h1>{escape(readable(query))}</h1>\n{said}\n{cards}\n</main>'
    script = (document.PAGE / "explained.js").read_text(encoding="utf-8")
    return document.render(f"{query} - onepeace explain", body, script)


def _card(shown: Shown, embedding: document.Embedding) -> str:
    name = escape(readable(shown.path.name), quote=True)
    drawing = f'<img src="{_picture(shown.drawing)}" alt="map of {name}">'
    if shown.plain is not None:
        media = f'<div class="both"><img src="{_picture(shown.plain)}" alt="{name}">{drawing}</div>'
    else:
        kind = mimetypes.guess_type(f"_{suffix(shown.path)}")[0] or "audio/wav"
        player = embedding.address(shown.path, kind)
        media = (
            f'<div class="time" data-seconds="{shown.seconds:.3f}">{drawing}<i></i></div>'
            f'<audio controls preload="metadata" aria-label="{name}" src="{player}"></audio>'
        )
    link = escape(document.link_to(shown.path, embedding.folder), quote=True)
    return (
        f'<figure>{media}<figcaption><a href="{link}">{name}</a>'
        f"<span>similarity {shown.explanation.similarity:.3f}</span></figcaption></figure>"
    )


def _picture(image: "Image.Image") -> str:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=85)
    return document.data_uri("image/webp", buffer.getvalue())
