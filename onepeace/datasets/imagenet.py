"""ImageNet-1k (Russakovsky et al., IJCV 2015)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from onepeace.datasets.layout import HeldOut, Record, Split, option, shuffled
from onepeace.datasets.pictures import CAPTIONS, Photographs
from onepeace.embed.zero_shot import fill
from onepeace.errors import UserError

LICENSE = "ImageNet terms (research use)"


@dataclass(frozen=True)
class ImageNet(Photographs):
    """ImageNet-1k: 50,000 validation and 1,281,167 training photographs of 1,000 classes, from image-net.org.

    SOURCE holds val/WNID/*.JPEG and, for training data, train/WNID/*.JPEG (WNID: n01440764, ...). The official archive
    of the validation pictures has no folders; torchvision.datasets.ImageNet or PyTorch's valprep.sh makes them. Class
    names are OpenAI's, through open_clip; two pairs of classes share a name (missile, sunglasses).
    """

    size: int = option(224, "short side of the pictures in pixels")

    def splits(self, folder: Path, held_out: HeldOut) -> Iterator[Split]:
        from open_clip import IMAGENET_CLASSNAMES
        from timm.data import ImageNetInfo

        wnids, names = ImageNetInfo("imagenet-1k").label_names(), list(IMAGENET_CLASSNAMES)
        numbers = {wnid: i for i, wnid in enumerate(wnids)}

        def records(split: str) -> list[Record]:
            found = [path for path in (folder / split).glob("n*") if path.name in numbers]
            return shuffled(
                _record(path, split, numbers[place.name], names)
                for place in sorted(found)
                for path in sorted(place.glob("*.JPEG"))
            )

        val = records("val")
        if not val:
            flat = " (it has pictures outside of such folders)" if any((folder / "val").glob("*.JPEG")) else ""
            raise UserError(f"{folder / 'val'}: no pictures val/WNID/*.JPEG{flat}; make the folders with valprep.sh")
        yield Split("val/imagenet/imagenet", val, self.encode, classes=names)
        yield Split("train/image_text/imagenet", records("train"), self.encode)


def _record(path: Path, split: str, target: int, names: list[str]) -> Record:
    inputs = {"image": path, "text": [fill(caption, names[target]) for caption in CAPTIONS]}
    about = {"license": LICENSE, "wnid": path.parent.name, "target": target}
    return Record(f"in1k_{path.stem}", f"ImageNet {split}", inputs, {"label": names[target]}, about)
