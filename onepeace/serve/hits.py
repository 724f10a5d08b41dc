"""The hits of a search as one HTML file that needs nothing else: pictures and sounds are in it, no script, no network.
Only large sounds and videos stay where they are, and it links to them.

hits.html holds the layout, and this module fills it in. Everything that comes from a file or a user is escaped.
"""

import base64
import io
import math
import mimetypes
import os
from collections import Counter
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from onepeace.errors import UserError
from onepeace.files.source import read_bytes, scheme, suffix
from onepeace.files.video import frame_at
from onepeace.index.search import Hit
from onepeace.processors import AudioProcessor, ImageProcessor

if TYPE_CHECKING:
    from PIL import Image

KINDS = {"image": "picture", "audio": "sound", "text": "text", "video": "video"}
VIDEO_TYPES = {
    ".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/mp4", ".webm": "video/webm", ".mkv": "video/webm",
}  # fmt: skip
"""Videos that browsers play, if they know the codec; of others only the picture that was found is shown."""
THUMBNAIL = 480
"""Longest side of a picture in the page, in pixels."""
SOUND_LIMIT, SOUNDS_LIMIT = 4 << 20, 24 << 20
"""Bytes of one sound or video, and of all together, that are put into the page; the others are linked."""
BARS = 96
"""Bars in the drawing of a sound."""
EXCERPT = 280
"""Characters shown of a text."""


class QueryPart(NamedTuple):
    """One part of the query."""

    modality: str
    value: str
    """The text itself, or the path or address of a picture or sound."""
    weight: float


class Shown(NamedTuple):
    """A hit and what its picture, player or words are made of."""

    hit: Hit
    content: Path | bytes | str


def render(query: Sequence[QueryPart], hits: Sequence[Shown], folder: Path, *, num_files: int, model: str) -> str:
    """The page as a string.

    Args:
        query: what was searched for; a mix has several parts.
        hits: best first.
        folder: where the page will lie; links lead from there.
        num_files: how many files were compared.
        model: name of the model, for the summary.
    """
    budget = SoundBudget()
    title = ", ".join(part.value if part.modality == "text" else Path(part.value).name for part in query)
    show_weights = any(part.weight != 1 for part in query)
    parts = "\n<span class=plus>+</span>\n".join(_query_part(part, show_weights, folder, budget) for part in query)
    counts = Counter(_kind(shown.hit) for shown in hits)
    calibrated = any(shown.hit.match is not None for shown in hits)
    values = [shown.hit.match if calibrated else shown.hit.score for shown in hits]
    best = max((value for value in values if value is not None), default=0.0)
    filters = [
        f'<label><input type="checkbox" id="show-{kind}" autocomplete="off" checked> {name}s ({counts[kind]})</label>'
        for kind, name in KINDS.items()
        if counts[kind]
    ]
    template = Template(files("onepeace.serve").joinpath("hits.html").read_text(encoding="utf-8"))
    page = template.substitute(
        title=escape(f"{title} - onepeace search"),
        query=parts,
        summary=escape(f"{len(hits)} best of {num_files} files, found by the model {model}"),
        filters="\n".join(filters),
        hits="\n".join(_tile(shown, value, best, folder, budget) for shown, value in zip(hits, values, strict=True)),
    )
    return page.encode("utf-8", "replace").decode()  # a path may hold bytes that are no text


class SoundBudget:
    """Bytes of sounds that may still be put into the page."""

    def __init__(self) -> None:
        self.left = SOUNDS_LIMIT

    def take(self, size: int) -> bool:
        fits = size <= min(SOUND_LIMIT, self.left)
        self.left -= size if fits else 0
        return fits


def _query_part(part: QueryPart, show_weight: bool, folder: Path, budget: SoundBudget) -> str:
    weight = f'<span class="weight">&times; {part.weight:g}</span>' if show_weight else ""
    if part.modality == "text":
        body = f'<span class="words">{escape(part.value)}</span>'
    else:
        name = os.path.basename(part.value)
        media = _media(part.modality, part.value, name, folder, budget)
        body = f"<figure>{media}<figcaption>{escape(readable(name))}</figcaption></figure>"
    return f'<div class="part {part.modality}">{body}{weight}</div>'


def _kind(hit: Hit) -> str:
    """What a hit is shown as: a video by whatever it was found, and of an import perhaps what its vector is of."""
    return "video" if hit.item.modality == "video" else hit.modality


def _tile(shown: Shown, value: float | None, best: float, folder: Path, budget: SoundBudget) -> str:
    """A hit; ``value`` is None where the others have a match and it has none."""
    hit, path = shown.hit, Path(shown.hit.item.path)
    share = 100 * max(value or 0.0, 0.0) / best if best > 0 else 0.0
    link = escape(hit.item.path if scheme(hit.item.path) else link_to(path, folder))
    kind = _kind(hit)
    by = f' title="found by its {KINDS.get(hit.modality, hit.modality)}"' if kind == "video" else ""
    scale = "probability that it is relevant" if value == hit.match else "cosine similarity"
    number = "-" if value is None else f"{value:.3f}"
    at = "" if hit.start is None else f'<span class="at"{by}>from {hit.start:.0f} s</span>'
    copies = f'<div class="folder">and {len(hit.copies)} nearly the same</div>' if hit.copies else ""
    return f"""<li class="{kind}">
<div class="well">{_media(kind, shown.content, path.name, folder, budget, hit.start)}</div>
<div class="what">
<div class="row"><span class="rank">{hit.rank}</span><span class="badge hue">{KINDS.get(kind, kind)}</span>{at}
<span class="score" title="{scale}">{number}</span></div>
<div class="track hue" aria-hidden="true"><div style="width: {share:.0f}%"></div></div>
<div class="name"><a href="{link}">{escape(readable(path.name))}</a></div>
<div class="folder">{escape(readable(path.parent))}</div>{copies}
</div>
</li>"""


def _media(modality: str, value: Any, name: str, folder: Path, budget: SoundBudget, start: float | None = None) -> str:
    """The picture, player or words of a file; of one that cannot be shown its name."""
    ending, name = suffix(name), escape(readable(name), quote=True)
    try:
        if modality == "image":
            data, width, height = _thumbnail(ImageProcessor(size=THUMBNAIL).load(value))
            return f'<img src="{data}" alt="{name}" width="{width}" height="{height}" loading="lazy">'
        if modality == "audio":
            kind = mimetypes.guess_type(f"_{ending}")[0] or "audio/wav"
            address = playable(value, kind, folder, budget) + (f"#t={moment(start)}" if start else "")
            load = "metadata" if address.startswith("data:") else "none"
            player = f'<audio controls preload="{load}" aria-label="{name}" src="{address}"></audio>'
            return f'<div class="sound">{waveform(value)}{player}</div>'
        if modality == "video":
            return _video(value, ending, name, folder, budget, start or 0.0)
        if modality == "text":
            given = (
                value if isinstance(value, str) and not scheme(value) else read_bytes(value).decode("utf-8", "replace")
            )
            text = given.strip()
            return f"<blockquote>{escape(text[:EXCERPT])}{'...' if len(text) > EXCERPT else ''}</blockquote>"
    except (UserError, OSError):  # gone or changed since it was compared
        pass
    return f'<span class="words">{name}</span>'


def _video(value: Any, ending: str, name: str, folder: Path, budget: SoundBudget, start: float) -> str:
    """The player of a video at the second that was found, with the picture of then until it plays."""
    value = read_bytes(value, max_bytes=SOUND_LIMIT) if isinstance(value, str) and scheme(value) else value
    try:
        picture, width, height = _thumbnail(frame_at(value, start).image)
    except UserError:  # it has a sound only
        if ending not in VIDEO_TYPES:
            raise
        picture = ""
    if ending not in VIDEO_TYPES:
        return f'<img src="{picture}" alt="{name}" width="{width}" height="{height}" loading="lazy">'
    poster = f' poster="{picture}"' if picture else ""
    address = f"{playable(value, VIDEO_TYPES[ending], folder, budget)}#t={moment(start)}"
    return f'<video controls preload="none" aria-label="{name}"{poster} src="{address}"></video>'


def _thumbnail(image: "Image.Image") -> tuple[str, int, int]:
    """A small copy of a picture as a data URI, its width and height."""
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=80)
    return data_uri("image/webp", buffer.getvalue()), image.width, image.height


def playable(value: Any, kind: str, folder: Path, budget: SoundBudget) -> str:
    """A sound's or video's file as a data URI, or a link to it where that would make the page too large."""
    if isinstance(value, bytes):
        budget.take(len(value))
        return data_uri(kind, value)
    local = not (isinstance(value, str) and scheme(value))
    if local and not budget.take(os.path.getsize(value)):
        return escape(link_to(Path(value), folder), quote=True)
    return data_uri(kind, read_bytes(value, max_bytes=SOUND_LIMIT))


def waveform(value: Any) -> str:
    """The loudness of a sound's first minute, drawn."""
    samples = AudioProcessor().load(value, seconds=60.0).abs()
    length = max(1, len(samples) // BARS)
    peaks = [float(chunk.max()) for chunk in samples[: length * BARS].split(length)]
    loudest = max(peaks) or 1.0
    heights = [round(96 * peak / loudest) + 2 for peak in peaks]
    bars = "".join(
        f'<rect x="{4 * index}" y="{50 - height / 2:g}" width="3" height="{height}" rx="1"/>'
        for index, height in enumerate(heights)
    )
    return f'<svg viewBox="0 0 {4 * len(peaks)} 100" preserveAspectRatio="none" aria-hidden="true">{bars}</svg>'


def data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def link_to(path: Path, folder: Path) -> str:
    """A relative address of `path` for a page in `folder`."""
    try:
        relative = Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive of Windows
        return path.resolve().as_uri()
    # "./" keeps a name with a colon from being read as an address.
    return quote(f"./{relative}".encode(errors="surrogateescape"))


def moment(seconds: float) -> str:
    """A second of a file for an address, rounded up: of a video, the picture before is another one."""
    return f"{math.ceil(1000 * seconds) / 1000:.10g}"


def readable(path: str | Path) -> str:
    """A path to be read by people: without what cannot be printed."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in os.fspath(path))
