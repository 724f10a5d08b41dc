"""`onepeace index`: an index of files on disk, made once and kept up to date, that `onepeace search` answers from."""

import argparse
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onepeace.commands import files, index_groups, number
from onepeace.commands.calibrate import print_fits, say_banks
from onepeace.errors import UsageError, need
from onepeace.files.table import format_table

if TYPE_CHECKING:
    from onepeace.index.build import Report
    from onepeace.index.index import Index

EXAMPLES = """\
  onepeace index build Pictures Music --index my.index --exclude "*/thumbnails/"
  onepeace search my.index --text "a dog on the beach"
  onepeace index update --index my.index      # new, changed, moved and deleted files
  onepeace index stats --index my.index --problems

A folder may hold a file .onepeaceignore with patterns as in .gitignore. A stopped run goes on with the same command.

exit code: 0, 1 when files could not be embedded (listed at the end; those that are known from before are only counted)
or something is damaged, 2 for wrong usage"""


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
    parser.add_argument("--model", metavar="NAME", help="tiny (default), a model folder or a released model")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps; default: the best there is")
    parser.add_argument("--dtype", default="auto", metavar="NAME", help="float32, bfloat16, float16 or auto")
    parser.add_argument("--batch-size", type=number.positive, default=32, metavar="N", help="files in one pass (32)")
    several = "processes that embed, one for each GPU, or with a share of the cores each (default: this one)"
    parser.add_argument("--workers", type=number.positive, metavar="N", help=several)
    store = "also keep the vectors in Milvus, which searches them: milvus://HOST[:PORT], or a file of Milvus Lite, "
    store += "NAME.db; local: no longer"
    parser.add_argument("--store", metavar="PLACE", help=store)
    engine = "local, or ray: on all machines of a Ray cluster, or on this one where none is running"
    parser.add_argument("--engine", choices=("local", "ray"), default="local", help=engine)
    window = "a long sound has a vector for every S seconds; of a new index (10)"
    parser.add_argument("--window", type=number.seconds, metavar="S", help=window)
    hop = "seconds from the start of one to that of the next; of a new index (5)"
    parser.add_argument("--hop", type=number.seconds, metavar="S", help=hop)
    kept = "search structure: exact, faiss-ivf, usearch or faiss-hnsw; default: one where there are many vectors"
    parser.add_argument("--nearest", default="auto", metavar="NAME", help=kept)
    parser.add_argument("--quiet", action="store_true", help="no progress and no summary")


def _build_arguments(parser: argparse.ArgumentParser) -> None:
    help_text = "folders, files, tables (.csv, .tsv, .jsonl) or webdataset shards (.tar, .tar.gz)"
    parser.add_argument("paths", nargs="+", metavar="PATHS", help=help_text)
    parser.add_argument("--exclude", action="append", default=[], metavar="GLOB", help="leave out, as in .gitignore")
    _embedding_arguments(parser)


def _paths_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", metavar="PATHS", help="files, and folders with all that is in them")


def _stats_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--problems", action="store_true", help="list the files that could not be embedded")
    recall = "measure how many of the ten nearest vectors the search structures find, for queries made up"
    parser.add_argument("--recall", action="store_true", help=recall)


def _nothing(parser: argparse.ArgumentParser) -> None:
    pass


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    help_text = "to write: .npz, .safetensors or .parquet, or a folder (no ending): vectors.npy and manifest.jsonl"
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help=help_text)


def _import_arguments(parser: argparse.ArgumentParser) -> None:
    help_text = (
        "vectors with paths: .npz, .safetensors, .parquet or a folder, as export and `onepeace embed` write them"
    )
    parser.add_argument("source", type=Path, metavar="FILE", help=help_text)
    parser.add_argument("--name", required=True, metavar="MODEL", help="the model that made them, as siglip2")
    here = "folder of relative paths (default: the current one)"
    parser.add_argument("--root", type=Path, default=Path(), metavar="FOLDER", help=here)


def _calibrate_arguments(parser: argparse.ArgumentParser) -> None:
    help_text = "vectors of pairs, as for import; what belongs together has the same caption, or label in its metadata"
    parser.add_argument("source", type=Path, metavar="FILE", help=help_text)
    prior = "share of matches among all items that the probabilities are fitted for (default: 0.01)"
    parser.add_argument("--prior", type=number.prior, default=0.01, metavar="P", help=prior)


def _build(args: argparse.Namespace) -> int:
    from onepeace.index.write import build

    return _tell(args, build(args.index, args.paths, exclude=args.exclude, **_options(args)))


def _add(args: argparse.Namespace) -> int:
    if not (args.index / "index.sqlite").exists():
        raise UsageError(f"{args.index}: no index there; make it with: onepeace index build")
    return _build(args)


def _update(args: argparse.Namespace) -> int:
    from onepeace.index.write import update

    return _tell(args, update(args.index, **_options(args)))


def _options(args: argparse.Namespace) -> dict[str, Any]:
    names = ("model", "device", "dtype", "batch_size", "workers", "engine", "store", "window", "hop", "nearest")
    return {**{name: getattr(args, name) for name in names}, "progress": False if args.quiet else None}


def _remove(args: argparse.Namespace) -> int:
    from onepeace.index.write import remove

    files.say(f"{files.counted(remove(args.index, args.paths), 'file')} left the index")
    return 0


def _stats(args: argparse.Namespace) -> int:
    from onepeace.index.index import Index

    with Index.open(args.index) as index:
        kinds = Counter(item.modality for item in index.items())
        problems, odd = index.problems(), [item for item in index.items() if item.note]
        by_kind = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        size = sum(path.stat().st_size for path in args.index.rglob("*") if path.is_file())
        rows = [
            ("files", f"{len(index)} ({by_kind})" if kinds else "0"),
            ("vectors", f"{len(index.rows.row)} of {index.embed_dim} numbers"),
            ("problems", str(len(problems)) + (" (--problems lists them)" if problems and not args.problems else "")),
            ("model", index.model),
            ("made", index.store.meta["created"]),
            ("store", index.store.meta.get("store", "local")),
            ("on disk", f"{size / 1e6:.1f} MB"),
            *(_recalls(index) if args.recall else ()),
        ]
    print(format_table(rows[0], rows[1:]))
    if args.problems:
        for problem in problems:
            print(f"{files.shown(problem.path)}: {problem.reason}")
        for item in odd:
            print(f"{files.shown(item.path)}: {item.note} (in the index)")
    return 0


def _recalls(index: "Index") -> Iterator[tuple[str, str]]:
    """A row for each search structure."""
    from onepeace.index.nearest import measure_recall

    for key in index.candidates.keys if len(index) else ():
        structure = index.candidates.nearest(key)
        if structure.name == "exact":
            value = "1 (exact: all vectors are compared)"
        else:
            found = measure_recall(structure, index.candidates.samples(key, seed=1))
            value = f"{found:.3f} ({structure.name})"
        yield f"recall@10, {'cosines' if key == 'raw' else f'{key} queries'}", value


def _verify(args: argparse.Namespace) -> int:
    from onepeace.index.milvus import faults
    from onepeace.index.verify import verify

    findings = verify(args.index)
    lines = findings.lines() or faults(args.index)
    for line in lines:
        files.say(f"{args.index}: {line}")
    if lines:
        files.say(f"run: onepeace index repair --index {args.index}")
        return 1
    print(f"{args.index}: {findings.files} files, {findings.vectors} vectors, all as they were written")
    return 0


def _repair(args: argparse.Namespace) -> int:
    from onepeace.index.lock import writing
    from onepeace.index.milvus import rebuild
    from onepeace.index.verify import repair

    with writing(args.index):
        lost = repair(args.index)
        rebuild(args.index)
    print(f"{args.index}: sound; {lost} files were lost; run build or update again, which embeds what is missing")
    return 0


def _export(args: argparse.Namespace) -> int:
    from onepeace.index.exchange import export
    from onepeace.index.index import Index

    if args.output.suffix.lower() == ".parquet":
        need("pyarrow", "parquet")
    if not args.output.parent.is_dir():
        raise UsageError(f"{args.output}: there is no folder {args.output.parent}")
    with Index.open(args.index) as index:
        count = export(index, args.output)
        files.say(f"{count} vectors of {index.embed_dim} numbers in {args.output}")
    return 0


def _import(args: argparse.Namespace) -> int:
    from onepeace.index.exchange import import_vectors

    num_files, num_vectors = import_vectors(args.index, args.source, args.name, args.root)
    files.say(f"{files.counted(num_files, 'file')} with {num_vectors} vectors of {args.name} in {args.index}")
    return 0


def _calibrate(args: argparse.Namespace) -> int:
    from onepeace.index.calibration import FILE
    from onepeace.index.exchange import calibrate

    calibration = calibrate(args.index, args.source, args.prior)
    print_fits(calibration)
    say_banks(calibration, args.index / FILE)
    return 0


def _caption_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="tiny-captions", metavar="NAME", help="folder or name of a generative model")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps; default: the best there is")
    parser.add_argument("--dtype", default="auto", metavar="NAME", help="float32, bfloat16, float16 or auto")
    parser.add_argument("--batch-size", type=number.positive, default=8, metavar="N", help="files in one pass (8)")
    parser.add_argument("--again", action="store_true", help="write captions anew that a model wrote")


def _caption(args: argparse.Namespace) -> int:
    from onepeace.generative.generator import load_generator
    from onepeace.index.captions import write_captions

    generator = load_generator(args.model, device=args.device, dtype=args.dtype)
    report = write_captions(args.index, generator, args.model, again=args.again, batch_size=args.batch_size)
    files.say(f"{files.counted(report.written, 'caption')} written, {report.known} were there")
    if report.left_out:
        files.say(f"{files.counted(report.left_out, 'file')} left out: gone, changed since, or not on this machine")
    problems = [files.Unreadable(Path(path), reason) for path, reason in report.problems]
    return files.exit_code(problems, report.written + report.known)


def _tell(args: argparse.Namespace, report: "Report") -> int:
    """The summary on stderr, and what failed."""
    known = report.unchanged + report.known_problems
    done = report.embedded + report.copied + report.moved + known
    if not args.quiet:
        for modality, count in report.left_out.items():
            files.say(f"{files.counted(count, f'{modality} file')} left out: the model of the index has no {modality}")
        seconds = report.seconds
        names = ("added", "changed", "copied", "moved", "removed")
        news = [f"{getattr(report, name)} {name}" for name in names if getattr(report, name)]
        if news or report.problems:
            rate = f", {report.embedded / seconds['total']:.1f} files a second" if report.embedded else ""
            about = [*news, f"{known} unchanged"] if known else news
            files.say(
                f"{', '.join(about) or 'nothing new'}; {report.vectors} vectors in {seconds['total']:.1f} s{rate}"
            )
        else:
            files.say(f"nothing to do: {files.counted(known, 'file')} unchanged")
        if report.embedded:
            stages = ", ".join(f"{name} {seconds[name]:.1f}" for name in ("read", "decode", "model", "write"))
            files.say(f"seconds of the stages, over all threads: {stages}")
        if report.known_problems:
            where = f"onepeace index stats --problems --index {shlex.quote(str(args.index))}"
            files.say(f"{files.counted(report.known_problems, 'file')} of them cannot be embedded, as before: {where}")
    return files.exit_code(report.problems, done)


VERBS = {
    "build": (_build, "make an index of files, or add files to one", _build_arguments),
    "add": (_add, "add files to an index that is there", _build_arguments),
    "update": (_update, "take in what is new, changed, moved or gone in the folders of an index", _embedding_arguments),
    "remove": (_remove, "leave files or folders out of an index", _paths_argument),
    "stats": (_stats, "count what an index holds", _stats_arguments),
    "verify": (_verify, "check that an index is what was written", _nothing),
    "repair": (_repair, "make a damaged index sound again", _nothing),
    "duplicates": (index_groups.duplicates, "list files that are copies of others", index_groups.duplicates_arguments),
    "cluster": (index_groups.cluster, "put files into named groups of like ones", index_groups.cluster_arguments),
    "caption": (_caption, "write captions of files, that --where \"caption ~ 'dog'\" finds", _caption_arguments),
    "export": (_export, "write the vectors, with what is known of their files, for other programs", _export_arguments),
    "import": (_import, "put vectors of another model into an index of their own", _import_arguments),
    "calibrate": (_calibrate, "make one scale of the scores of imported vectors, from pairs", _calibrate_arguments),
}
