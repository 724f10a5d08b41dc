"""Flickr30k (Young, Lai, Hodosh, Hockenmaier, TACL 2014)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from onepeace.datasets.karpathy import Picture, read_karpathy
from onepeace.datasets.layout import HeldOut, Record, Split, option, shuffled
from onepeace.datasets.pictures import Photographs, photograph
from onepeace.datasets.reading import find, sentence
from onepeace.errors import UserError

LICENSE = "Flickr photographs; research and educational use (Flickr30k terms)"


@dataclass(frozen=True)
class Flickr30k(Photographs):
    """Flickr30k: 31,783 photographs with five sentences each.

    SOURCE holds a folder flickr30k-images (or flickr30k_images) of JPEGs, and dataset_flickr30k.json with Karpathy's
    splits and the sentences (caption_datasets.zip). Its test split is validation data, its val split goes nowhere (for
    choices that must not touch validation data). Pictures that are validation data of Flickr8k below the same root are
    left out of training: most of Flickr8k is in Flickr30k.
    """

    val_size: int = option(160, "short side of the validation pictures")

    def splits(self, folder: Path, held_out: HeldOut) -> Iterator[Split]:
        _, listed = read_karpathy("flickr30k", folder)
        place = find(folder, "flickr30k-images", "flickr30k_images", what="the photographs")
        files = {path.name: path for path in sorted(place.rglob("*.jpg"))}  # Kaggle has the folder inside itself
        if not files:
            raise UserError(f"{place}: no .jpg files")

        def records(split: str, pictures: Sequence[Picture]) -> Iterator[Record]:
            for file, _, captions in shuffled(pictures):
                inputs = {"image": files.get(file, place / file), "text": [sentence(text) for text in captions]}
                yield Record(f"f30k_{Path(file).stem}", f"Flickr30k {split}", inputs, {}, {"license": LICENSE})

        test = [picture for picture in listed if picture.split == "test"]
        encode = partial(photograph, size=self.val_size, quality=85)
        yield Split("val/flickr30k/flickr30k_test", records("test", test), encode)
        apart = {record.key.split("_")[1] for record in held_out("flickr8k")}
        train = [one for one in listed if one.split == "train" and Path(one.file).stem not in apart]
        yield Split("train/image_text/flickr30k", records("train", train), self.encode)
