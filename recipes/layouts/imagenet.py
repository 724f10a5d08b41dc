"""ImageNet-1k (Russakovsky et al., IJCV 2015)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from onepeace.config.reader import Count
from onepeace.datasets.layout import HeldOut, Record, Split, option, shuffled
from onepeace.datasets.media import PICTURE_CAPTIONS, Photographs
from onepeace.embed.classify import fill
from onepeace.errors import UserError

LICENSE = "ImageNet terms (research use)"


@dataclass(frozen=True)
class ImageNet(Photographs):
    """ImageNet-1k: 50,000 validation and 1,281,167 training photographs of 1,000 classes, from image-net.org.

    SOURCE holds val/WNID/*.JPEG and, for training data, train/WNID/*.JPEG (WNID: n01440764, ...). The official archive
    of the validation pictures has no folders; torchvision.datasets.ImageNet or PyTorch's valprep.sh makes them. Class
    names are OpenAI's, through open_clip; two pairs of classes share a name (missile, sunglasses).
    """

    size: Count = option(480, "short side of the pictures in pixels")

    def splits(self, folder: Path, held_out: HeldOut) -> Iterator[Split]:
        from open_clip import IMAGENET_CLASSNAMES
        from timm.data import ImageNetInfo

        wnids = ImageNetInfo("imagenet-1k").label_names()
        names = list(IMAGENET_CLASSNAMES)
        class_names = dict(zip(wnids, names, strict=True))
        val = _records(folder, "val", class_names)
        if not val:
            flat = " (it has pictures outside of such folders)" if any((folder / "val").glob("*.JPEG")) else ""
            raise UserError(
                f"no pictures val/WNID/*.JPEG{flat}; make the folders with valprep.sh", where=folder / "val"
            )
        yield Split("val/imagenet/imagenet", val, self.encode, classes=names)
        yield Split("train/image_text/imagenet", _records(folder, "train", class_names), self.encode)


def _records(folder: Path, split: str, class_names: Mapping[str, str]) -> list[Record]:
    """The pictures of a split, in a random order.

    Args:
        class_names: names of the classes by their WordNet ids, in the order of the classes.
    """
    target_by_wnid = {wnid: target for target, wnid in enumerate(class_names)}
    records = []
    for class_folder in sorted((folder / split).glob("n*")):
        wnid = class_folder.name
        if wnid not in class_names:
            continue
        name = class_names[wnid]
        for path in sorted(class_folder.glob("*.JPEG")):
            record = Record(
                key=f"in1k_{path.stem}",
                source=f"ImageNet {split}",
                inputs={"image": path, "text": [fill(caption, name) for caption in PICTURE_CAPTIONS]},
                targets={"label": name},
                about={"license": LICENSE, "wnid": wnid, "target": target_by_wnid[wnid]},
            )
            records.append(record)
    return shuffled(records)


layout = ImageNet()
