"""Annotations of objects in the form of COCO's instances_SPLIT.json."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from onepeace.datasets.reading import json_list, read_json
from onepeace.errors import UserError


class Instance(NamedTuple):
    """One object in a picture."""

    key: int
    image_id: int
    label: str
    box: list[float]
    """[x0, y0, x1, y1], relative to the picture's width and height."""
    crowd: bool
    """Many objects, not to be told apart."""


class Instances(NamedTuple):
    """What such a file says."""

    sizes: dict[int, tuple[int, int]]
    """(width, height) in pixels by the id of the picture."""
    classes: list[str]
    """In the order of their ids."""
    objects: list[Instance]
    """Those whose box has an area."""


def read_instances(path: Path) -> Instances:
    """The objects of a file; UserError names the entry that is broken."""
    content, sizes, names = read_json(path), {}, {}
    for i, row in enumerate(json_list(path, "images", content), 1):
        try:
            sizes[int(row["id"])] = (int(row["width"]), int(row["height"]))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: image {i} has no id, width and height: {row!r:.100}") from error
    for i, row in enumerate(json_list(path, "categories", content), 1):
        try:
            names[int(row["id"])] = str(row["name"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: category {i} has no id and name: {row!r:.100}") from error
    objects = []
    for i, row in enumerate(json_list(path, "annotations", content), 1):
        try:
            image_id, label, pixels = int(row["image_id"]), names[row["category_id"]], [float(n) for n in row["bbox"]]
            box = relative_box(pixels, sizes[image_id])
            found = Instance(int(row["id"]), image_id, label, box, bool(row.get("iscrowd", 0)))
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            what = "id, image_id, category_id of the file and bbox of four numbers"
            raise UserError(f"{path}: annotation {i} has no {what}: {row!r:.100}") from error
        if box[0] < box[2] and box[1] < box[3]:
            objects.append(found)
    return Instances(sizes, [names[key] for key in sorted(names)], objects)


def relative_box(pixels: Sequence[float], size: tuple[int, int]) -> list[float]:
    """[x0, y0, x1, y1] from 0 to 1 of a box (x, y, width, height) in pixels; what lies outside is cut off."""
    x, y, width, height = pixels
    edges = (x / size[0], y / size[1], (x + width) / size[0], (y + height) / size[1])
    return [round(min(max(edge, 0.0), 1.0), 6) for edge in edges]
