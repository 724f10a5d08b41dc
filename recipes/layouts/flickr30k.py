"""Datasets with the splits of Karpathy and Fei-Fei (CVPR 2015), on which retrieval and captions are reported."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

from onepeace.datasets.layout import HeldOut, Record, Split, option, shuffled
from onepeace.datasets.media import Photographs
from onepeace.datasets.reading import fields, find, json_rows, sentence
from onepeace.errors import UserError

CAPTIONS = 5
"""A few pictures of COCO have six or seven captions; the first five are used, as usual: 25,000 queries in the test
split (CLIP_benchmark: 25,010)."""


@dataclass(frozen=True)
class Flickr30k(Photographs):
    """Flickr30k (Young, Lai, Hodosh, Hockenmaier, TACL 2014): 31,783 photographs with five sentences each.

    SOURCE holds the JPEGs, at any depth, and dataset_flickr30k.json with Karpathy's splits and the sentences
    (caption_datasets.zip). Its test split is validation data, its val split goes nowhere (for choices that must not
    touch validation data). Pictures that are validation data of Flickr8k below the same root are left out of training:
    most of Flickr8k is in Flickr30k.
    """

    name: ClassVar[str] = "flickr30k"
    prefix: ClassVar[str] = "f30k"
    """Beginning of the keys."""
    title: ClassVar[str] = "Flickr30k"
    license: ClassVar[str] = "Flickr photographs; research and educational use (Flickr30k terms)"
    shared: ClassVar[str] = "flickr8k"
    """Dataset that shares photographs, identified by the first part of their names."""
    train: tuple[str, ...] = option(("train",), "Karpathy's splits that are training data")

    def splits(self, folder: Path, held_out: HeldOut) -> Iterator[Split]:
        listed = read_karpathy(self.name, folder)
        files = {path.name: path for path in sorted(folder.rglob("*.jpg"))}
        if not files:
            raise UserError("no .jpg files", where=folder)
        test = [picture for picture in listed if picture.split == "test"]
        yield Split(f"val/{self.name}/{self.name}_test", self._records(test, folder, files), self.encode)
        held_out_stems = set()
        if self.shared:
            held_out_stems = {record.key.split("_")[1] for record in held_out(self.shared)}
        train = []
        for picture in listed:
            if picture.split in self.train and Path(picture.file).stem not in held_out_stems:
                train.append(picture)
        yield Split(f"train/image_text/{self.name}", self._records(train, folder, files), self.encode)

    def _records(
        self, pictures: "Sequence[ListedPicture]", folder: Path, files: Mapping[str, Path]
    ) -> Iterator[Record]:
        """Records of listed pictures in a random order; ``files`` are paths by name."""
        for picture in shuffled(pictures):
            yield Record(
                key=f"{self.prefix}_{Path(picture.file).stem}",
                source=f"{self.title} {picture.split}",
                inputs={
                    "image": files.get(picture.file, folder / picture.file),
                    "text": [sentence(caption) for caption in picture.captions],
                },
                targets={},
                about={"license": self.license},
            )


class ListedPicture(NamedTuple):
    """An entry of Karpathy's list."""

    file: str
    split: str
    captions: list[str]
    """Unchanged captions, at most `CAPTIONS`."""


def read_karpathy(name: str, folder: Path) -> list[ListedPicture]:
    """The entries of dataset_NAME.json somewhere below a folder; dataset_coco.json for coco_karpathy."""
    table = find(folder, f"dataset_{name.removesuffix('_karpathy')}.json", what="Karpathy's split and captions")
    pictures = []
    for where, row in json_rows(table, "images"):
        with fields(where, row, "filename, split and sentences"):
            captions = []
            for entry in row["sentences"]:
                caption = " ".join(entry["raw"].split())
                if caption:
                    captions.append(caption)
            picture = ListedPicture(
                file=str(row["filename"]),
                split=str(row["split"]),
                captions=captions[:CAPTIONS],
            )
        pictures.append(picture)
    return pictures


layout = Flickr30k()
