"""MS-COCO: captions (Chen et al., arXiv 1504.00325) and boxes (Lin et al., ECCV 2014)."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from onepeace.datasets.layout import HeldOut, OfficialSplits, Record, Split, Table, option, shuffled
from onepeace.datasets.pictures import Photographs, SharedPhotographs
from onepeace.datasets.reading import fields, find, json_rows, read_json
from onepeace.errors import UserError

LICENSE = "annotations CC BY 4.0; photographs under their Flickr licences"
SAMPLES = frozenset({125870, 126107, 165518, 214753, 234748, 252639, 423617, 551780})
"""COCO ids of the pictures in data/samples."""


@dataclass(frozen=True)
class Coco(Photographs, OfficialSplits):
    """MS-COCO captions: photographs with five sentences each, from cocodataset.org.

    SOURCE holds what train2017.zip, val2017.zip and annotations_trainval2017.zip unpack to: a folder of JPEGs per split
    and annotations/captions_SPLIT.json. The splits of 2014 (train=[train2014] val=[val2014]) hold the same pictures,
    divided otherwise. Pictures that are among the samples of this repository are left out.
    """

    train: tuple[str, ...] = option(("train2017",), "official splits that are training data")
    val: tuple[str, ...] = option(("val2017",), "official splits that are validation data; [] for none")

    def splits(self, folder: Path, held_out: HeldOut) -> Iterator[Split]:
        for names, shards in ((self.val, "val/coco/coco"), (self.train, "train/image_text/coco")):
            if names:
                records = [record for name in names for record in _records(folder, name)]
                yield Split(shards, shuffled(records), self.encode)


def _records(folder: Path, split: str) -> list[Record]:
    """The pictures of a split that exist and have captions, in order of their ids."""
    path = find(folder, f"captions_{split}.json", what="the captions")
    captions: dict[int, list[str]] = {}
    for where, row in json_rows(path, "annotations"):
        with fields(where, row, "image_id and caption"):
            captions.setdefault(int(row["image_id"]), []).append(" ".join(row["caption"].split()).rstrip("."))
    return [
        Record(f"coco_{i:012d}", f"MS-COCO {split}", {"image": path, "text": captions[i]}, {}, {"license": LICENSE})
        for i, path in photographs_by_id(folder, split).items()
        if i in captions and i not in SAMPLES
    ]


def photographs_by_id(folder: Path, split: str) -> dict[int, Path]:
    """The photographs in the folder `split` somewhere below `folder`, in the order of their ids."""
    place = find(folder, split, what="its photographs")
    # 000000000009.jpg of 2017 is COCO_train2014_000000000009.jpg of 2014
    pictures = [(int(name[1]), path) for path in place.glob("*.jpg") if (name := re.search(r"(\d+)$", path.stem))]
    if not pictures:
        raise UserError(f"{place}: no photographs named NUMBER.jpg")
    return dict(sorted(pictures))


@dataclass(frozen=True)
class CocoDetection(SharedPhotographs, OfficialSplits):
    """The boxes of MS-COCO: photographs with the objects of 80 classes in them, from cocodataset.org.

    SOURCE holds what train2017.zip, val2017.zip and annotations_trainval2017.zip unpack to: a folder of JPEGs per split
    and annotations/instances_SPLIT.json. The targets are "boxes" and "box_labels"; regions that are marked as crowds
    are left out, pictures without an object stay, with empty lists. The field "objects" has the ids of the objects,
    "width" and "height" the size of the photograph.
    """

    prefix, hint = "coco_detection", "unpack them"
    size: int = option(512, "short side of the pictures in pixels")
    train: tuple[str, ...] = option(("train2017",), "official splits that are training data")
    val: tuple[str, ...] = option(("val2017",), "official splits that are validation data")

    def tables(self, folder: Path, held_out: HeldOut) -> Mapping[str, Table]:
        return {name: _detections(folder, name) for name in (*self.val, *self.train)}


def _detections(folder: Path, split: str) -> Table:
    table = find(folder, f"instances_{split}.json", what="the boxes")
    found, pictures = read_instances(table), photographs_by_id(folder, split)
    objects: dict[int, list[Instance]] = {key: [] for key in found.sizes}
    for one in found.objects:
        if not one.crowd:
            objects[one.image_id].append(one)
    records = []
    for key, inside in objects.items():
        width, height = found.sizes[key]
        about = {"license": LICENSE, "image_id": key, "width": width, "height": height}
        about["objects"] = [one.key for one in inside]
        targets = {"boxes": [one.box for one in inside], "box_labels": [one.label for one in inside]}
        inputs: dict[str, Any] = {"image": pictures.get(key), "text": []}
        records.append(Record(f"cocodet_{key:012d}", f"MS-COCO {split}", inputs, targets, about))
    return Table(table, records, found.classes)


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
    content, sizes, names, objects = read_json(path), {}, {}, []
    for where, row in json_rows(path, "images", content):
        with fields(where, row, "id, width and height"):
            sizes[int(row["id"])] = (int(row["width"]), int(row["height"]))
    for where, row in json_rows(path, "categories", content):
        with fields(where, row, "id and name"):
            names[int(row["id"])] = str(row["name"])
    for where, row in json_rows(path, "annotations", content):
        with fields(where, row, "id, image_id, category_id of the file and bbox of four numbers"):
            image_id, label, pixels = int(row["image_id"]), names[row["category_id"]], [float(n) for n in row["bbox"]]
            box = relative_box(pixels, sizes[image_id])
            found = Instance(int(row["id"]), image_id, label, box, bool(row.get("iscrowd", 0)))
        if box[0] < box[2] and box[1] < box[3]:
            objects.append(found)
    return Instances(sizes, [names[key] for key in sorted(names)], objects)


def relative_box(pixels: Sequence[float], size: tuple[int, int]) -> list[float]:
    """Convert a box (x, y, width, height) in pixels to [x0, y0, x1, y1] from 0 to 1, clipped to the picture."""
    x, y, width, height = pixels
    edges = (x / size[0], y / size[1], (x + width) / size[0], (y + height) / size[1])
    return [round(min(max(edge, 0.0), 1.0), 6) for edge in edges]
