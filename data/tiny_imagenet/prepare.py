#!/usr/bin/env python3
"""tiny-ImageNet: 64 px photographs of 200 ImageNet classes, from tiny-imagenet-200.zip.

SOURCE is the unpacked folder: words.txt, train/WNID/images/*.JPEG, val/images/*.JPEG, val/val_annotations.txt. The JPEG
files are stored as they are. Training shards come from train/, validation shards from val/. Captions are sentences
around the class name: the first WordNet synonym, or the one in names.json where that is unclear.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from shardwriter import (
    Seen,
    SetWriter,
    find,
    open_picture,
    parser,
    read_json,
    read_lines,
    run,
    shuffled,
    write_classes,
)

from onepeace.errors import UserError
from onepeace.embed.zero_shot import with_article

TEMPLATES = ("a photo of {}", "a picture of {}", "{}", "a small photo of {}")
LICENSE = "ImageNet terms (research use); no licence stated"


def build(args: argparse.Namespace) -> None:
    """Write the shards of both splits and the list of classes."""
    words = find(args.source, "words.txt", what="WordNet ids and names")
    folder = words.parent
    synonyms = _synonyms(words)
    wnids = sorted(path.name for path in (folder / "train").glob("n*") if path.is_dir())
    if not wnids:
        raise UserError(f"{folder / 'train'}: no folder of a class (n01443537, ...)")
    if unknown := [wnid for wnid in wnids if wnid not in synonyms]:
        raise UserError(f"{words}: has no line for class {unknown[0]} of train/")
    names = _names(wnids, synonyms)
    target = {wnid: i for i, wnid in enumerate(wnids)}
    new = Seen()

    def write(writer: SetWriter, wnid: str, path: Path, split: str) -> bool:
        try:
            data = path.read_bytes()
            open_picture(data)
        except OSError as error:
            writer.skip(path, error)
            return False
        if not new(data):
            return False
        captions = [template.format(with_article(names[wnid])) for template in TEMPLATES]
        others = [name for name in synonyms[wnid] if name != names[wnid]][:2]
        captions += [f"a photo of {with_article(name)}" for name in others]
        writer.add(f"tin_{path.stem}", "jpg", data, captions, label=names[wnid], source=f"tiny-ImageNet {split}",
                   license=LICENSE, wnid=wnid, target=target[wnid])  # fmt: skip
        return True

    held_out = shuffled(_annotations(folder / "val/val_annotations.txt", target))
    by_class: dict[str, list[Path]] = {wnid: [] for wnid in wnids}
    for path, wnid in held_out:
        by_class[wnid].append(path)
    plan = [(wnid, path) for wnid in wnids for path in by_class[wnid][: args.val_per_class]]
    with SetWriter(args.out / "val/tiny_imagenet", "tiny_imagenet") as writer:
        for wnid, path in shuffled(plan):
            write(writer, wnid, path, "val")
    write_classes(
        args.out / "val/tiny_imagenet/classes.json",
        [{"wnid": wnid, "name": names[wnid], "synonyms": ", ".join(synonyms[wnid])} for wnid in wnids],
    )

    plan = []
    for wnid in wnids:
        pictures = sorted((folder / "train" / wnid / "images").glob("*.JPEG"))
        plan += [(wnid, path) for path in shuffled(pictures)[: args.per_class]]
    with SetWriter(args.out / "train/image_text", "tiny_imagenet") as writer:
        for wnid, path in shuffled(plan):
            write(writer, wnid, path, "train")


def _synonyms(path: Path) -> dict[str, list[str]]:
    table = {}
    for where, line in read_lines(path):
        wnid, tab, names = line.partition("\t")
        if not tab or not names.strip():
            raise UserError(f"{where}: expected WNID, a tab and names; found {line!r}")
        table[wnid] = [name.strip() for name in names.split(",")]
    return table


def _annotations(path: Path, target: dict[str, int]) -> list[tuple[Path, str]]:
    rows = []
    for where, line in read_lines(path):
        fields = line.split("\t")
        if len(fields) < 2 or fields[1] not in target:
            raise UserError(f"{where}: expected a file name, a tab and a class of train/; found {line!r}")
        rows.append((path.parent / "images" / fields[0], fields[1]))
    return rows


def _names(wnids: Sequence[str], synonyms: dict[str, list[str]]) -> dict[str, str]:
    """One name per class, all different."""
    chosen = read_json(Path(__file__).with_name("names.json"))
    names = {wnid: chosen.get(wnid, synonyms[wnid][0]) for wnid in wnids}
    taken = list(names.values())
    for wnid, name in names.items():
        if taken.count(name) > 1 and len(synonyms[wnid]) > 1:
            names[wnid] = synonyms[wnid][1]
    if twice := [name for name in names.values() if list(names.values()).count(name) > 1]:
        raise UserError(f"two classes are named {twice[0]!r}; add a name for one to names.json")
    return names


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of this script."""
    arguments = parser(__doc__)
    arguments.add_argument(
        "--per-class", type=int, default=130, help="training pictures of a class (default 130 of 500)"
    )
    arguments.add_argument(
        "--val-per-class", type=int, default=12, help="validation pictures of a class (default 12 of 50)"
    )
    return run(build, arguments, argv)


if __name__ == "__main__":
    sys.exit(main())
