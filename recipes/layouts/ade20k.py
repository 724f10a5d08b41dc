"""ADE20K for scene parsing (Zhou, Zhao, Puig, Fidler, Barriuso, Torralba, CVPR 2017)."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onepeace.config.reader import Count
from onepeace.datasets.layout import Encoded, HeldOut, OfficialSplits, Record, Table, option
from onepeace.datasets.media import Photographs, Quality, read_picture, shrink, webp
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
    size: Count = option(512, "short side of the pictures and maps in pixels")
    quality: Quality = option(90, "quality of the WebP files, up to 100")
    train: tuple[str, ...] = option(("training",), "official splits that are training data")
    val: tuple[str, ...] = option(("validation",), "official splits that are validation data")

    def tables(self, folder: Path, held_out: HeldOut) -> Mapping[str, Table]:
        table = find(folder, "objectInfo150.txt", what="the classes")
        classes = _classes(table)
        tables = {}
        for name in self.chosen_splits:
            tables[name] = Table(table, _records(folder, name, classes), classes)
        return tables

    def encode(self, record: Record) -> Encoded:
        """The picture, and the map of its classes at the same size."""
        picture = read_picture(record.inputs["image"])
        small = shrink(picture, self.size)
        mask = class_map(
            record.targets["mask"],
            picture=picture.size,
            size=small.size,
            num_classes=record.about["num_classes"],
        )
        return Encoded({"webp": webp(small, self.quality), "mask.png": mask})


def class_map(path: Path, picture: tuple[int, int], size: tuple[int, int], num_classes: int) -> bytes:
    """Convert a downloaded map, whose classes begin with 1, to a PNG of the given size, whose classes begin with 0.

    Raises:
        UserError: the map does not have 8 bits, differs in size from the picture, or has an unknown class.
    """
    from PIL import Image

    with Image.open(path) as image:
        if image.mode not in ("L", "P") or image.size != picture:
            width, height = image.size
            raise UserError(
                f"a map of mode {image.mode}, {width} x {height}; expected 8 bits, {picture[0]} x {picture[1]} "
                "as the picture",
                where=path,
            )
        numbers = np.asarray(image.resize(size, Image.Resampling.NEAREST))
    if numbers.max() > num_classes:
        raise UserError(f"has class {numbers.max()} of {num_classes}", where=path)
    buffer = io.BytesIO()
    from_0 = np.where(numbers == 0, IGNORED, numbers - 1).astype(np.uint8)
    Image.fromarray(from_0).save(buffer, "PNG")
    return buffer.getvalue()


def _classes(table: Path) -> list[str]:
    """The first name of each class. The last column of the table, below its header, has all names."""
    lines = list(read_lines(table))[1:]
    names = []
    for number, (where, line) in enumerate(lines, 1):
        cells = line.split("\t")
        name = cells[-1].partition(",")[0].strip()
        if cells[0].strip() != str(number) or not name:
            raise UserError(
                f"expected class {number}: its number, columns and names, with tabs between them", where=where
            )
        names.append(name)
    if not 0 < len(names) < IGNORED:
        raise UserError(f"has {len(names)} classes below its head", where=table)
    return names


def _records(folder: Path, split: str, classes: Sequence[str]) -> list[Record]:
    images = find(folder, "images", what="the photographs")
    masks = images.parent / "annotations" / split
    records = []
    for path in sorted((images / split).glob("*.jpg")):
        record = Record(
            key=f"ade20k_{path.stem.removeprefix('ADE_')}",
            source=f"ADE20K {split}",
            inputs={"image": path, "text": []},
            targets={"mask": masks / f"{path.stem}.png"},
            about={"license": LICENSE, "num_classes": len(classes)},
        )
        records.append(record)
    if not records:
        raise UserError("no photographs (*.jpg)", where=images / split)
    return records


layout = ADE20K()
