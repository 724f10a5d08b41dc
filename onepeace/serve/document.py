"""One HTML file that needs nothing else and no network: the hits of a search, explanations.

Everything that comes from a file or a user is escaped by the caller; only the script that is passed here may run, by
its checksum.
"""

import base64
import hashlib
import os
from html import escape
from pathlib import Path
from urllib.parse import quote

from onepeace.files.source import read_bytes
from onepeace.serve.media import readable

PAGE = Path(__file__).parent / "page"
EMBEDDED, EMBEDDED_TOTAL = 4 << 20, 24 << 20
"""Bytes of one sound or video, and of all together, that are put into a file; the others are linked."""
HTML = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; media-src data: 'self' file:; \
style-src 'unsafe-inline'; script-src {allowed}">
<title>{title}</title>
<style>{style}</style>
</head>
<body class="document">
{body}
{scripts}
</body>
</html>
"""


def render(title: str, body: str, script: str = "") -> str:
    """The file, in the style of the page.

    Args:
        title: plain text.
        body: HTML.
        script: an ES module.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    scripts = f'<script type="module">{script}</script>' if script else ""
    allowed = f"'sha256-{digest}'" if script else "'none'"
    style = (PAGE / "app.css").read_text(encoding="utf-8")
    html = HTML.format(title=escape(readable(title)), allowed=allowed, style=style, body=body, scripts=scripts)
    return html.encode("utf-8", "replace").decode()  # a path may hold bytes that are no text


class Embedding:
    """Sounds and videos as data: URIs, or links to them from the file where it would become too large.

    Args:
        folder: where the file lies.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.left = folder, EMBEDDED_TOTAL

    def address(self, value: Path | bytes, kind: str) -> str:
        size = len(value) if isinstance(value, bytes) else value.stat().st_size
        if isinstance(value, Path) and size > min(EMBEDDED, self.left):
            return escape(link_to(value, self.folder), quote=True)
        self.left -= size
        return data_uri(kind, value if isinstance(value, bytes) else read_bytes(value))


def data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def link_to(path: Path, folder: Path) -> str:
    """A relative address of `path` for a file in `folder`."""
    try:
        relative = Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive of Windows
        return path.absolute().as_uri()
    # "./" keeps a name with a colon from being read as an address.
    return quote(f"./{relative}".encode(errors="surrogateescape"))
