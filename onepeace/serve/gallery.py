"""The hits of a search as one self-contained HTML file.

Pictures and sounds are embedded; large sounds and videos are linked. Everything that comes from a file or a
user is escaped, and no script may run.
"""

import base64
import os
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import jinja2

from onepeace.errors import UsageError, UserError, printable
from onepeace.files.atomic import write_text_atomic
from onepeace.files.source import suffix
from onepeace.index import Hit, Item, Query, Results
from onepeace.index.items import name_and_place, shard_of
from onepeace.serve import media

FOLDER = Path(__file__).parent
MARK = b'<meta name="generator" content="onepeace search">'
"""Line of gallery.html by which a page of ours is told from other files."""
EMBEDDED = 4 << 20
"""Maximum bytes of one embedded sound or video; larger ones are linked."""
EMBEDDED_TOTAL = 32 << 20
"""Maximum length of the addresses of all embedded sounds and videos."""
EXCERPT = 280
"""Maximum number of characters shown of a text."""


class Card(NamedTuple):
    """A hit, as gallery.html shows it: a text, or a picture with or without a player."""

    hit: Hit
    name: str
    folder: str
    link: str
    text: str = ""
    image: str = ""
    """Address of a picture."""
    player: str = ""
    """audio, video or ""."""
    source: str = ""
    """Address for the player."""


def check_gallery(file: Path) -> None:
    """Raise `UsageError` unless `file` is new or a page of ours, and has the ending of a page."""
    if file.suffix.lower() != ".html":
        raise UsageError("the hits are written as HTML; give a name that ends in .html", where=file)
    if not file.is_file():
        return
    with open(file, "rb") as opened:
        if MARK not in opened.read(1000):
            raise UsageError("not a page of onepeace search, so it is not replaced; choose another name", where=file)


def write_gallery(results: Results, query: Query, file: Path) -> None:
    """Write the hits of a query to a self-contained HTML file; one that is there is replaced if it is a page of ours.

    Raises:
        UsageError: see `check_gallery`.
        UserError: the disk is full or not writable.
    """
    check_gallery(file)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    template = environment.get_template("gallery.html")
    cards = []
    left = EMBEDDED_TOTAL
    for hit in results:
        card = _card(hit, file.parent, min(EMBEDDED, left))
        cards.append(card)
        left -= len(card.source)
    html = template.render(query=", ".join(_described(query)), results=results, cards=cards)
    write_text_atomic(file, html.encode("utf-8", "replace").decode())  # a path may contain bytes that are not text


def _described(query: Query) -> list[str]:
    """The parts of a query as readable text."""
    described = []
    for part in query.parts:
        if part.field == "text":
            shown = printable(part.value)
        elif isinstance(part.value, str | os.PathLike):
            shown = printable(Path(part.value).name)
        else:
            shown = f"a given {part.field}"
        if part.field == "like":
            shown = f"like {shown}"
        if part.weight < 0:
            shown = f"without {shown}"
        described.append(shown)
    return described


def _card(hit: Hit, folder: Path, most_bytes: int) -> Card:
    """The card of a hit for a page in a folder.

    Args:
        most_bytes: maximum bytes of an embedded sound or video.
    """
    item = hit.item
    name, place = map(printable, name_and_place(item.path))
    card = Card(hit, name, place, _link_to(Path(item.path), folder))
    try:
        if item.kind == "text":
            text = media.body_of(item, {}).read().decode("utf-8-sig", "replace")
            return card._replace(text=text.strip()[:EXCERPT])
        thumbnail = media.thumbnail(item, {}, at=hit.start or 0.0)
        card = card._replace(image=_data_uri(thumbnail.type, thumbnail.read()))
        is_played = item.kind == "audio" or suffix(item.path) in media.VIDEO_TYPES
        source = _source(item, folder, most_bytes) if is_played else ""
    except (UserError, OSError):  # gone or changed since it was compared
        return card._replace(text=name)
    if not source:
        return card
    moment = f"#t={hit.start:.3f}" if hit.start else ""
    return card._replace(player=item.kind, source=source + moment)


def _source(item: Item, folder: Path, most_bytes: int) -> str:
    """Address of a sound or video for a player; "" for a large sample of a shard, which no link leads to."""
    if item.size > most_bytes and shard_of(item.path) is None:
        return _link_to(Path(item.path), folder)
    body = media.body_of(item, {})
    data = body.read()
    return "" if len(data) > most_bytes else _data_uri(body.type, data)


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
