"""Maps of `onepeace explain` as one HTML file that needs nothing else: each picture beside its map, each sound with its
player below its time line. A click on the time line plays from there. Only large sounds stay where they are.

explained.html holds the layout, and this module fills it in. Everything that comes from a file or a user is escaped.
"""

import base64
import hashlib
import io
import mimetypes
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, NamedTuple

from onepeace.embed.explain import Explanation
from onepeace.files.heatmap import STOPS, over_picture, over_sound
from onepeace.files.source import suffix
from onepeace.processors import AudioProcessor, ImageProcessor
from onepeace.serve.hits import SoundBudget, data_uri, link_to, playable, readable

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
    budget = SoundBudget()
    script = files("onepeace.serve").joinpath("explained.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    template = Template(files("onepeace.serve").joinpath("explained.html").read_text(encoding="utf-8"))
    page = template.substitute(
        title=escape(f"{readable(query)} - onepeace explain"),
        query=escape(readable(query)),
        summary=escape(f"where it is, by the model {model}"),
        scale=", ".join(f"rgb({red:.0f} {green:.0f} {blue:.0f})" for red, green, blue in STOPS),
        allowed=f"sha256-{digest}",
        script=script,
        cards="\n".join(_card(one, folder, budget) for one in shown),
    )
    return page.encode("utf-8", "replace").decode()  # a path may hold bytes that are no text


def _card(shown: Shown, folder: Path, budget: SoundBudget) -> str:
    name = escape(readable(shown.path.name), quote=True)
    drawing = f'<img src="{_picture(shown.drawing)}" alt="map of {name}">'
    if shown.plain is not None:
        media = f'<div class="both"><img src="{_picture(shown.plain)}" alt="{name}">{drawing}</div>'
    else:
        kind = mimetypes.guess_type(f"_{suffix(shown.path)}")[0] or "audio/wav"
        player = playable(shown.path, kind, folder, budget)
        media = (
            f'<div class="time" data-seconds="{shown.seconds:.3f}">{drawing}<i></i></div>'
            f'<audio controls preload="metadata" aria-label="{name}" src="{player}"></audio>'
        )
    link = escape(link_to(shown.path, folder), quote=True)
    return (
        f'<figure>{media}<figcaption><a href="{link}">{name}</a>'
        f"<span>similarity {shown.explanation.similarity:.3f}</span></figcaption></figure>"
    )


def _picture(image: "Image.Image") -> str:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=85)
    return data_uri("image/webp", buffer.getvalue())
