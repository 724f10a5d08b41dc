"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) in their binary version: records of labels and 32 x 32 pixels."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from onepeace.datasets.layout import Encoded, HeldOut, Layout, Record, Split
from onepeace.datasets.pictures import CAPTIONS
from onepeace.datasets.reading import find, read_lines
from onepeace.embed.zero_shot import fill
from onepeace.errors import UserError

LICENSE = "no licence stated"
PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Cifar10(Layout):
    """CIFAR-10: 60,000 pictures of 32 x 32 pixels in 10 classes, from cs.toronto.edu/~kriz/cifar.html.

    SOURCE holds what the binary version (cifar-10-binary.tar.gz) unpacks to: data_batch_1.bin to 5, test_batch.bin and
    batches.meta.txt. The Python version, which torchvision downloads, is pickled, and is not read.
    """

    key: ClassVar[str] = "c10"
    names: ClassVar[str] = "batches.meta.txt"
    files: ClassVar[dict[str, Sequence[str]]] = {
        "test": ("test_batch.bin",),
        "train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    }
    labels: ClassVar[int] = 1
    """Bytes in front of the pixels; the last one is the class."""

    def splits(self, folder: Path, held_out: HeldOut) -> Iterator[Split]:
        pickled = sorted([*folder.rglob("data_batch_1"), *folder.rglob("cifar-100-python")])
        if pickled and not any(folder.rglob(self.names)):
            raise UserError(f"{pickled[0]}: is pickled, which may run code; download the binary version of the set")
        names = [line.strip().replace("_", " ") for _, line in read_lines(find(folder, self.names, what="the classes"))]
        name = type(self).__name__.lower()
        for split, shards in (("test", f"val/{name}/{name}"), ("train", f"train/image_text/{name}")):
            paths = [find(folder, file, what="the pictures") for file in self.files[split]]
            records = (record for path in paths for record in self._records(path, split, names))
            yield Split(shards, records, as_png, classes=names if split == "test" else None)

    def _records(self, path: Path, split: str, names: Sequence[str]) -> Iterator[Record]:
        content, size = path.read_bytes(), self.labels + PIXELS
        if not content or len(content) % size:
            raise UserError(f"{path}: {len(content)} bytes are no whole number of records of {size}")
        for i in range(len(content) // size):
            record = content[i * size : (i + 1) * size]
            target = record[self.labels - 1]
            if target >= len(names):
                raise UserError(f"{path}: record {i} has class {target} of {len(names)}")
            inputs = {"image": _png(record[self.labels :]), "text": [fill(one, names[target]) for one in CAPTIONS]}
            key, about = f"{self.key}_{path.stem}_{i:05d}", {"license": LICENSE, "target": target}
            yield Record(key, f"{type(self).__name__} {split}", inputs, {"label": names[target]}, about)


@dataclass(frozen=True)
class Cifar100(Cifar10):
    """CIFAR-100: 60,000 pictures of 32 x 32 pixels in 100 classes, from cs.toronto.edu/~kriz/cifar.html.

    SOURCE holds what the binary version (cifar-100-binary.tar.gz) unpacks to: train.bin, test.bin and
    fine_label_names.txt. The Python version, which torchvision downloads, is pickled, and is not read.
    """

    key: ClassVar[str] = "c100"
    names: ClassVar[str] = "fine_label_names.txt"
    files: ClassVar[dict[str, Sequence[str]]] = {"test": ("test.bin",), "train": ("train.bin",)}
    labels: ClassVar[int] = 2


def as_png(record: Record) -> Encoded:
    """The picture of a record, which is PNG already."""
    return Encoded({"png": record.inputs["image"]}, record.inputs["image"])


def _png(pixels: bytes) -> bytes:
    """All red, then all green, then all blue values, row by row, as a PNG file."""
    from PIL import Image

    buffer = io.BytesIO()
    planes = [Image.frombytes("L", (32, 32), pixels[i : i + 1024]) for i in (0, 1024, 2048)]
    Image.merge("RGB", planes).save(buffer, "PNG")
    return buffer.getvalue()
