"""tiny-ImageNet, the dataset of the course CS231n."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from onepeace.config.reader import Natural
from onepeace.datasets.layout import Encoded, HeldOut, Layout, Record, Split, option, shuffled
from onepeace.datasets.media import read_picture
from onepeace.datasets.reading import find, read_json, read_lines
from onepeace.embed.classify import fill
from onepeace.errors import UserError

TEMPLATES = ("a photo of {a}", "a picture of {a}", "{a}", "a small photo of {a}")
LICENSE = "ImageNet terms (research use); no licence stated"


@dataclass(frozen=True)
class TinyImageNet(Layout):
    """tiny-ImageNet: 64 px photographs of 200 ImageNet classes, from tiny-imagenet-200.zip.

    SOURCE is the unpacked folder: words.txt, train/WNID/images/*.JPEG, val/images/*.JPEG, val/val_annotations.txt. The
    JPEG files are stored as they are. Training shards come from train/, validation shards from val/. Captions are
    sentences around the class name: the first WordNet synonym, or the one in onepeace/datasets/tiny_imagenet_names.json
    where that is unclear.
    """

    per_class: Natural = option(130, "training pictures of a class, of 500")
    val_per_class: Natural = option(12, "validation pictures of a class, of 50")

    def splits(self, folder: Path, held_out: HeldOut) -> Iterator[Split]:
        words = find(folder, "words.txt", what="WordNet ids and names")
        folder = words.parent
        synonyms = _synonyms(words)
        class_folders = sorted((folder / "train").glob("n*"))
        wnids = [path.name for path in class_folders if path.is_dir()]
        if not wnids:
            raise UserError("no folder of a class (n01443537, ...)", where=folder / "train")
        for wnid in wnids:
            if wnid not in synonyms:
                raise UserError(f"has no line for class {wnid} of train/", where=words)
        names = _names(wnids, synonyms)
        classes = []
        for target, wnid in enumerate(wnids):
            classes.append(PictureClass(wnid, target, names[wnid], synonyms[wnid]))

        val_paths: dict[str, list[Path]] = defaultdict(list)
        for path, wnid in shuffled(_annotations(folder / "val/val_annotations.txt", wnids)):
            val_paths[wnid].append(path)
        val = []
        for picture_class in classes:
            val += _records(val_paths[picture_class.wnid][: self.val_per_class], "val", picture_class)
        yield Split(
            "val/tiny_imagenet/tiny_imagenet",
            shuffled(val),
            stored,
            classes=[picture_class.to_dict() for picture_class in classes],
        )

        train = []
        for picture_class in classes:
            paths = shuffled(sorted((folder / "train" / picture_class.wnid / "images").glob("*.JPEG")))
            train += _records(paths[: self.per_class], "train", picture_class)
        yield Split("train/image_text/tiny_imagenet", shuffled(train), stored)


class PictureClass(NamedTuple):
    """A class of pictures."""

    wnid: str
    """WordNet id."""
    target: int
    name: str
    synonyms: Sequence[str]

    def to_dict(self) -> dict[str, str]:
        """Its entry in classes.json."""
        return {
            "wnid": self.wnid,
            "name": self.name,
            "synonyms": ", ".join(self.synonyms),
        }


def stored(record: Record) -> Encoded:
    """The unchanged JPEG file of a record; OSError if it is not a picture."""
    data = record.inputs["image"].read_bytes()
    read_picture(data)
    return Encoded({"jpg": data}, data)


def _records(paths: Sequence[Path], split: str, picture_class: PictureClass) -> list[Record]:
    """Pictures of a class."""
    name = picture_class.name
    captions = [fill(template, name) for template in TEMPLATES]
    synonyms = [synonym for synonym in picture_class.synonyms if synonym != name]
    captions += [fill(TEMPLATES[0], synonym) for synonym in synonyms[:2]]
    records = []
    for path in paths:
        record = Record(
            key=f"tin_{path.stem}",
            source=f"tiny-ImageNet {split}",
            inputs={"image": path, "text": captions},
            targets={"label": name},
            about={"license": LICENSE, "wnid": picture_class.wnid, "target": picture_class.target},
        )
        records.append(record)
    return records


def _synonyms(path: Path) -> dict[str, list[str]]:
    synonyms = {}
    for where, line in read_lines(path):
        wnid, tab, names = line.partition("\t")
        if not tab or not names.strip():
            raise UserError(f"expected WNID, a tab and names; found {line!r}", where=where)
        synonyms[wnid] = [name.strip() for name in names.split(",")]
    return synonyms


def _annotations(path: Path, wnids: Sequence[str]) -> list[tuple[Path, str]]:
    rows = []
    for where, line in read_lines(path):
        fields = line.split("\t")
        if len(fields) < 2 or fields[1] not in wnids:
            raise UserError(f"expected a file name, a tab and a class of train/; found {line!r}", where=where)
        rows.append((path.parent / "images" / fields[0], fields[1]))
    return rows


def _names(wnids: Sequence[str], synonyms: dict[str, list[str]]) -> dict[str, str]:
    """One name per class, all different."""
    chosen = read_json(Path(__file__).with_name("tiny_imagenet_names.json"))
    names = {wnid: chosen.get(wnid, synonyms[wnid][0]) for wnid in wnids}
    count_by_name = Counter(names.values())
    for wnid, name in names.items():
        if count_by_name[name] > 1 and len(synonyms[wnid]) > 1:
            names[wnid] = synonyms[wnid][1]
    for name, count in Counter(names.values()).items():
        if count > 1:
            raise UserError(f"two classes are named {name!r}; add a name for one to tiny_imagenet_names.json")
    return names


layout = TinyImageNet()
