"""The hits of a search as one self-contained HTML file.

Pictures and sounds are embedded; large sounds and videos are linked. Everything that comes from a file or a
user is escaped, and no script may run.
"""

import base64
import mimetypes
import os
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import jinja2

from onepeace.errors import UserError
from onepeace.files.atomic import write_text_atomic
from onepeace.files.source import read_bytes, suffix
from onepeace.index import Hit, Item, Query, Results
from onepeace.index.content import content
from onepeace.index.paths import name_and_place
from onepeace.serve import media
from onepeace.serve.media import VIDEO_TYPES, readable

FOLDER = Path(__file__).parent
STYLE = FOLDER / "page" / "app.css"
EMBEDDED = 4 << 20
"""Maximum bytes of one embedded sound or video; larger ones are linked."""
EMBEDDED_TOTAL = 24 << 20
"""Maximum bytes of all embedded sounds and videos."""
EXCERPT = 280
"""Maximum number of characters shown of a text."""
MATCH = "share of unrelated queries that score lower here"
COSINE = "cosine similarity"


class Well(NamedTuple):
    """What a card shows of its file: a text, or a picture with or without a player."""

    text: str = ""
    image: str = ""
    """Address of a picture."""
    player: str = ""
    """audio, video or ""."""
    source: str = ""
    """Address for the player."""


class Card(NamedTuple):
    """A hit, as gallery.html shows it."""

    hit: Hit
    name: str
    folder: str
    link: str
    well: Well
    word: str
    """likely, possible, unlikely, or "" without a match."""
    number: str
    share: float
    """Length of the bar, 0 to 1."""
    scale: str
    """Explanation of the number."""


class InlineMedia:
    """Sounds and videos as data: URIs, or as links once the HTML file would become too large.

    Args:
        folder: folder of the HTML file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bytes_left = EMBEDDED_TOTAL

    def address(self, value: Path | bytes, media_type: str) -> str:
        """Address of a file or of the content of one; "" for a large sample of a shard, which no link leads to."""
        limit = min(EMBEDDED, self.bytes_left)
        if isinstance(value, Path):
            if value.stat().st_size > limit:
                return _link_to(value, self.folder)
            value = read_bytes(value)
        elif len(value) > limit:
            return ""
        self.bytes_left -= len(value)
        return _data_uri(media_type, value)


def write_gallery(results: Results, query: Query, file: Path) -> None:
    """Write the hits of a query to a self-contained HTML file.

    Raises:
        UserError: the disk is full or not writable.
    """
    inline = InlineMedia(file.parent)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    html = environment.get_template("gallery.html").render(
        style=STYLE.read_text(encoding="utf-8"),
        query=", ".join(_words(query)),
        results=results,
        cards=[_card(hit, inline) for hit in results],
    )
    write_text_atomic(file, html.encode("utf-8", "replace").decode())  # a path may contain bytes that are not text


def _words(query: Query) -> list[str]:
    """The parts of a query as readable text."""
    words = []
    for name in ("text", "image", "audio", "like", "without"):
        values = getattr(query, name)
        if isinstance(values, str | Path):
            values = [values]
        for value in values:
            if name in ("text", "without"):
                shown = readable(value)
            elif isinstance(value, str | Path):
                shown = readable(Path(value).name)
            else:
                shown = name
            if name in ("like", "without"):
                shown = f"{name} {shown}"
            words.append(shown)
    return words


def _card(hit: Hit, inline: InlineMedia) -> Card:
    name, folder = map(readable, name_and_place(hit.item.path))
    word, _, number = hit.value.rpartition(" ")
    if hit.match is None:
        share = max(0.0, hit.score)
        scale = COSINE
    else:
        share = hit.match
        scale = MATCH
    return Card(
        hit=hit,
        name=name,
        folder=folder,
        link=_link_to(Path(hit.item.path), inline.folder),
        well=_well(hit, name, inline),
        word=word,
        number=number,
        share=share,
        scale=scale,
    )


def _well(hit: Hit, name: str, inline: InlineMedia) -> Well:
    """Picture, player or text of a hit, or its name if the file is gone or cannot be shown."""
    item = hit.item
    try:
        if item.modality == "text":
            return Well(text=_excerpt(item))
        thumbnail = media.thumbnail(item, {}, at=hit.start or 0.0)
        image = _data_uri(thumbnail.type, thumbnail.read())
        player = _player(item)
        source = _source(item, inline) if player else ""
    except (UserError, OSError):  # gone or changed since it was compared
        return Well(text=name)
    if not source:
        return Well(image=image)
    if hit.start:
        source += f"#t={hit.start:.3f}"
    return Well(image=image, player=player, source=source)


def _excerpt(item: Item) -> str:
    value = content(item, {})
    if not isinstance(value, str):
        value = read_bytes(value).decode("utf-8-sig", "replace")
    return value.strip()[:EXCERPT]


def _player(item: Item) -> str:
    """Kind of player for a file: audio, video, or "" if browsers do not play it."""
    is_played = item.modality == "audio" or suffix(item.path) in VIDEO_TYPES
    return item.modality if is_played else ""


def _source(item: Item, inline: InlineMedia) -> str:
    """Address of a sound or video for a player, or "" if there is none."""
    value = content(item, {})
    if isinstance(value, str):
        return ""
    ending = suffix(item.path)
    media_type = VIDEO_TYPES.get(ending) or mimetypes.guess_type(f"_{ending}")[0] or "audio/wav"
    return inline.address(value, media_type)


def _data_uri(media_type: str, data: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"


def _link_to(path: Path, folder: Path) -> str:
    """Relative URL of `path` for an HTML file in `folder`."""
    try:
        relative = Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # on another drive of Windows
        return path.absolute().as_uri()
    # "./" keeps a name with a colon from being read as an address.
    return quote(f"./{relative}".encode(errors="surrogateescape"))
