"""The files of an index as points of a plane: data for the page, one HTML file that needs nothing else, a picture.

page/map.js draws both. Everything that comes from a file is JSON that is never run, and is shown as text.
"""

import io
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from onepeace.errors import UserError, need
from onepeace.files.atomic import write_text_atomic
from onepeace.files.source import scheme
from onepeace.index import Index, Item
from onepeace.index.sources import name_and_place
from onepeace.serve import document, media
from onepeace.serve.media import readable

SIDE, THUMBNAILS = 112, 2000
"""Longest side of a picture in the file, in pixels; and how many are in it, evenly from all files."""
CAPTION = 200
"""Characters of a caption that are shown."""
DIGITS = 4
"""Decimals of a place between 0 and 1."""
PICTURE, APART = (12.0, 8.5), (0.042, 0.06)
"""Inches of the sides of the drawn picture, and how far apart the pictures in it are, in parts of these."""
START = """
showMap(document.querySelector("main"), JSON.parse(document.getElementById("data").textContent));
"""
"""Last lines of the script in the file, after page/map.js."""
COLORS = {"image": "#1f6f5c", "audio": "#b5590f", "text": "#3b4f9c", "video": "#9b2c6f"}


def points(index: Index, method: str = "pca") -> dict[str, Any]:
    """The files as JSON: {"kinds", "places", "points": [[x, y, kind, name, place, id], ...], "captions"}.

    Args:
        method: "pca" or "umap", see `onepeace.index.groups.plane`.

    Raises:
        UserError: there are no files in the index; umap-learn is asked for and not installed.
    """
    return _data(*_placed(index, method))


def write_map(
    index: Index, file: Path, *, png: Path | None = None, method: str = "pca", thumbnails: int = THUMBNAILS
) -> None:
    """Write the map of an index to an HTML file, and to a picture in a format that its ending names.

    Args:
        method: see `points`.
        thumbnails: how many pictures are put into the file; the others are points only.

    Raises:
        UserError: as `points`; the disk is full; matplotlib is not installed, or does not know the ending.
    """
    if not len(index):
        raise UserError(f"{index.folder}: no files in it, so there is no map")
    items, places = _placed(index, method)
    small = _thumbnails(items, index.roots(), thumbnails)
    data = _data(items, places)
    data["thumbnails"] = {i: document.data_uri("image/webp", content) for i, content in small.items()}
    data["links"] = [_link(item, file.parent) for item in items]
    counts = ", ".join(f"{count} {kind}" for kind, count in Counter(item.modality for item in items).items())
    said = f"{len(items)} files ({counts}), by the model {Path(index.model).name} ({method.upper()})"
    body = f'<main class="map"><p class="heading">{escape(said)}</p></main>'
    script = (document.PAGE / "map.js").read_text(encoding="utf-8") + START
    write_text_atomic(file, document.render("onepeace map", body, script, data))
    if png is not None:
        _draw(png, said, items, places, small)


def _placed(index: Index, method: str) -> tuple[list[Item], np.ndarray]:
    """The files, and their (n, 2) places between 0 and 1."""
    from onepeace.index.groups import plane

    items, vectors = index.means()
    return items, plane(vectors, np.array([item.modality for item in items]), method)


def _data(items: Sequence[Item], places: np.ndarray) -> dict[str, Any]:
    kinds = [kind for kind in COLORS if any(item.modality == kind for item in items)]
    names = [tuple(map(readable, name_and_place(item.path))) for item in items]
    folders = {folder: i for i, folder in enumerate(dict.fromkeys(folder for _, folder in names))}
    return {
        "kinds": kinds,
        "places": list(folders),
        "points": [
            [round(x, DIGITS), round(1 - y, DIGITS), kinds.index(item.modality), name, folders[folder], item.id]
            for item, (x, y), (name, folder) in zip(items, places.tolist(), names, strict=True)
        ],
        "captions": {i: item.caption[:CAPTION] for i, item in enumerate(items) if item.caption},
    }


def _thumbnails(items: Sequence[Item], roots: media.Roots, count: int) -> dict[int, bytes]:
    """Small pictures (WebP) of some of the items, by their places among them, evenly; none of what is gone."""
    pictures = [i for i, item in enumerate(items) if item.modality == "image" and not scheme(item.path)]
    chosen = [pictures[i] for i in np.unique(np.linspace(0, len(pictures) - 1, min(count, len(pictures))).astype(int))]

    def small(i: int) -> bytes | None:
        try:
            return media.webp(media.picture(items[i], roots, side=SIDE), SIDE)
        except UserError:
            return None

    with ThreadPoolExecutor() as pool:
        made = pool.map(small, chosen)
        return {i: content for i, content in zip(chosen, made, strict=True) if content is not None}


def _link(item: Item, folder: Path) -> str | None:
    """The address of a file for a page in a folder; None for what lies inside another file."""
    if kind := scheme(item.path):
        return item.path if kind in ("http", "https") else None
    return document.link_to(Path(item.path), folder) if Path(item.path).is_file() else None


def _draw(file: Path, title: str, items: Sequence[Item], places: np.ndarray, small: dict[int, bytes]) -> None:
    need("matplotlib", "plot")
    from matplotlib.figure import Figure
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage
    from PIL import Image

    figure = Figure(figsize=PICTURE, layout="constrained")
    axes = figure.add_subplot()
    size = min(60.0, max(3.0, 2e4 / len(items)))
    kinds = np.array([item.modality for item in items])
    for kind in dict.fromkeys(kinds.tolist()):
        x, y = places[kinds == kind].T
        axes.scatter(x, y, s=size, c=COLORS[kind], alpha=0.7, linewidths=0, label=f"{kind} ({len(x)})")
    shown: list[int] = []
    for i, content in small.items():
        if (np.abs(places[shown] - places[i]) < APART).all(axis=1).any():
            continue  # it would lie over another one
        shown.append(i)
        image = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        box = OffsetImage(image, zoom=30 / max(image.shape[:2]))
        frame = {"edgecolor": COLORS["image"], "linewidth": 1}
        axes.add_artist(AnnotationBbox(box, tuple(places[i]), pad=0.05, bboxprops=frame))
    axes.set(xticks=[], yticks=[], title=title)
    axes.margins(0.03)
    axes.legend(loc="upper right", markerscale=max(1.0, 6 / np.sqrt(size)))
    try:
        figure.savefig(file, format=file.suffix[1:] or "png", dpi=120)
    except ValueError as error:  # matplotlib names the endings it knows
        raise UserError(f"{file}: {error}") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror or error})") from error
