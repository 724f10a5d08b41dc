"""`onepeace index duplicates` and `onepeace index cluster`: groups of files as tables or JSON."""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from onepeace.commands import files, options
from onepeace.files.table import format_table

if TYPE_CHECKING:
    from onepeace.index import Item
    from onepeace.index.groups import Group

NEAREST = 3
"""Number of files shown as examples of a cluster."""


def duplicates_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--exact", action="store_true", help="only files with identical content")
    options.add_json(parser)


def duplicates(args: argparse.Namespace) -> int:
    from onepeace.index import Index
    from onepeace.index.groups import duplicates

    with Index.open(args.index) as index:
        groups = duplicates(index, exact=args.exact)
    if args.json:
        _print_duplicates_as_json(groups)
    elif groups:
        _print_duplicates(groups)
    num_copies = sum(len(group.members) - 1 for group in groups)
    surplus = _bytes(sum(group.surplus for group in groups))
    are_copies = "is a copy" if num_copies == 1 else "are copies"
    copies = f"{files.counted(num_copies, 'file')} ({surplus}) {are_copies} of others"
    files.say(f"{files.counted(len(groups), 'group')}; {copies}")
    return 0


def _print_duplicates_as_json(groups: "list[Group]") -> None:
    for number, group in enumerate(groups, 1):
        members = []
        for member in group.members:
            likeness = {"similarity": round(member.similarity, 6), "exact": member.is_exact}
            members.append({**member.item.to_dict(), **likeness})
        print(json.dumps({"group": number, "files": members}))


def _print_duplicates(groups: "list[Group]") -> None:
    rows = []
    for number, group in enumerate(groups, 1):
        likeness = ""
        for member in group.members:
            item = member.item
            rows.append((str(number), likeness, _bytes(item.size), _measures(item), item.path))
            likeness = "same" if member.is_exact else f"{member.similarity:.3f}"
    print(format_table(("group", "like the first", "size", "", "path"), rows, right={0, 1, 2}))


def cluster_arguments(parser: argparse.ArgumentParser) -> None:
    text = "number of clusters (square root of half the number of files, at most 50)"
    parser.add_argument("--count", type=options.positive, metavar="N", help=text)
    options.add_json(parser)


def cluster(args: argparse.Namespace) -> int:
    from onepeace.index import Index
    from onepeace.index.groups import clusters

    with Index.open(args.index) as index:
        groups = clusters(index, args.count)
    if args.json:
        _print_clusters_as_json(groups)
    else:
        _print_clusters(groups)
    return 0


def _print_clusters_as_json(groups: "list[Group]") -> None:
    for number, group in enumerate(groups, 1):
        for member in group.members:
            similarity = round(member.similarity, 6)
            fields = {"cluster": number, "names": group.names, **member.item.to_dict(), "similarity": similarity}
            print(json.dumps(fields))


def _print_clusters(groups: "list[Group]") -> None:
    rows = []
    for number, group in enumerate(groups, 1):
        counts = Counter(member.item.modality for member in group.members)
        kinds = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
        nearest = ", ".join(Path(member.item.path).name for member in group.members[:NEAREST])
        rows.append((str(number), ", ".join(group.names) or "-", kinds, nearest))
    print(format_table(("cluster", "nearest words", "files", "in its middle"), rows, right={0}))


def _bytes(number: int) -> str:
    return f"{number / 1e6:.1f} MB" if number >= 1e6 else f"{number / 1e3:.0f} kB"


def _measures(item: "Item") -> str:
    """Size of a picture in pixels, or length of a sound or video."""
    if item.width and item.height:
        return f"{item.width} x {item.height}"
    if item.duration is not None:
        return f"{item.duration:.1f} s"
    return ""
