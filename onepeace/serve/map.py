"""The files of an index as points of a plane: one HTML file that needs nothing else, and a picture of it.

map.html holds the layout and map.js what moves; this module fills in the data. Everything that comes from a file is
JSON in a block that is never run, and is shown as text; only our own script may run, by its checksum, and nothing is
loaded from elsewhere.
"""

import base64
import hashlib
import io
import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from onepeace.errors import UserError, need
from onepeace.files.source import read_bytes, scheme
from onepeace.index.content import each
from onepeace.index.index import Index
from onepeace.index.means import file_means
from onepeace.index.plane import plane
from onepeace.index.sources import name_and_place
from onepeace.index.store import Item
from onepeace.processors import ImageProcessor
from onepeace.serve.cards import address
from onepeace.serve.hits import KINDS, link_to, readable
from onepeace.serve.service import model_name

THUMBNAIL, THUMBNAILS = 112, 2000
"""Longest side of a picture in the page, in pixels; and how many are in it, and texts, evenly from all files."""
EXCERPT = 200
"""Characters of a text or a caption that are shown."""
DIGITS = 4
"""Of a place between 0 and 1: finer ones are not seen, and would make the page larger."""
PICTURE, APART = (12.0, 8.5), (0.042, 0.06)
"""Of the PNG: inches of the sides, and how far apart its pictures are, in parts of these."""
COLORS = {"image": "#1f6f5c", "audio": "#b5590f", "text": "#3b4f9c", "video": "#9b2c6f"}

Link = Callable[[Item], str | None]
"""Gives the address of a file for the page, or None."""


class Map:
    """The points of the files of an index, and small copies of their pictures.

    Args:
        index: that is shown.
        method: "pca" or "umap"; see `onepeace.index.plane.plane`.
        thumbnails: how many pictures and texts are looked at.
        progress: True or False; None = on a terminal.

    Raises:
        UserError: there are no files in the index; umap-learn is asked for and not installed.
    """

    def __init__(
        self, index: Index, method: str = "pca", thumbnails: int = THUMBNAILS, progress: bool | None = None
    ) -> None:
        self.items, vectors = file_means(index)
        self.kinds = [item.modality for item in self.items]
        self.points = plane(vectors, np.array(self.kinds), method)
        self.summary = f"{len(self.items)} files, by the model {model_name(index)} ({method.upper()})"
        self.captions = {i: item.caption[:EXCERPT] for i, item in enumerate(self.items) if item.caption}
        self.thumbnails: dict[int, bytes] = {}
        """WebP, by the place among the items."""
        chosen = _spread([i for i, kind in enumerate(self.kinds) if kind in ("image", "text")], thumbnails)
        pictures = [i for i in chosen if self.kinds[i] == "image"]
        for at, picture in each([self.items[i] for i in pictures], _thumbnail, progress):
            self.thumbnails[pictures[at]] = picture
        texts = [i for i in chosen if self.kinds[i] == "text" and i not in self.captions]
        for at, text in each([self.items[i] for i in texts], _excerpt, progress):
            self.captions[texts[at]] = text

    def render(self, link: Link) -> str:
        """The page as a string."""
        kinds = [kind for kind in (*KINDS, *sorted({*self.kinds} - {*KINDS})) if kind in self.kinds]
        names = [
            (readable(name), readable(place).removeprefix(os.getcwd() + os.sep))
            for name, place in map(name_and_place, (item.path for item in self.items))
        ]
        folders = {folder: i for i, folder in enumerate(dict.fromkeys(folder for _, folder in names))}
        data: dict[str, Any] = {
            "kinds": kinds,
            "titles": [KINDS.get(kind, kind) for kind in kinds],
            "folders": list(folders),
            "points": [
                (round(x, DIGITS), round(1 - y, DIGITS), kinds.index(item.modality), name, folders[folder], link(item))
                for item, (x, y), (name, folder) in zip(self.items, self.points.tolist(), names, strict=True)
            ],
            "captions": self.captions,
            "thumbnails": {i: _webp(content) for i, content in self.thumbnails.items()},
        }
        counts = Counter(self.kinds)
        boxes = [
            f'<label class="{kind}"><input type="checkbox" data-kind="{kind}" autocomplete="off" checked><i></i> '
            f"{KINDS.get(kind, kind)}s ({counts[kind]})</label>"
            for kind in kinds
        ]
        folder = files("onepeace.serve")
        script = folder.joinpath("map.js").read_text(encoding="utf-8")
        checksum = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        return Template(folder.joinpath("map.html").read_text(encoding="utf-8")).substitute(
            summary=escape(self.summary),
            label=f"a map of {len(self.items)} files; arrow keys move it, plus and minus zoom",
            kinds="\n".join(boxes),
            # In HTML a "<" could end the block, or begin another one.
            data=json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
            script=script,
            script_hash=f"'sha256-{checksum}'",
        )

    def draw(self, path: Path) -> None:
        """A picture of the map, in a format that the ending names.

        Raises:
            UserError: matplotlib is not installed, does not know the ending, or the disk is full.
        """
        need("matplotlib", "plot")
        from matplotlib.figure import Figure
        from matplotlib.offsetbox import AnnotationBbox, OffsetImage
        from PIL import Image

        figure = Figure(figsize=PICTURE, layout="constrained")
        axes = figure.add_subplot()
        size = min(60.0, max(3.0, 2e4 / len(self.items)))
        for kind in dict.fromkeys(self.kinds):
            own = self.points[[one == kind for one in self.kinds]]
            color, label = COLORS.get(kind, "#62666b"), f"{KINDS.get(kind, kind)}s ({len(own)})"
            axes.scatter(own[:, 0], own[:, 1], s=size, c=color, alpha=0.7, linewidths=0, label=label)
        for i in _apart(self.points, list(self.thumbnails), APART):
            image = np.asarray(Image.open(io.BytesIO(self.thumbnails[i])).convert("RGB"))
            box = OffsetImage(image, zoom=30 / max(image.shape[:2]))
            frame = {"edgecolor": COLORS["image"], "linewidth": 1}
            axes.add_artist(AnnotationBbox(box, tuple(self.points[i]), pad=0.05, bboxprops=frame))
        axes.set(xticks=[], yticks=[], title=self.summary)
        axes.margins(0.03)
        axes.legend(loc="upper right", markerscale=max(1.0, 6 / np.sqrt(size)))
        try:
            figure.savefig(path, format=path.suffix[1:] or "png", dpi=120)
        except ValueError as error:  # matplotlib names the endings it knows
            raise UserError(f"{path}: {error}") from error
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error


def links_from(folder: Path) -> Link:
    """Addresses of files for a page that lies in a folder; none of what lies inside another file."""

    def link(item: Item) -> str | None:
        if kind := scheme(item.path):
            return item.path if kind in ("http", "https") else None
        return link_to(Path(item.path), folder) if Path(item.path).is_file() else None

    return link


class ServedMap:
    """The page of the map for `onepeace serve`, made when it is asked for first, and again when the index has changed.

    Args:
        folder: of the index.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._made: tuple[str, str] | None = None
        """The state of the index, and its page."""

    def __call__(self) -> str:
        with self._lock, Index.open(self.folder) as index:
            state = index.store.meta["generation"]
            if self._made is None or self._made[0] != state:
                self._made = state, Map(index, progress=False).render(_served)
            return self._made[1]


def _served(item: Item) -> str | None:
    """Nothing is loaded from elsewhere."""
    return None if scheme(item.path) else address(item)


def _spread(places: Sequence[int], count: int) -> list[int]:
    """So many of them, evenly."""
    if len(places) <= count:
        return list(places)
    return [places[i] for i in np.linspace(0, len(places) - 1, count).astype(int)] if count else []


def _apart(points: np.ndarray, places: Sequence[int], distance: tuple[float, float]) -> list[int]:
    """Those of the places that lie apart from all before them, along one axis or the other."""
    chosen: list[int] = []
    for i in places:
        if not (np.abs(points[chosen] - points[i]) < distance).all(axis=1).any():
            chosen.append(i)
    return chosen


def _thumbnail(value: Path | bytes | str) -> bytes:
    image = ImageProcessor(size=THUMBNAIL).load(value)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=70)
    return buffer.getvalue()


def _excerpt(value: Path | bytes | str) -> str:
    text = value if isinstance(value, str) else read_bytes(value).decode("utf-8", "replace")
    return " ".join(text.split())[:EXCERPT]


def _webp(content: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(content).decode('ascii')}"
