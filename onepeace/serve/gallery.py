"""The hits of a search as one self-contained HTML file.

Pictures and sounds are embedded; large sounds and videos are linked. Everything that comes from a file or a
user is escaped, and no script may run.
"""

import base64
import mimetypes
import os
from html import escape
from pathlib import Path
from urllib.parse import quote

from onepeace.errors import UserError
from onepeace.files.atomic import write_text_atomic
from onepeace.files.source import read_bytes, suffix
from onepeace.index import Hit, Query, Results
from onepeace.index.content import content
from onepeace.index.paths import name_and_place
from onepeace.serve import media
from onepeace.serve.media import VIDEO_TYPES, readable

STYLE = Path(__file__).parent / "page" / "app.css"
EMBEDDED, EMBEDDED_TOTAL = 4 << 20, 24 << 20
"""Maximum bytes of one embedded sound or video, and of all together; larger ones are linked."""
HTML = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; media-src data: 'self' file:; \
style-src 'unsafe-inline'; script-src 'none'">
<title>{title}</title>
<style>{style}</style>
</head>
<body class="document">
{body}
</body>
</html>
"""
EXCERPT = 280
"""Maximum number of characters shown of a text."""
MATCH = "share of unrelated queries that score lower here"
COSINE = "cosine similarity"


class InlineMedia:
    """Sounds and videos as data: URIs, or as links once the HTML file would become too large.

    Args:
        folder: folder of the HTML file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.left = folder, EMBEDDED_TOTAL

    def address(self, value: Path | bytes, kind: str) -> str:
        size = len(value) if isinstance(value, bytes) else value.stat().st_size
        if size > min(EMBEDDED, self.left):  # a sample of a shard has no file to link to
            return escape(_link_to(value, self.folder), quote=True) if isinstance(value, Path) else ""
        self.left -= size
        return _data_uri(kind, value if isinstance(value, bytes) else read_bytes(value))


def write_gallery(results: Results, query: Query, file: Path) -> None:
    """Write the hits of a query to a self-contained HTML file.

    Raises:
        UserError: the disk is full or not writable.
    """
    embedding = InlineMedia(file.parent)
    said = ", ".join(_words(query))
    heading = results.heading or f"{len(results)} of {results.compared} files"
    cards = "\n".join(_card(hit, embedding) for hit in results)
    header = f'<h1>{escape(said)}</h1>\n<p class="heading">{escape(heading)}</p>'
    body = f'<main>\n{header}\n<ol class="cards">{cards}</ol>\n</main>'
    title, style = f"{readable(said)} - onepeace search", STYLE.read_text(encoding="utf-8")
    html = HTML.format(title=escape(title), style=style, body=body)
    write_text_atomic(file, html.encode("utf-8", "replace").decode())  # a path may contain bytes that are not text


def _words(query: Query) -> list[str]:
    """The parts of a query as readable text."""
    found = []
    for name in ("text", "image", "audio", "like", "without"):
        given = getattr(query, name)
        for value in [given] if isinstance(given, str | Path) else given:
            shown = (
                value if name in ("text", "without") else Path(value).name if isinstance(value, str | Path) else name
            )
            found.append(f"{name} {readable(shown)}" if name in ("like", "without") else readable(shown))
    return found


def _card(hit: Hit, embedding: InlineMedia) -> str:
    item = hit.item
    name, place = map(readable, name_and_place(item.path))
    link = _link_to(Path(item.path), embedding.folder)
    share, scale = (hit.score, COSINE) if hit.match is None else (hit.match, MATCH)
    word, _, number = hit.value.rpartition(" ")
    at = "" if hit.start is None else f" at {hit.start:.0f} s"
    copies = f" and {len(hit.copies)} very similar files" if hit.copies else ""
    return f"""<li class="card {item.modality}">
<div class="well">{_media(hit, name, embedding)}</div>
<div class="about"><a class="name" href="{escape(link)}">{escape(name)}</a>
<p class="match" title="{scale}">{word} <b>{number}</b>{at}</p>
<meter min="0" max="1" value="{max(0.0, share):.3f}" aria-label="{scale}"></meter>
<p class="place">{escape(place)}{copies}</p></div></li>"""


def _media(hit: Hit, name: str, embedding: InlineMedia) -> str:
    """HTML of a hit: its picture, player or text, or its name if the file is gone or cannot be shown."""
    item, start = hit.item, hit.start or 0.0
    label, at = escape(name, quote=True), f"#t={start:.3f}" if start else ""
    try:
        if item.modality == "text":
            value = content(item, {})
            text = value if isinstance(value, str) else read_bytes(value).decode("utf-8-sig", "replace")
            return f"<blockquote>{escape(text.strip()[:EXCERPT])}</blockquote>"
        small = media.thumbnail(item, {}, at=start)
        address = _data_uri(small.type, small.read())
        if item.modality == "image":
            return f'<img src="{address}" alt="{label}">'
        value = content(item, {})
        kind = VIDEO_TYPES.get(suffix(item.path)) or mimetypes.guess_type(f"_{suffix(item.path)}")[0] or "audio/wav"
        source = "" if isinstance(value, str) else embedding.address(value, kind)
        if not source:
            return f'<img src="{address}" alt="{label}">'
        source += at
        if item.modality == "video" and kind in VIDEO_TYPES.values():
            return f'<video controls preload="none" aria-label="{label}" poster="{address}" src="{source}"></video>'
        player = f'<audio controls preload="none" aria-label="{label}" src="{source}"></audio>'
        return f'<img src="{address}" alt="">{player if item.modality == "audio" else ""}'
    except (UserError, OSError):  # gone or changed since it was compared
        return f"<blockquote>{escape(name)}</blockquote>"


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _link_to(path: Path, folder: Path) -> str:
    """Relative URL of `path` for an HTML file in `folder`."""
    try:
        relative = Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # on another drive of Windows
        return path.absolute().as_uri()
    # "./" keeps a name with a colon from being read as an address.
    return quote(f"./{relative}".encode(errors="surrogateescape"))
