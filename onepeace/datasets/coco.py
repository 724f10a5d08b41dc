"""MS-COCO: captions (Chen et al., arXiv 1504.00325) and boxes (Lin et al., ECCV 2014)."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

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
        for official_splits, shards in ((self.val, "val/coco/coco"), (self.train, "train/image_text/coco")):
            records = []
            for split in official_splits:
                records += _records(folder, split)
            if official_splits:
                yield Split(shards, shuffled(records), self.encode)


def _records(folder: Path, split: str) -> list[Record]:
    """The pictures of a split that exist and have captions, in order of their ids."""
    path = find(folder, f"captions_{split}.json", what="the captions")
    captions: dict[int, list[str]] = {}
    for where, row in json_rows(path, "annotations"):
        with fields(where, row, "image_id and caption"):
            caption = " ".join(row["caption"].split()).rstrip(".")
            captions.setdefault(int(row["image_id"]), []).append(caption)
    records = []
    for image_id, photograph in photographs_by_id(folder, split).items():
        if image_id in captions and image_id not in SAMPLES:
            record = Record(
                key=f"coco_{image_id:012d}",
                source=f"MS-COCO {split}",
                inputs={"image": photograph, "text": captions[image_id]},
                targets={},
                about={"license": LICENSE},
            )
            records.append(record)
    return records


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


@dataclass(frozen=True)
class CocoDetection(SharedPhotographs, OfficialSplits):
    """The boxes of MS-COCO: photographs with the objects of 80 classes in them, from cocodataset.org.

    SOURCE holds what train2017.zip, val2017.zip and annotations_trainval2017.zip unpack to: a folder of JPEGs per split
    and annotations/instances_SPLIT.json. The targets are "boxes" and "box_labels"; regions that are marked as crowds
    are left out, pictures without an object stay, with empty lists. The field "objects" has the ids of the objects,
    "width" and "height" the size of the photograph.
    """

    prefix = "coco_detection"
    hint = "unpack them"
    size: int = option(512, "short side of the pictures in pixels")
    train: tuple[str, ...] = option(("train2017",), "official splits that are training data")
    val: tuple[str, ...] = option(("val2017",), "official splits that are validation data")

    def tables(self, folder: Path, held_out: HeldOut) -> Mapping[str, Table]:
        return {name: _detections(folder, name) for name in self.chosen_splits}


def _detections(folder: Path, split: str) -> Table:
    table = find(folder, f"instances_{split}.json", what="the boxes")
    instances = read_instances(table)
    photographs = photographs_by_id(folder, split)
    objects_by_image: dict[int, list[Instance]] = {image_id: [] for image_id in instances.sizes}
    for instance in instances.objects:
        if not instance.crowd:
            objects_by_image[instance.image_id].append(instance)
    records = []
    for image_id, objects in objects_by_image.items():
        width, height = instances.sizes[image_id]
        record = Record(
            key=f"cocodet_{image_id:012d}",
            source=f"MS-COCO {split}",
            inputs={"image": photographs.get(image_id), "text": []},
            targets={
                "boxes": [instance.box for instance in objects],
                "box_labels": [instance.label for instance in objects],
            },
            about={
                "license": LICENSE,
                "image_id": image_id,
                "width": width,
                "height": height,
                "objects": [instance.key for instance in objects],
            },
        )
        records.append(record)
    return Table(table, records, instances.classes)


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
