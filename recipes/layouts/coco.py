"""The captions of MS-COCO (Chen et al., arXiv 1504.00325)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from coco_files import LICENSE, photographs_by_id

from onepeace.config.reader import Count
from onepeace.datasets.layout import HeldOut, OfficialSplits, Record, Split, option, shuffled
from onepeace.datasets.media import Photographs
from onepeace.datasets.reading import fields, find, json_rows

SAMPLES = frozenset({125870, 126107, 165518, 214753, 234748, 252639, 423617, 551780})
"""COCO ids of the pictures in data/samples."""


@dataclass(frozen=True)
class Coco(Photographs, OfficialSplits):
    """MS-COCO captions: photographs with five sentences each, from cocodataset.org.

    SOURCE holds what train2017.zip, val2017.zip and annotations_trainval2017.zip unpack to: a folder of JPEGs per split
    and annotations/captions_SPLIT.json. The splits of 2014 (train=[train2014] val=[val2014]) hold the same pictures,
    divided otherwise. Pictures that are among the samples of this repository are left out.
    """

    size: Count = option(480, "short side of the pictures in pixels")
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


layout = Coco()
