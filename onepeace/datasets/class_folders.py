"""Pictures or sounds in one folder per class."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from onepeace.datasets.layout import Encoded, HeldOut, OfficialSplits, Record, Split, option, shuffled
from onepeace.datasets.pictures import Photographs
from onepeace.datasets.sounds import SOUNDS, Sounds
from onepeace.embed.zero_shot import fill
from onepeace.errors import UserError

PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


@dataclass(frozen=True)
class ClassFolders(OfficialSplits):
    """What ImageFolder and AudioFolder have in common."""

    modality: ClassVar[str]
    endings: ClassVar[frozenset[str]]
    templates: ClassVar[tuple[str, ...]]
    name: str = option("", "of the shards, their folders and the keys")
    license: str = option("not stated", "of the files")
    train: tuple[str, ...] = option(("train",), "folders with the training data")
    val: tuple[str, ...] = option(("val",), "folders with the validation data")
    val_share: float = option(0.0, "take this share of each class for validation, in place of the folders `val`")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch(r"[A-Za-z0-9]\w*", self.name):
            raise UserError(f"name {self.name!r} must be letters, digits and '_'")
        if not 0 <= self.val_share < 1:
            raise UserError(f"val_share {self.val_share} must be 0 or more and less than 1")

    def splits(self, folder: Path, held_out: HeldOut) -> Iterator[Split]:
        files = {"val": [] if self.val_share else self._files(folder, self.val)}
        # Without folders of splits, the folders of classes lie in SOURCE itself.
        whole = self.val_share and not any((folder / name).is_dir() for name in self.train)
        files["train"] = self._files(folder, (".",) if whole else self.train)
        if not any(files.values()):
            endings = ", ".join(sorted(self.endings))
            raise UserError(f"{folder}: no files in {'/CLASS or '.join((*self.val, *self.train))}/CLASS ({endings})")
        labels = sorted({path for found in files.values() for path, _ in found})
        targets = {label: target for target, label in enumerate(labels)}
        records = {
            split: [self._record(path, label, targets[label], f"{split}_{i:07d}") for i, (label, path) in enumerate(of)]
            for split, of in files.items()
        }
        if self.val_share:
            for label in labels:
                own = shuffled(record for record in records["train"] if record.label == label)
                records["val"] += own[: round(self.val_share * len(own))]
            held = {record.key for record in records["val"]}
            records["train"] = [record for record in records["train"] if record.key not in held]
        for split in ("val", "train"):
            shards = f"{split}/{self.name}/{self.name}_{split}"
            yield Split(shards, shuffled(records[split]), self.encode, classes=labels)

    def encode(self, record: Record) -> Encoded:
        """The file of a record as it goes into a shard."""
        raise NotImplementedError

    def _files(self, folder: Path, names: tuple[str, ...]) -> list[tuple[str, Path]]:
        """(label, path) of the files below the folders of classes, in the order of their paths."""
        places: dict[str, str] = {}
        found = []
        for place in sorted(place for name in names for place in (folder / name).glob("*") if place.is_dir()):
            label = " ".join(place.name.replace("_", " ").split())
            if places.setdefault(label, place.name) != place.name:
                raise UserError(f"{place}: is class {label!r}, as {places[label]} is; rename one")
            paths = sorted(path for path in place.rglob("*") if path.suffix.lower() in self.endings)
            found += [(label, path) for path in paths]
        return found

    def _record(self, path: Path, label: str, target: int, key: str) -> Record:
        inputs = {self.modality: path, "text": [fill(template, label) for template in self.templates]}
        about = {"license": self.license, "target": target, "file_name": f"{path.parent.name}/{path.name}"}
        return Record(f"{self.name}_{key}", self.name, inputs, {"label": label}, about)


@dataclass(frozen=True)
class ImageFolder(Photographs, ClassFolders):
    """Pictures in a folder per class, as torchvision's ImageFolder reads them.

    SOURCE holds train/CLASS/ and val/CLASS/ with pictures at any depth; or CLASS/ alone, of which val_share=0.1 takes a
    tenth for validation. The label is the name of the folder CLASS with spaces for "_"; captions are sentences around
    it.
    """

    family = "imagefolder"
    modality = "image"
    endings = PICTURES
    templates = ("a photo of {a}", "a picture of {a}", "{a}")
    name: str = option("imagefolder", "of the shards, their folders and the keys")


@dataclass(frozen=True)
class AudioFolder(Sounds, ClassFolders):
    """Sounds in a folder per class.

    SOURCE holds train/CLASS/ and val/CLASS/ with sounds (wav, flac, ogg, opus or mp3) at any depth; or CLASS/ alone, of
    which val_share=0.1 takes a tenth for validation. The label is the name of the folder CLASS with spaces for "_";
    captions are sentences around it.
    """

    family = "audiofolder"
    modality = "audio"
    endings = SOUNDS
    templates = ("{}", "the sound of {}", "a recording of {}")
    name: str = option("audiofolder", "of the shards, their folders and the keys")
