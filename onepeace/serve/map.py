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
        raise UserError("no files in it", where=index.folder)
    modalities = [item.modality for item in items]
    positions = plane(vectors, np.array(modalities)).tolist()
    kinds = [kind for kind in KINDS if kind in modalities]
    folder_numbers: dict[str, int] = {}
    rows = []
    for item, (x, y) in zip(items, positions, strict=True):
        name, folder = map(readable, name_and_place(item.path))
        folder_number = folder_numbers.setdefault(folder, len(folder_numbers))
        kind_number = kinds.index(item.modality)
        rows.append([round(x, DIGITS), round(1 - y, DIGITS), kind_number, name, folder_number, item.id])
    return {
        "kinds": kinds,
        "places": list(folder_numbers),
        "points": rows,
        "captions": {i: item.caption[:CAPTION] for i, item in enumerate(items) if item.caption},
    }
