"""Flickr8k (Hodosh, Young, Hockenmaier, JAIR 2013)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from onepeace.config.reader import Count, Natural
from onepeace.datasets.layout import HeldOut, Record, Skipped, Split, option, shuffled, skipped
from onepeace.datasets.media import Photographs, photograph
from onepeace.datasets.reading import find, read_lines, sentence
from onepeace.errors import UserError

LICENSE = "Flickr photographs; research and educational use (Flickr8k terms)"


@dataclass(frozen=True)
class Flickr8k(Photographs):
    """Flickr8k: 8,091 photographs with five sentences each, from Flickr8k_Dataset.zip and Flickr8k_text.zip.

    SOURCE holds both, unpacked: a folder Flicker8k_Dataset (or Flickr8k_Dataset, Images, images) of JPEGs, and
    Flickr8k.token.txt, Flickr_8k.devImages.txt and Flickr_8k.testImages.txt anywhere below. The official test split is
    validation data. Some pictures of the dev split go nowhere (for choices that must not touch validation data); the
    rest of dev, the official training split, and the pictures that are in no split are training data, less those that
    are validation data of Flickr30k below the same root: Flickr30k holds most of Flickr8k.
    """

    size: Count = option(144, "short side of the pictures in pixels")
    val_size: Count = option(160, "short side of the validation pictures")
    keep_out: Natural = option(200, "pictures of the dev split that go into no shard")

    def splits(self, folder: Path, held_out: HeldOut) -> Iterator[Split]:
        captions = _captions(find(folder, "Flickr8k.token.txt", what="the captions"))
        dev = _names(folder, "Flickr_8k.devImages.txt")
        test = _names(folder, "Flickr_8k.testImages.txt")
        images = find(folder, "Flicker8k_Dataset", "Flickr8k_Dataset", "Images", "images", what="the photographs")
        records = partial(_records, images, captions)
        encode = partial(photograph, size=self.val_size, quality=85)
        yield Split("val/flickr8k/flickr8k_test", records(test, "test"), encode)
        left_out = {*test, *dev[: self.keep_out]}
        ids_of_flickr30k = {record.key.split("_")[1] for record in held_out("flickr30k")}
        train = []
        for name in sorted(path.name for path in images.glob("*.jpg")):
            is_held_out = name in left_out or name.split("_")[0] in ids_of_flickr30k
            if name in captions and not is_held_out:
                train.append(name)
        yield Split("train/image_text/flickr8k", records(shuffled(train), "train/dev/other"), self.encode)


def _names(folder: Path, table: str) -> list[str]:
    """The names of the pictures of a split, in a random order."""
    lines = read_lines(find(folder, table, what="a split"))
    return shuffled(sorted(line.strip() for _, line in lines))


def _records(
    images: Path, captions: Mapping[str, Sequence[str]], names: Sequence[str], split: str
) -> Iterator[Record | Skipped]:
    """The pictures with these names."""
    for name in names:
        if name not in captions:
            yield skipped(images / name, "it has no caption")
            continue
        yield Record(
            key=f"f8k_{name.partition('.')[0]}",
            source=f"Flickr8k {split}",
            inputs={"image": images / name, "text": captions[name]},
            targets={},
            about={"license": LICENSE},
        )


def _captions(path: Path) -> dict[str, list[str]]:
    """Captions by file name."""
    captions: dict[str, list[str]] = {}
    for where, line in read_lines(path):
        name, tab, caption = line.partition("\t")
        if not tab or "#" not in name:
            raise UserError(f"expected NAME.jpg#NUMBER, a tab and a caption; found {line[:60]!r}", where=where)
        caption = sentence(caption)
        if len(caption) > 5:
            captions.setdefault(name.partition("#")[0], []).append(caption)
    return captions


layout = Flickr8k()
