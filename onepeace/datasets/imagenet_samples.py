"""One photograph of each ImageNet class."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from onepeace.datasets.layout import Encoded, HeldOut, Record, Split, option, shuffled
from onepeace.datasets.pictures import Photographs, difference_hash, open_picture, shrink, webp
from onepeace.embed.zero_shot import fill
from onepeace.errors import UserError

LICENSE = "ImageNet terms (research use); no licence stated"
TEMPLATES = ("a photo of {a}", "a picture of {a}", "{a}")
NEAR = 4
"""Difference hashes of two pictures that differ in no more than this many of 64 bits make them near copies."""


@dataclass(frozen=True)
class ImageNetSamples(Photographs):
    """One photograph of each of the 1,000 ImageNet classes, from github.com/EliSchwartz/imagenet-sample-images.

    SOURCE is the checkout: WNID_name.JPEG files. All of it is training data. Make the shards of tiny_imagenet first:
    pictures that are near copies of its validation pictures are left out.
    """

    family = "ins"
    size: int = option(128, "short side of the pictures in pixels")

    def splits(self, folder: Path, held_out: HeldOut) -> Iterator[Split]:
        pictures = sorted(folder.glob("n*_*.JPEG"))
        if not pictures:
            raise UserError(f"{folder}: no WNID_name.JPEG files")
        val = held_out("tiny_imagenet", True)
        hashes = [difference_hash(open_picture(record.inputs["image"])) for record in val]
        records = [_record(path) for path in shuffled(pictures)]
        yield Split("train/image_text/imagenet_samples", records, partial(self.encode_if_new, hashes=hashes))

    def encode_if_new(self, record: Record, hashes: list[int]) -> Encoded:
        """The picture, unless it looks like one of those with the given difference hashes."""
        picture = open_picture(record.inputs["image"])
        bits = difference_hash(picture)
        if any((bits ^ other).bit_count() <= NEAR for other in hashes):
            raise UserError("near copy of a validation picture of tiny_imagenet")
        return Encoded({"webp": webp(shrink(picture, self.size), self.quality)})


def _record(path: Path) -> Record:
    wnid, _, name = path.stem.partition("_")
    name = name.replace("_", " ")
    inputs = {"image": path, "text": [fill(template, name) for template in TEMPLATES]}
    source = "one sample image per ImageNet-1k class"
    return Record(f"ins_{wnid}", source, inputs, {"label": name}, {"license": LICENSE, "wnid": wnid})
