"""One photograph of each class of ImageNet."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from onepeace.config.reader import Count
from onepeace.datasets.layout import Encoded, HeldOut, Record, Split, option, shuffled
from onepeace.datasets.media import Photographs, read_picture, shrink, webp
from onepeace.embed.classify import fill
from onepeace.errors import UserError

NEAR = 4
"""Maximum number of different bits, of 64, in the difference hashes of two pictures that are near copies."""


def difference_hash(picture: Any) -> int:
    """64 bits: whether each of 8 x 8 cells is darker than its right neighbour. Near copies differ in few bits."""
    pixels = picture.convert("L").resize((9, 8)).tobytes()
    bits = (pixels[row * 9 + column] < pixels[row * 9 + column + 1] for row in range(8) for column in range(8))
    return int("".join("1" if bit else "0" for bit in bits), 2)


@dataclass(frozen=True)
class ImageNetSamples(Photographs):
    """One photograph of each of the 1,000 ImageNet classes, from github.com/EliSchwartz/imagenet-sample-images.

    SOURCE is the checkout: WNID_name.JPEG files. All of it is training data. Make the shards of tiny_imagenet first:
    pictures that are near copies of its validation pictures are left out.
    """

    size: Count = option(128, "short side of the pictures in pixels")

    def splits(self, folder: Path, held_out: HeldOut) -> Iterator[Split]:
        pictures = sorted(folder.glob("n*_*.JPEG"))
        if not pictures:
            raise UserError(f"{folder}: no WNID_name.JPEG files")
        val = list(held_out("tiny_imagenet"))
        if not val:
            raise UserError("val/tiny_imagenet: no shards to compare with; make those of tiny_imagenet first")
        hashes = [difference_hash(read_picture(record.inputs["image"])) for record in val]
        records = [self._record(path) for path in shuffled(pictures)]
        yield Split("train/image_text/imagenet_samples", records, partial(self._encode_if_new, hashes=hashes))

    def _encode_if_new(self, record: Record, hashes: list[int]) -> Encoded:
        """Encode a picture; UserError if it is a near copy of one with the given difference hashes."""
        picture = read_picture(record.inputs["image"])
        bits = difference_hash(picture)
        if any((bits ^ other).bit_count() <= NEAR for other in hashes):
            raise UserError("near copy of a validation picture of tiny_imagenet")
        return Encoded({"webp": webp(shrink(picture, self.size), self.quality)})

    def _record(self, path: Path) -> Record:
        wnid, _, name = path.stem.partition("_")
        name = name.replace("_", " ")
        templates = ("a photo of {a}", "a picture of {a}", "{a}")
        inputs = {"image": path, "text": [fill(template, name) for template in templates]}
        about = {"license": "ImageNet terms (research use); no licence stated", "wnid": wnid}
        return Record(f"ins_{wnid}", "one sample image per ImageNet-1k class", inputs, {"label": name}, about)


layout = ImageNetSamples()
