"""The boxes of MS-COCO (Lin et al., ECCV 2014)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onepeace.datasets.coco import photographs_by_id
from onepeace.datasets.instances import Instance, Instances, read_instances
from onepeace.datasets.layout import HeldOut, OfficialSplits, Record, Split, option, present
from onepeace.datasets.pictures import SharedPhotographs
from onepeace.datasets.reading import find

LICENSE = "annotations CC BY 4.0; photographs under their Flickr licences"


@dataclass(frozen=True)
class CocoDetection(SharedPhotographs, OfficialSplits):
    """The boxes of MS-COCO: photographs with the objects of 80 classes in them, from cocodataset.org.

    SOURCE holds what train2017.zip, val2017.zip and annotations_trainval2017.zip unpack to: a folder of JPEGs per split
    and annotations/instances_SPLIT.json. The targets are "boxes" and "box_labels"; regions that are marked as crowds
    are left out, pictures without an object stay, with empty lists. The field "objects" has the ids of the objects,
    "width" and "height" the size of the photograph.
    """

    family = "cocodet"
    size: int = option(512, "short side of the pictures in pixels")
    train: tuple[str, ...] = option(("train2017",), "official splits that are training data")
    val: tuple[str, ...] = option(("val2017",), "official splits that are validation data")

    def splits(self, folder: Path, held_out: HeldOut) -> Iterator[Split]:
        for name, shards in self.chosen("val/coco_detection/coco_detection", "train/coco_detection/coco_detection"):
            table = find(folder, f"instances_{name}.json", what="the boxes")
            found = read_instances(table)
            records = _records(found, photographs_by_id(folder, name), name)
            yield Split(f"{shards}_{name}", present(records, "image", table, "unpack them"), self.encode, found.classes)


def _records(found: Instances, pictures: dict[int, Path], split: str) -> list[Record]:
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
    return records
