"""ADE20K for scene parsing (Zhou, Zhao, Puig, Fidler, Barriuso, Torralba, CVPR 2017)."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onepeace.datasets.layout import Encoded, HeldOut, OfficialSplits, Record, Table, option
from onepeace.datasets.pictures import Photographs, open_picture, shrink, webp
from onepeace.datasets.reading import find, read_lines
from onepeace.errors import UserError

LICENSE = "annotations BSD-3-Clause; photographs for research and education (ADE20K terms)"
IGNORED = 255
"""Value of other objects in the written maps; in the download it is 0, and the classes begin with 1."""


@dataclass(frozen=True)
class ADE20K(Photographs, OfficialSplits):
    """ADE20K: photographs with a map of 150 classes, from ADEChallengeData2016.zip (data.csail.mit.edu).

    SOURCE holds what it unpacks to: objectInfo150.txt, images/training, images/validation, annotations/training and
    annotations/validation. The target "mask" has the numbers of classes.json, from 0, and 255 for other objects.
    """

    prefix = "ade20k"
    size: int = option(512, "short side of the pictures and maps in pixels")
    quality: int = option(90, "quality of the WebP files, up to 100")
    train: tuple[str, ...] = option(("training",), "official splits that are training data")
    val: tuple[str, ...] = option(("validation",), "official splits that are validation data")

    def tables(self, folder: Path, held_out: HeldOut) -> Mapping[str, Table]:
        table = find(folder, "objectInfo150.txt", what="the classes")
        classes = _classes(table)
        return {name: Table(table, _records(folder, name, classes), classes) for name in (*self.val, *self.train)}

    def encode(self, record: Record) -> Encoded:
        """The picture, and the map of its classes at the same size."""
        picture, table = open_picture(record.inputs["image"]), record.targets["mask"]
        small = shrink(picture, self.size)
        mask = class_map(table, picture.size, small.size, record.about["num_classes"])
        return Encoded({"webp": webp(small, self.quality), "mask.png": mask})


def class_map(path: Path, picture: tuple[int, int], size: tuple[int, int], num_classes: int) -> bytes:
    """Convert a downloaded map, whose classes begin with 1, to a PNG of the given size, whose classes begin with 0.

    Raises:
        UserError: the map does not have 8 bits, differs in size from the picture, or has an unknown class.
    """
    from PIL import Image

    with Image.open(path) as image:
        if image.mode not in ("L", "P") or image.size != picture:
            found, expected = ("{} x {}".format(*size) for size in (image.size, picture))
            raise UserError(f"{path}: a map of mode {image.mode}, {found}; expected 8 bits, {expected} as the picture")
        numbers = np.asarray(image.resize(size, Image.Resampling.NEAREST))
    if numbers.max() > num_classes:
        raise UserError(f"{path}: has class {numbers.max()} of {num_classes}")
    buffer = io.BytesIO()
    Image.fromarray(np.where(numbers == 0, IGNORED, numbers - 1).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def _classes(table: Path) -> list[str]:
    """The first name of each class. The last column of the table, below its header, has all names."""
    lines = list(read_lines(table))[1:]
    names = [line.split("\t")[-1].partition(",")[0].strip() for _, line in lines]
    for number, ((where, line), name) in enumerate(zip(lines, names, strict=True), 1):
        if line.split("\t")[0].strip() != str(number) or not name:
            raise UserError(f"{where}: expected class {number}: its number, columns and names, with tabs between them")
    if not 0 < len(names) < IGNORED:
        raise UserError(f"{table}: has {len(names)} classes below its head")
    return names


def _records(folder: Path, split: str, classes: Sequence[str]) -> list[Record]:
    place = find(folder, "images", what="the photographs") / split
    records = []
    for path in sorted(place.glob("*.jpg")):
        mask = place.parents[1] / "annotations" / split / f"{path.stem}.png"
        about = {"license": LICENSE, "num_classes": len(classes)}
        key = f"ade20k_{path.stem.removeprefix('ADE_')}"
        records.append(Record(key, f"ADE20K {split}", {"image": path, "text": []}, {"mask": mask}, about))
    if not records:
        raise UserError(f"{place}: no photographs (*.jpg)")
    return records
