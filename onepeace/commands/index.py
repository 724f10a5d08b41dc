"""`onepeace index`: an index of files on disk, made once and kept up to date, that `onepeace search` answers from."""

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onepeace.commands import files
from onepeace.errors import UsageError
from onepeace.files.table import format_table

if TYPE_CHECKING:
    from onepeace.index.build import Report

EXAMPLES = """\
  onepeace index build Pictures Music --index my.index --exclude "*/thumbnails/"
  onepeace search my.index --text "a dog on the beach"
  onepeace index update --index my.index      # new, changed, moved and deleted files
  onepeace index stats --index my.index --problems

A folder may hold a file .onepeaceignore with patterns as in .gitignore. A stopped run goes on with the same command.

exit code: 0, 1 when files could not be read (listed at the end) or something is damaged, 2 for wrong usage"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, (run_verb, text, arguments) in VERBS.items():
        child = verbs.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False)
        child.set_defaults(run_verb=run_verb)
        child.add_argument("--index", type=Path, required=True, metavar="FOLDER", help="folder of the index")
        arguments(child)


def run(args: argparse.Namespace) -> int:
    return args.run_verb(args)


def _embedding_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps; default: the best there is")
    parser.add_argument("--dtype", default="auto", metavar="NAME", help="float32, bfloat16, float16 or auto")
    parser.add_argument("--batch-size", type=files.positive, default=32, metavar="N", help="files in one pass (32)")
    parser.add_argument(
        "--window", type=_seconds, default=10.0, metavar="S", help="a long sound has a vector for every S seconds (10)"
    )
    parser.add_argument(
        "--hop", type=_seconds, default=5.0, metavar="S", help="seconds from the start of one to the next (5)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress and no summary")


def _build_arguments(parser: argparse.ArgumentParser) -> None:
    help_text = "folders, files, tables (.csv, .tsv, .jsonl) or webdataset shards (.tar, .tar.gz)"
    parser.add_argument("paths", nargs="+", metavar="PATHS", help=help_text)
    parser.add_argument("--model", metavar="NAME", help="tiny (default), a model folder or a released model")
    parser.add_argument("--exclude", action="append", default=[], metavar="GLOB", help="leave out, as in .gitignore")
    _embedding_arguments(parser)


def _paths_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", metavar="PATHS", help="files, and folders with all that is in them")


def _stats_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--problems", action="store_true", help="list the files that could not be embedded")


def _nothing(parser: argparse.ArgumentParser) -> None:
    pass


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


def _build(args: argparse.Namespace) -> int:
    from onepeace.index.index import build

    return _tell(args, build(args.index, args.paths, args.model, exclude=args.exclude, **_options(args)))


def _add(args: argparse.Namespace) -> int:
    if not (args.index / "index.sqlite").exists():
        raise UsageError(f"{args.index}: no index there; make it with: onepeace index build")
    return _build(args)


def _update(args: argparse.Namespace) -> int:
    from onepeace.index.index import update

    return _tell(args, update(args.index, **_options(args)))


def _options(args: argparse.Namespace) -> dict[str, Any]:
    names = ("device", "dtype", "batch_size", "window", "hop")
    return {**{name: getattr(args, name) for name in names}, "progress": False if args.quiet else None}


def _remove(args: argparse.Namespace) -> int:
    from onepeace.index.index import remove

    files.say(f"{remove(args.index, args.paths)} files left the index")
    return 0


def _stats(args: argparse.Namespace) -> int:
    from onepeace.index.index import Index

    with Index.open(args.index) as index:
        kinds = Counter(item.modality for item in index.items())
        problems, odd = index.problems(), [item for item in index.items() if item.note]
        vectors = len(index.rows.row)
        rows = [(kind, str(count)) for kind, count in sorted(kinds.items())]
        rows += [("files", str(len(index))), ("vectors", f"{vectors} x {index.embed_dim}")]
        rows += [("problems", str(len(problems))), ("model", index.model), ("made", index.store.meta["created"])]
        size = sum(path.stat().st_size for path in Path(args.index).rglob("*") if path.is_file())
        rows += [("on disk", f"{size / 1e6:.1f} MB")]
    print(format_table(("what", ""), rows))
    if args.problems:
        for problem in problems:
            print(f"{files.shown(problem.path)}: {problem.reason}")
        for item in odd:
            print(f"{files.shown(Path(item.path))}: {item.note} (in the index)")
    return 0


def _verify(args: argparse.Namespace) -> int:
    from onepeace.index.verify import verify

    findings = verify(args.index)
    for line in findings.lines():
        files.say(f"{args.index}: {line}")
    if not findings.ok:
        files.say(f"run: onepeace index repair --index {args.index}")
        return 1
    print(f"{args.index}: {findings.files} files, {findings.vectors} vectors, all as they were written")
    return 0


def _repair(args: argparse.Namespace) -> int:
    from onepeace.index.index import writing
    from onepeace.index.verify import repair

    with writing(args.index):
        lost = repair(args.index)
    print(f"{args.index}: sound; {lost} files were lost; run build or update again, which embeds what is missing")
    return 0


def _tell(args: argparse.Namespace, report: "Report") -> int:
    """The summary on stderr, and what failed."""
    files.say_left_out(report.left_out)
    if not args.quiet:
        seconds = report.seconds
        counts = {
            name: getattr(report, name) for name in ("added", "changed", "copied", "moved", "removed", "unchanged")
        }
        said = ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "nothing to do"
        rate = f", {report.embedded / seconds['total']:.1f} files a second" if report.embedded else ""
        files.say(f"{said}; {report.vectors} vectors in {seconds['total']:.1f} s{rate}")
        stages = ", ".join(f"{name} {seconds[name]:.1f}" for name in ("read", "decode", "model", "write"))
        files.say(f"seconds of the stages, over all threads: {stages}")
    done = report.embedded + report.copied + report.moved + report.unchanged
    return files.exit_code(report.problems, done)


VERBS = {
    "build": (_build, "make an index of files, or add files to one", _build_arguments),
    "add": (_add, "add files to an index that is there", _build_arguments),
    "update": (_update, "take in what is new, changed, moved or gone in the folders of an index", _embedding_arguments),
    "remove": (_remove, "leave files or folders out of an index", _paths_argument),
    "stats": (_stats, "count what an index holds", _stats_arguments),
    "verify": (_verify, "check that an index is what was written", _nothing),
    "repair": (_repair, "make a damaged index sound again", _nothing),
}
