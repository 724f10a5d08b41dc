"""The boxes of MS-COCO (Lin et al., ECCV 2014)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from coco_files import LICENSE, Instance, photographs_by_id, read_instances

from onepeace.config.reader import Count
from onepeace.datasets.layout import HeldOut, OfficialSplits, Record, Table, option
from onepeace.datasets.media import SharedPhotographs
from onepeace.datasets.reading import find


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
    size: Count = option(640, "short side of the pictures in pixels")
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


layout = CocoDetection()
