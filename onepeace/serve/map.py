"""The files of an index as 2-D points, which page/map.js draws."""

from typing import Any

import numpy as np

from onepeace.errors import UserError
from onepeace.index import Index
from onepeace.index.paths import name_and_place
from onepeace.serve.media import readable

CAPTION = 200
"""Maximum number of characters shown of a caption."""
DIGITS = 4
"""Decimals of a coordinate between 0 and 1."""
KINDS = ("image", "audio", "text", "video")


def points(index: Index) -> dict[str, Any]:
    """The files as JSON: {"kinds", "places", "points": [[x, y, kind, name, place, id], ...], "captions"}.

    Raises:
        UserError: the index has no files.
    """
    from onepeace.index.groups import plane

    items, vectors = index.means()
    if not items:
        raise UserError(f"{index.folder}: no files in it")
    places = plane(vectors, np.array([item.modality for item in items]))
    kinds = [kind for kind in KINDS if any(item.modality == kind for item in items)]
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
