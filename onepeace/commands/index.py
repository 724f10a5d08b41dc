"""`onepeace index`: build an index of files, keep it up to date, and inspect it."""

import argparse
import json
import shlex
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onepeace.commands import files, options
from onepeace.errors import UsageError
from onepeace.files.table import format_table

if TYPE_CHECKING:
    from onepeace.files.walk import Unreadable
    from onepeace.index import Item, Report
    from onepeace.index.groups import Group

EXAMPLES = """\
  onepeace index build my.index Pictures Music --exclude "*/thumbnails/"
  onepeace search my.index --text "a dog on the beach"
  onepeace index update my.index                # new, changed, moved and deleted files
  onepeace index build my.index --model one-peace    # without PATHS: all files of the index, with another model
  onepeace index stats my.index --problems

With another model all files are embedded beside the old vectors, which searches use until the new ones replace them.
A folder may contain a file .onepeaceignore with .gitignore patterns. Run the same command again to resume a stopped
run.

exit code: 0, 1 when files could not be embedded (new ones are listed at the end, known ones only counted) or the index
is damaged, 2 for wrong usage"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, (run_verb, text, arguments, example) in VERBS.items():
        child = verbs.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False)
        child.set_defaults(run_verb=run_verb, parser=child)
        child.formatter_class = argparse.RawDescriptionHelpFormatter
        child.epilog = f"example:\n  onepeace index {name} {example}".rstrip()
        child.add_argument("--debug", action="store_true", help="show the traceback of an error")
        if name != "list":
            child.add_argument("index", type=Path, metavar="INDEX", help="folder of the index")
        arguments(child)


def run(args: argparse.Namespace) -> int:
    return args.run_verb(args)


def _update_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(kept="the files embedded so far are kept; run the same command again to resume")
    options.add_model(parser, None)
    text = "plug-in that embeds in other processes: ray, or ray:4 for four, on a Ray cluster or this machine"
    parser.add_argument("--engine", metavar="NAME", help=text)


def _build_arguments(parser: argparse.ArgumentParser) -> None:
    text = (
        "folders, files, tables (.csv, .tsv, .jsonl) or webdataset shards (.tar, .tar.gz); without PATHS all files of "
        "the index are embedded with another --model"
    )
    parser.add_argument("paths", nargs="*", metavar="PATHS", help=text)
    _update_arguments(parser)
    text = "skip files that match this .gitignore pattern (repeatable)"
    parser.add_argument("--exclude", action="append", default=[], metavar="GLOB", help=text)
    text = "follow symbolic links inside folders, also out of them"
    parser.add_argument("--follow-links", action="store_true", help=text)
    text = "vector database that also stores and searches the vectors: milvus://HOST"
    parser.add_argument("--store", metavar="PLACE", help=text)
    text = "delete the index that is there first, such as a damaged one"
    parser.add_argument("--force", action="store_true", help=text)


def _build(args: argparse.Namespace) -> int:
    from onepeace.index import build

    if not args.paths:
        _refuse_to_move_kept(args.index)
    more = {name: getattr(args, name) for name in ("exclude", "follow_links", "store", "force")}
    return _say_report(args, build(args.index, args.paths or None, **more, **_embedding(args)))


def _refuse_to_move_kept(folder: Path) -> None:
    """UsageError for an index of the cache folder, of which there is one for each model."""
    from onepeace.index.cache import is_kept

    if is_kept(folder):
        raise UsageError("a cached index stays with its model; search its folders with another --model", where=folder)


def _update(args: argparse.Namespace) -> int:
    from onepeace.index import update

    return _say_report(args, update(args.index, **_embedding(args)))


def _embedding(args: argparse.Namespace) -> dict[str, Any]:
    """Options of `build` and `update`. What searches have computed is used, unless another dtype is asked for."""
    from onepeace.index.cache import folders

    more = {name: getattr(args, name) for name in ("model", "device", "dtype", "batch_size", "engine")}
    return {**more, "reuse": folders()} if args.dtype == "auto" else more


def _say_report(args: argparse.Namespace, report: "Report") -> int:
    """Print the summary and the failed files to stderr; returns the exit code."""
    for modality, number in report.left_out.items():
        files.say(f"{files.counted(number, f'{modality} file')} skipped: its model does not read {modality}")
    files.say_other_kinds(report.other_kinds)
    files.say(_summary(report))
    files.say_kept(report.kept)
    listing = f"onepeace index stats {shlex.quote(str(args.index))} --problems"
    if report.known_problems:
        files.say(f"{report.known_problems:,} of the unchanged files failed before; list them with: {listing}")
    if report.notes:
        noted = files.counted(len(report.notes), "file")
        files.say(f"{noted} embedded with a note (silence, a video that ends early): {listing}")
    num_files = report.embedded + report.copied + report.moved + report.unchanged + report.known_problems
    return files.exit_code(report.problems, num_files)


def _summary(report: "Report") -> str:
    """Changes of a run, in one line."""
    unchanged = report.unchanged + report.known_problems
    changes = []
    for name in ("added", "changed", "copied", "moved", "removed"):
        number = getattr(report, name)
        if number:
            changes.append(f"{number:,} {name}")
    if not changes and not report.problems:
        return f"nothing to do: {files.counted(unchanged, 'file')} unchanged"
    if unchanged:
        changes.append(f"{unchanged:,} unchanged")
    summary = ", ".join(changes) or "nothing new"
    summary += f"; {files.counted(report.vectors, 'vector')} computed in {report.seconds:.1f} s"
    if report.embedded:
        summary += f", {report.embedded / report.seconds:.1f} files a second"
    return summary


def _remove_arguments(parser: argparse.ArgumentParser) -> None:
    text = "files, and folders with all their contents; without PATHS a cached index is deleted"
    parser.add_argument("paths", nargs="*", metavar="PATHS", help=text)
    text = "also remove a folder that lies above those of the index, with all files"
    parser.add_argument("--force", action="store_true", help=text)


def _remove(args: argparse.Namespace) -> int:
    from onepeace.index import remove

    if args.paths:
        number = remove(args.index, args.paths, force=args.force)
        files.say(f"{files.counted(number, 'file')} removed from the index")
    else:
        from onepeace.index.cache import delete

        delete(args.index)
        files.say(f"{args.index}: removed; the next search in its folders rebuilds it")
    return 0


def _list(args: argparse.Namespace) -> int:
    from onepeace.index.cache import kept

    rows = []
    for folder, stats in kept().items():
        size = f"{stats['bytes'] / 1e6:.1f}"
        for path, count in stats["roots"].items():
            rows.append((str(folder), f"{count:,}", size, path))
            size = ""
    if rows:
        print(format_table(("index", "files", "MB", "of"), rows, right={1, 2}))
    else:
        files.say("nothing is cached; a search in a folder keeps its vectors")
    return 0


def _stats_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--problems", action="store_true", help="list files that have no vectors, or a note")
    options.add_json(parser)


def _stats(args: argparse.Namespace) -> int:
    from onepeace.index import Index

    problems = []
    noted = []
    with Index.open(args.index) as index:
        stats = index.stats()
        if args.problems:
            problems = index.problems()
            noted = [item for item in index.items() if item.note]
    if args.json:
        _print_stats_as_json(args, stats, problems, noted)
        return 0
    _print_stats(args, stats)
    for problem in problems:
        files.show(f"{problem.path}: {problem.reason}")
    for item in noted:
        files.show(f"{item.path}: {item.note} (in the index)")
    return 0


def _print_stats_as_json(
    args: argparse.Namespace, stats: dict[str, Any], problems: "list[Unreadable]", noted: "list[Item]"
) -> None:
    from onepeace.index.items import as_text

    if args.problems:
        stats["unreadable"] = {as_text(problem.path): problem.reason for problem in problems}
        stats["noted"] = {as_text(item.path): item.note for item in noted}
    stats["roots"] = [as_text(root) for root in stats["roots"]]
    print(json.dumps(stats))


def _print_stats(args: argparse.Namespace, stats: dict[str, Any]) -> None:
    kinds = [f"{number:,} {kind}" for kind, number in sorted(stats["files"].items())]
    num_problems = sum(stats["problems"].values())
    hint = " (--problems lists them)" if num_problems and not args.problems else ""
    rows = [
        ("files", ", ".join(kinds) or "0"),
        ("vectors", f"{stats['vectors']:,}"),
        ("captions", f"{stats['captions']:,}"),
        ("problems", f"{num_problems:,}{hint}"),
        ("model", stats["model"]),
        ("sources", ", ".join(stats["roots"])),
        ("on disk", f"{stats['bytes'] / 1e6:.1f} MB"),
    ]
    print(format_table(rows[0], rows[1:]))


def _check(args: argparse.Namespace) -> int:
    from onepeace.index import check

    report = check(args.index)
    print(report)
    return 0 if report.ok else 1


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_output(parser, "FILE", "output file: .npz or .parquet")


def _export(args: argparse.Namespace) -> int:
    from onepeace.index import Index
    from onepeace.index.export import export

    files.check_output(args.output, args.force)
    with Index.open(args.index) as index:
        number = export(index, args.output)
        files.say(f"{files.counted(number, 'vector')} of {index.embed_dim} dimensions written to {args.output}")
    return 0


NEAREST = 3
"""Number of files shown as examples of a cluster."""


def _duplicates_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--exact", action="store_true", help="only files with identical content")
    options.add_json(parser)


def _duplicates(args: argparse.Namespace) -> int:
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
    files.say(f"{files.counted(len(groups), 'group')}; {files.counted(num_copies, 'surplus file')}, {surplus}")
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
        for member in group.members:
            item = member.item
            if member is group.members[0]:
                likeness = ""
            else:
                likeness = "same" if member.is_exact else f"{member.similarity:.3f}"
            rows.append((str(number), likeness, _bytes(item.size), _measures(item), item.path))
    print(format_table(("group", "like the first", "size", "", "path"), rows, right={0, 1, 2}))


def _cluster_arguments(parser: argparse.ArgumentParser) -> None:
    text = "number of clusters (square root of half the number of files, at most 50)"
    parser.add_argument("--count", type=options.positive, metavar="N", help=text)
    options.add_json(parser)


def _cluster(args: argparse.Namespace) -> int:
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
        counts = Counter(member.item.kind for member in group.members)
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


def _no_arguments(_: argparse.ArgumentParser) -> None:
    pass


VERBS = {
    "build": (
        _build,
        "build an index of files, or add files to one",
        _build_arguments,
        "my.index Pictures Music --exclude '*/thumbnails/'",
    ),
    "update": (
        _update,
        "pick up new, changed, moved and deleted files in the folders of an index",
        _update_arguments,
        "my.index",
    ),
    "remove": (_remove, "remove files or folders from an index", _remove_arguments, "my.index Pictures/2019"),
    "stats": (_stats, "show the contents of an index", _stats_arguments, "my.index --problems"),
    "check": (_check, "check an index for damage", _no_arguments, "my.index"),
    "export": (
        _export,
        "export the vectors and the metadata of their files for other programs",
        _export_arguments,
        "my.index -o vectors.npz",
    ),
    "duplicates": (_duplicates, "list duplicate files", _duplicates_arguments, "my.index --exact"),
    "cluster": (_cluster, "cluster similar files, and name the clusters", _cluster_arguments, "my.index --count 20"),
    "list": (_list, "list what searches keep in the cache", _no_arguments, ""),
}
"""What runs a verb, its help, its arguments, and an example of them."""
