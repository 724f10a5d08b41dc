"""Flickr30k (Young, Lai, Hodosh, Hockenmaier, TACL 2014)."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from onepeace.datasets.layout import HeldOut, Record, Skipped, Split, option, shuffled, skipped
from onepeace.datasets.pictures import Photographs, photograph
from onepeace.datasets.reading import find, json_list, read_lines, sentence
from onepeace.errors import UserError

LICENSE = "Flickr photographs; research and educational use (Flickr30k terms)"
HEAD = "image_name| comment_number| comment"


@dataclass(frozen=True)
class Flickr30k(Photographs):
    """Flickr30k: 31,783 photographs with five sentences each.

    SOURCE holds a folder flickr30k-images (or flickr30k_images) of JPEGs, and results_20130124.token or, as on Kaggle,
    results.csv with "|" between the columns. With Karpathy's dataset_flickr30k.json below SOURCE its test split is
    validation data and its val split goes nowhere (for choices that must not touch validation data); without it all is
    training data. Pictures that are validation data of Flickr8k below the same root are left out of training: most of
    Flickr8k is in Flickr30k.
    """

    family = "f30k"
    val_size: int = option(160, "short side of the validation pictures")

    def splits(self, folder: Path, held_out: HeldOut) -> Iterator[Split]:
        captions = _captions(find(folder, "results_20130124.token", "results.csv", what="the captions"))
        place = find(folder, "flickr30k-images", "flickr30k_images", what="the photographs")
        pictures = {path.name: path for path in sorted(place.rglob("*.jpg"))}  # Kaggle has the folder inside itself
        if not pictures:
            raise UserError(f"{place}: no .jpg files")
        splits = _splits(folder)

        def records(names: Sequence[str], part: str) -> Iterator[Record | Skipped]:
            for name in shuffled(names):
                path = pictures.get(name, place / name)
                if name in captions:
                    inputs = {"image": path, "text": captions[name]}
                    yield Record(f"f30k_{path.stem}", f"Flickr30k {part}", inputs, {}, {"license": LICENSE})
                else:
                    yield skipped(path, "it has no caption")

        if splits:
            test = sorted(name for name, split in splits.items() if split == "test")
            encode = partial(photograph, size=self.val_size, quality=85)
            yield Split("val/flickr30k/flickr30k_test", records(test, "test"), encode)
        apart = {record.key.split("_")[1] for record in held_out("flickr8k")}
        train = [name for name in pictures if splits.get(name) not in ("test", "val") and Path(name).stem not in apart]
        yield Split("train/image_text/flickr30k", records(train, "train"), self.encode)

    def group(self, record: Record) -> tuple[str, str]:
        return "flickr", record.key.split("_")[1]


def _captions(path: Path) -> dict[str, list[str]]:
    """Captions by file name."""
    captions: dict[str, list[str]] = {}
    # results.csv has one row in which the second "|" is missing.
    row = re.compile(r"([^|]+\.jpg)\|\s*\d+\s*\|?\s(.*)" if path.suffix == ".csv" else r"(.+\.jpg)#\d+\t(.*)")
    shape = HEAD if path.suffix == ".csv" else "NAME.jpg#NUMBER, a tab and a caption"
    for where, line in read_lines(path):
        if line.startswith(HEAD):
            continue
        match = row.fullmatch(line)
        if match is None:
            raise UserError(f"{where}: expected {shape}; found {line[:60]!r}")
        if caption := sentence(match[2]):
            captions.setdefault(match[1].strip(), []).append(caption)
    return captions


def _splits(folder: Path) -> dict[str, str]:
    """Karpathy's split by file name; empty if it is not there."""
    splits = {}
    for path in sorted(folder.rglob("dataset_flickr30k.json"))[:1]:
        for i, row in enumerate(json_list(path, "images"), 1):
            try:
                splits[row["filename"]] = row["split"]
            except (KeyError, TypeError) as error:
                raise UserError(f"{path}: image {i} of the list has no filename and split: {row!r:.100}") from error
    return splits
