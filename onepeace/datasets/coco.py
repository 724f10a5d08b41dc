"""MS-COCO captions (Chen et al., arXiv 1504.00325)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from onepeace.datasets.layout import HeldOut, OfficialSplits, Record, Split, option, shuffled
from onepeace.datasets.pictures import Photographs
from onepeace.datasets.reading import find, json_list
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

    family = "coco"
    train: tuple[str, ...] = option(("train2017",), "official splits that are training data")
    val: tuple[str, ...] = option(("val2017",), "official splits that are validation data; [] for none")

    def splits(self, folder: Path, held_out: HeldOut) -> Iterator[Split]:
        for names, shards in ((self.val, "val/coco/coco"), (self.train, "train/image_text/coco")):
            if names:
                records = [record for name in names for record in _records(folder, name)]
                yield Split(shards, shuffled(records), self.encode)


def _records(folder: Path, split: str) -> list[Record]:
    """The pictures of a split that are there and have captions, in order of their ids."""
    path = find(folder, f"captions_{split}.json", what="the captions")
    captions: dict[int, list[str]] = {}
    for i, row in enumerate(json_list(path, "annotations"), 1):
        try:
            captions.setdefault(int(row["image_id"]), []).append(" ".join(row["caption"].split()).rstrip("."))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path}: annotation {i} has no image_id and caption: {row!r:.100}") from error
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
