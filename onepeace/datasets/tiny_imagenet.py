"""tiny-ImageNet, the dataset of the course CS231n."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from onepeace.datasets.layout import Encoded, HeldOut, Layout, Record, Split, option, shuffled
from onepeace.datasets.pictures import open_picture
from onepeace.datasets.reading import find, read_json, read_lines
from onepeace.embed.zero_shot import fill
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

    per_class: int = option(130, "training pictures of a class, of 500")
    val_per_class: int = option(12, "validation pictures of a class, of 50")

    def splits(self, folder: Path, held_out: HeldOut) -> Iterator[Split]:
        words = find(folder, "words.txt", what="WordNet ids and names")
        folder = words.parent
        synonyms = _synonyms(words)
        wnids = sorted(path.name for path in (folder / "train").glob("n*") if path.is_dir())
        if not wnids:
            raise UserError(f"{folder / 'train'}: no folder of a class (n01443537, ...)")
        if unknown := [wnid for wnid in wnids if wnid not in synonyms]:
            raise UserError(f"{words}: has no line for class {unknown[0]} of train/")
        names = _names(wnids, synonyms)

        def records(paths: dict[str, Sequence[Path]], split: str) -> list[Record]:
            return shuffled(
                _record(path, split, wnid, names[wnid], synonyms[wnid], target)
                for target, wnid in enumerate(wnids)
                for path in paths[wnid]
            )

        val: dict[str, list[Path]] = {wnid: [] for wnid in wnids}
        for path, wnid in shuffled(_annotations(folder / "val/val_annotations.txt", wnids)):
            val[wnid].append(path)
        yield Split(
            "val/tiny_imagenet/tiny_imagenet",
            records({wnid: paths[: self.val_per_class] for wnid, paths in val.items()}, "val"),
            stored,
            classes=[{"wnid": wnid, "name": names[wnid], "synonyms": ", ".join(synonyms[wnid])} for wnid in wnids],
        )
        train = {wnid: shuffled(sorted((folder / "train" / wnid / "images").glob("*.JPEG"))) for wnid in wnids}
        yield Split(
            "train/image_text/tiny_imagenet",
            records({wnid: paths[: self.per_class] for wnid, paths in train.items()}, "train"),
            stored,
        )


def stored(record: Record) -> Encoded:
    """The unchanged JPEG file of a record; OSError if it is not a picture."""
    data = record.inputs["image"].read_bytes()
    open_picture(data)
    return Encoded({"jpg": data}, data)


def _record(path: Path, split: str, wnid: str, name: str, synonyms: Sequence[str], target: int) -> Record:
    captions = [fill(template, name) for template in TEMPLATES]
    captions += [fill(TEMPLATES[0], other) for other in [other for other in synonyms if other != name][:2]]
    about = {"license": LICENSE, "wnid": wnid, "target": target}
    inputs = {"image": path, "text": captions}
    return Record(f"tin_{path.stem}", f"tiny-ImageNet {split}", inputs, {"label": name}, about)


def _synonyms(path: Path) -> dict[str, list[str]]:
    table = {}
    for where, line in read_lines(path):
        wnid, tab, names = line.partition("\t")
        if not tab or not names.strip():
            raise UserError(f"{where}: expected WNID, a tab and names; found {line!r}")
        table[wnid] = [name.strip() for name in names.split(",")]
    return table


def _annotations(path: Path, wnids: Sequence[str]) -> list[tuple[Path, str]]:
    rows = []
    for where, line in read_lines(path):
        fields = line.split("\t")
        if len(fields) < 2 or fields[1] not in wnids:
            raise UserError(f"{where}: expected a file name, a tab and a class of train/; found {line!r}")
        rows.append((path.parent / "images" / fields[0], fields[1]))
    return rows


def _names(wnids: Sequence[str], synonyms: dict[str, list[str]]) -> dict[str, str]:
    """One name per class, all different."""
    chosen = read_json(Path(__file__).with_name("tiny_imagenet_names.json"))
    names = {wnid: chosen.get(wnid, synonyms[wnid][0]) for wnid in wnids}
    taken = list(names.values())
    for wnid, name in names.items():
        if taken.count(name) > 1 and len(synonyms[wnid]) > 1:
            names[wnid] = synonyms[wnid][1]
    if twice := [name for name in names.values() if list(names.values()).count(name) > 1]:
        raise UserError(f"two classes are named {twice[0]!r}; add a name for one to tiny_imagenet_names.json")
    return names
