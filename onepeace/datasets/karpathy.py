"""The splits of Karpathy and Fei-Fei (CVPR 2015) of COCO, Flickr8k and Flickr30k, on which retrieval is reported."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from onepeace.datasets.layout import Record, Skipped, skipped
from onepeace.datasets.reading import fields, find, json_rows, read_json
from onepeace.errors import UserError

NAMES = ("coco", "flickr8k", "flickr30k")
CAPTIONS = 5
"""A few pictures of COCO have six or seven captions; as usual the first five count: 25,000 queries in its test split,
where CLIP_benchmark has 25,010."""


class Picture(NamedTuple):
    """An entry of Karpathy's list."""

    file: str
    split: str
    captions: list[str]
    """Captions as they are written."""


def karpathy(name: str, folder: Path, split: str) -> Iterator[Record | Skipped]:
    """The pictures of a split with their captions as they are written, in the order of the file.

    `folder` holds dataset_NAME.json, from caption_datasets.zip, and the pictures FILENAME at any depth.
    """
    table, pictures = read_karpathy(name, folder)
    places = {path.name: path for path in sorted(folder.rglob("*.jpg"))}
    wanted = [picture for picture in pictures if picture.split == split]
    if not wanted:
        there = ", ".join(sorted({picture.split for picture in pictures}))
        raise UserError(f"{table}: has no split {split!r}; it has {there}")
    for file, _, captions in wanted:
        if file not in places:
            yield skipped(table, f"{file} is not below {folder}")
        else:
            inputs = {"image": places[file], "text": captions[:CAPTIONS]}
            yield Record(Path(file).stem, f"{name}, Karpathy's {split}", inputs, {}, {})


def read_karpathy(name: str, folder: Path) -> tuple[Path, list[Picture]]:
    """dataset_NAME.json, somewhere below a folder, and its entries."""
    table = find(folder, f"dataset_{name}.json", what="Karpathy's split and captions")
    pictures = []
    for where, row in json_rows(table, "images", read_json(table)):
        with fields(where, row, "filename, split and sentences"):
            captions = [" ".join(sentence["raw"].split()) for sentence in row["sentences"]]
            pictures.append(Picture(str(row["filename"]), str(row["split"]), [text for text in captions if text]))
    return table, pictures
