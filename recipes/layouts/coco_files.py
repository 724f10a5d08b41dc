"""Files of MS-COCO that several layouts read: photographs and boxes (Lin et al., ECCV 2014)."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from onepeace.datasets.reading import fields, find, json_rows, read_json
from onepeace.errors import UserError

LICENSE = "annotations CC BY 4.0; photographs under their Flickr licences"


def photographs_by_id(folder: Path, split: str) -> dict[int, Path]:
    """The photographs in the folder `split` somewhere below `folder`, in the order of their ids."""
    split_folder = find(folder, split, what="its photographs")
    photographs = {}
    for path in split_folder.glob("*.jpg"):
        image_id = re.search(
            r"(\d+)$", path.stem
        )  # 000000000009.jpg of 2017 is COCO_train2014_000000000009.jpg of 2014
        if image_id is not None:
            photographs[int(image_id[1])] = path
    if not photographs:
        raise UserError("no photographs named NUMBER.jpg", where=split_folder)
    return dict(sorted(photographs.items()))


class Instance(NamedTuple):
    """One object in a picture."""

    key: int
    image_id: int
    label: str
    box: list[float]
    """[x0, y0, x1, y1], relative to the picture's width and height."""
    crowd: bool
    """Whether it is a group of objects that are not separated."""


class Instances(NamedTuple):
    """Content of a file with instances."""

    sizes: dict[int, tuple[int, int]]
    """(width, height) in pixels by the id of the picture."""
    classes: list[str]
    """Names of the classes in the order of their ids."""
    objects: list[Instance]
    """Objects whose box has an area."""


def read_instances(path: Path) -> Instances:
    """Read a file with instances; UserError names an invalid entry."""
    content = read_json(path)
    sizes = {}
    names = {}
    objects = []
    for where, row in json_rows(path, "images", content):
        with fields(where, row, "id, width and height"):
            width = int(row["width"])
            height = int(row["height"])
            sizes[int(row["id"])] = (width, height)
    for where, row in json_rows(path, "categories", content):
        with fields(where, row, "id and name"):
            names[int(row["id"])] = str(row["name"])
    for where, row in json_rows(path, "annotations", content):
        with fields(where, row, "id, image_id, category_id of the file and bbox of four numbers"):
            image_id = int(row["image_id"])
            pixels = [float(number) for number in row["bbox"]]
            instance = Instance(
                key=int(row["id"]),
                image_id=image_id,
                label=names[row["category_id"]],
                box=relative_box(pixels, sizes[image_id]),
                crowd=bool(row.get("iscrowd", 0)),
            )
        x0, y0, x1, y1 = instance.box
        if x0 < x1 and y0 < y1:
            objects.append(instance)
    classes = [names[key] for key in sorted(names)]
    return Instances(sizes, classes, objects)


def relative_box(pixels: Sequence[float], size: tuple[int, int]) -> list[float]:
    """Convert a box (x, y, width, height) in pixels to [x0, y0, x1, y1] from 0 to 1, clipped to the picture."""
    x, y, width, height = pixels
    picture_width, picture_height = size
    edges = (
        x / picture_width,
        y / picture_height,
        (x + width) / picture_width,
        (y + height) / picture_height,
    )
    return [round(min(max(edge, 0.0), 1.0), 6) for edge in edges]
