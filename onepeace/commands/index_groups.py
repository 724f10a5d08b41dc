"""Two verbs of `onepeace index` that put its files into groups: duplicates and cluster."""

import argparse
import json
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from onepeace.commands import files
from onepeace.commands.number import fraction, positive
from onepeace.errors import UsageError
from onepeace.files.table import format_table

if TYPE_CHECKING:
    from onepeace.index.store import Item

NEAREST = 3
"""Files that are named as examples of a cluster."""


def duplicates_arguments(parser: argparse.ArgumentParser) -> None:
    text = "similarity from which on files are near copies (pictures 0.95, sounds 0.97)"
    parser.add_argument("--threshold", type=fraction, metavar="S", help=text)
    parser.add_argument("--exact", action="store_true", help="only copies of the same content")
    text = "also read the pictures again and compare how they look: finds more copies of other sizes and encodings"
    parser.add_argument("--thorough", action="store_true", help=text)
    parser.add_argument("--json", action="store_true", help="one JSON object for each group instead of a table")


def duplicates(args: argparse.Namespace) -> int:
    from onepeace.index.duplicates import THRESHOLDS
    from onepeace.index.duplicates import duplicates as find
    from onepeace.index.index import Index

    if args.exact and (args.thorough or args.threshold is not None):
        raise UsageError("--exact compares contents only; leave out --threshold and --thorough")
    thresholds = THRESHOLDS if args.threshold is None else dict.fromkeys(THRESHOLDS, args.threshold)
    with Index.open(args.index) as index:
        groups = find(index, {} if args.exact else thresholds, args.thorough)
    rows = []
    for number, group in enumerate(groups, 1):
        if args.json:
            about = [
                {"path": c.item.path, "similarity": round(c.similarity, 6), "exact": c.is_exact, **_measures(c.item)}
                for c in group.copies
            ]
            print(json.dumps({"group": number, "kind": group.copies[0].item.modality, "files": about}))
        for i, copy in enumerate(group.copies):
            like = "" if i == 0 else "same" if copy.is_exact else f"{copy.similarity:.3f}"
            rows.append((str(number), like, _bytes(copy.item.size), _shape(copy.item), files.shown(copy.item.path)))
    if rows and not args.json:
        print(format_table(("group", "like the first", "size", "", "path"), rows, right={0, 1, 2}))
    copies = sum(len(group.copies) - 1 for group in groups)
    surplus = _bytes(sum(group.surplus for group in groups))
    what = "copies of others" if args.exact else "copies of others, or nearly"
    files.say(f"{files.counted(len(groups), 'group')}; {files.counted(copies, 'file')} ({surplus}) are {what}")
    return 0


def cluster_arguments(parser: argparse.ArgumentParser) -> None:
    text = "how many (default: the root of half the number of files, at most 50)"
    parser.add_argument("--clusters", type=positive, metavar="N", help=text)
    text = "words to name them by, one in a line (default: a list that comes with the package)"
    parser.add_argument("--names", type=Path, metavar="FILE", help=text)
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps; default: the best there is")
    parser.add_argument("--json", action="store_true", help="one JSON object for each file instead of a table")


def cluster(args: argparse.Namespace) -> int:
    from onepeace.index.clusters import clusters
    from onepeace.index.identity import IMPORTED
    from onepeace.index.index import Index
    from onepeace.index.sources import name_and_place

    names = None if args.names is None else files.lines_of(args.names, "names")
    with Index.open(args.index, device=args.device) as index:
        meta = index.store.meta
        encode = None
        if meta["model_hash"] != IMPORTED and "text" in meta["modalities"].split():
            encode = partial(index.embedder.encode_text, progress=False)
        else:
            files.say(f"clusters have numbers only: no model here makes vectors of words for those of {index.model}")
        found = clusters(index, args.clusters, names, encode)
    rows = []
    for number, one in enumerate(found, 1):
        name = one.names[0] if one.names else None
        if args.json:
            for member in one.members:
                about = {"cluster": number, "name": name, "path": member.item.path, "kind": member.item.modality}
                print(json.dumps({**about, "similarity": round(member.similarity, 6)}))
        counts = Counter(member.item.modality for member in one.members)
        kinds = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
        nearest = ", ".join(files.shown(name_and_place(member.item.path)[0]) for member in one.members[:NEAREST])
        rows.append((str(number), ", ".join(one.names) or "-", kinds, nearest))
    if not args.json:
        print(format_table(("cluster", "name, and what is near", "files", "in its middle"), rows, right={0}))
    return 0


def _measures(item: "Item") -> dict[str, object]:
    return {name: getattr(item, name) for name in ("size", "width", "height", "duration")}


def _bytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def _shape(item: "Item") -> str:
    if item.width and item.height:
        return f"{item.width} x {item.height}"
    return "" if item.duration is None else f"{item.duration:.1f} s"
