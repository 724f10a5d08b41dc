"""`onepeace search`: the files of an index or of folders nearest to a text, a picture, a sound, or a mix of them."""

import argparse
import json
import os
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from onepeace.commands import files, options
from onepeace.errors import UsageError, UserError
from onepeace.files.table import format_table
from onepeace.index.filters import FIELDS

if TYPE_CHECKING:
    from onepeace.index import Hit, Index, Query, Report, Results
    from onepeace.index.encoder import Encode

PARTS = {
    "text": ("TEXT", "search by text"),
    "image": ("FILE", "search by a picture"),
    "audio": ("FILE", "search by a sound"),
    "like": ("PATH", "search by a file of the index, using its stored vector"),
    "without": ("TEXT", "move away from a text"),
}
WHERE = textwrap.fill(
    f"--where takes a Python expression over {', '.join(FIELDS)} and metadata.NAME, with the units kB, MB, GB, s, min "
    "and h, and near(LATITUDE, LONGITUDE, RADIUS) with km and m:",
    width=120,
)
EXAMPLES = f"""\
PATHS is one index (see: onepeace index build), or files and folders. These have an index in the user's cache folder,
which each search brings up to date (see: onepeace index list); --no-index keeps nothing. Files that another search has
read are not embedded again.

Words after PATHS that name no file or folder are the text: search Pictures "a cat". An argument with a separator or an
ending, such as 2024/may or cat.jpg, is a path. Give words with --text if they look like a path, if a file has that
name, or if the query has other parts.

Several parts make one query: their weighted sum. A query's own file is not among its hits. A video is found by its
frames and by its audio track; "at" is the position of the hit.

The match of a file is the share of unrelated queries whose best hit of its kind scores lower. From 0.95 on the file is
likely to be what was meant, from 0.7 on it is possible; for a copy of the query it is 1. It depends on the query, the
file and the index, not on filters or other hits. Likely files come first, then possible ones, then weak ones, which
have no number and are ordered by how far the score lies above those of unrelated queries (z). Weak files close below
the possible ones are called alike if two files of their kind are likely: more of the same. If the model has no
unrelated queries of the query's modality, the cosine of all hits is shown instead.

{WHERE}
"width >= 1000 and duration < 2*min", "'beach' in path or caption is None", "kind in ('image', 'video')",
"camera = 'X100V' and near(48.1, 11.6, 20*km) and keyword = 'beach'"

A file that has all words of a short text in its name, caption, tags or text comes first if few files have them: no
more than three, or no more than 20 and one in twenty of the index; the column "words" says "(rare)". If more have them,
they count as much as two standard deviations of z. A weak file with all words is called named.

  onepeace search my.index "a dog barking"
  onepeace search my.index --image dog.jpg --without people --only pictures --after 2024-05
  onepeace search my.index --audio bark.ogg --text "in the snow" --weights audio=0.7,text=0.3
  onepeace search my.index --like Pictures/dog.jpg --where "width >= 1000" --sort date --html hits.html
  onepeace search pictures sounds "a dog barking" --top 5 --json

{files.EXIT_CODES}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.set_defaults(kept="the files embedded so far are kept; run the same command again to resume")
    text = "an index, or files and folders; then the words to search for"
    parser.add_argument("paths", nargs="+", metavar="INDEX|PATHS", help=text)
    parts = parser.add_argument_group("query (each option may be repeated)")
    for name, (metavar, text) in PARTS.items():
        parts.add_argument(f"--{name}", action="append", default=[], metavar=metavar, help=text)
    text = "weights of the parts, e.g. text=0.7,audio=0.3 (1; without: 0.5)"
    parts.add_argument("--weights", type=_weights, default={}, metavar="W", help=text)
    chosen = parser.add_argument_group("filters")
    chosen.add_argument("--only", default="", metavar="KINDS", help="kinds of file, e.g. pictures or sounds,videos")
    chosen.add_argument("--where", metavar="CONDITION", help="condition on file metadata; see below")
    chosen.add_argument("--after", metavar="DATE", help="only files from then on: 2024, 2024-05 or 2024-05-01")
    chosen.add_argument("--before", metavar="DATE", help="only files before then")
    text = "only files at a path, or in a folder, table or shard at one (repeatable)"
    chosen.add_argument("--below", action="append", default=[], metavar="PATH", help=text)
    chosen.add_argument("--path", metavar="GLOB", help='path pattern, e.g. "holidays/**/*.jpg"')
    shown = parser.add_argument_group("output")
    shown.add_argument("--top", type=options.positive, default=10, metavar="K", help="number of hits (10)")
    text = "match, date (newest first) or path; date and path sort the best 200 hits (K, if larger) that are not weak"
    shown.add_argument("--sort", choices=("match", "date", "path"), default="match", metavar="NAME", help=text)
    text = "drop hits with a lower match, but for files with rare words"
    shown.add_argument("--min-match", type=options.probability, metavar="P", help=text)
    shown.add_argument("--all", action="store_true", help="show very similar files one by one")
    text = "also write the hits as an HTML page; a FILE that is such a page is overwritten"
    shown.add_argument("--html", type=Path, metavar="FILE", help=text)
    options.add_json(parser, "print the hits, whether one is relevant, and the hints as one JSON object")
    parser.add_argument("--no-index", action="store_true", help="keep no index of the files and folders")
    options.add_model(parser, None, batch_size=None, dtype=False)


def _weights(text: str) -> dict[str, float]:
    weights = {}
    for assignment in text.split(","):
        name, _, value = assignment.partition("=")
        name = name.strip()
        try:
            weights[name] = float(value)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{assignment!r} is not of the form text=0.7,audio=0.3") from None
        if name not in PARTS:
            raise argparse.ArgumentTypeError(f"{name!r} is not a part of a query; there are {', '.join(PARTS)}")
    return weights


def run(args: argparse.Namespace) -> int:
    from onepeace.index.cache import is_lost

    take_words(args)
    query = _query_of(args)
    filters = _filters_of(args)
    if args.html:
        from onepeace.serve.gallery import check_gallery

        check_gallery(args.html)
        files.check_output(args.html, force=True)
    try:
        return _search(args, query, filters)
    except UserError as error:
        if not is_lost(error):
            raise
        return _search(args, query, filters)


def _search(args: argparse.Namespace, query: "Query", filters: dict[str, Any]) -> int:
    with open_index(args) as (index, problems):
        results = index.search(
            query,
            **filters,
            top=args.top,
            sort=args.sort,
            min_match=args.min_match,
            collapse=not args.all,
        )
        if args.html:
            from onepeace.serve.gallery import write_gallery

            write_gallery(results, query, args.html)
        _print_hits(args, results, query, is_filtered=any(filters.values()))
        return files.exit_code(problems, len(index)) if problems else 0


def _query_of(args: argparse.Namespace) -> "Query":
    """The query, checked as far as it can be before files are read."""
    from onepeace.index import Query

    for value in (*args.image, *args.audio):
        files.check_input(value)
    for name in args.weights:
        if not getattr(args, name):
            raise UsageError(f"--weights: the query has no {name}")
    return Query(**{name: getattr(args, name) for name in PARTS}, weights=args.weights)


def _filters_of(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `Index.search` that leave files out."""
    from onepeace.index import is_index
    from onepeace.index.filters import below, of_kinds, short_forms

    only = [kind.strip() for kind in args.only.split(",") if kind]
    try:
        where = short_forms(args.where, args.after, args.before, args.path)
        if not is_index(args.paths[0]):  # which may have further kinds; of files, now instead of once they are read
            of_kinds(only)
        below(args.below)
    except UsageError as error:  # begins with the name of the field
        raise UsageError(f"--{error}") from error
    return {"only": only, "where": where, "below": args.below}


def _print_hits(args: argparse.Namespace, results: "Results", query: "Query", *, is_filtered: bool) -> None:
    if args.json:
        print(json.dumps(results.to_dict()))
        return
    for line in results.hints:
        files.show(line)
    print(table(results, query, is_filtered))


def take_words(args: argparse.Namespace) -> None:
    """Make the words after the paths the text of the query; UsageError if there is no query."""
    has_query = any(getattr(args, name) for name in PARTS if name != "without")
    words = files.take_words(args.paths, has_query)
    if words is not None:
        args.text = [words]
    elif not has_query:
        raise _no_query(args.paths)


def _no_query(paths: list[str]) -> UsageError:
    last = paths[-1]
    if len(paths) == 1:
        return UsageError('no query; give words after the path, "a dog", or --text, --image, --audio, --like')
    return UsageError(f"no query; {last} is taken as a path, so to search for it give --text {last!r}")


@contextmanager
def open_index(
    args: argparse.Namespace, encode: "Encode | None" = None
) -> "Iterator[tuple[Index, list[files.Unreadable]]]":
    """The index at `args.paths`, or the updated index of these files and folders; with the files that newly failed, or
    all that failed if it has no others. See `Index.open` for `encode`."""
    from onepeace.index import Index

    opening = {"model": args.model, "device": args.device}
    with ExitStack() as stack:
        folder, report = _updated(args, stack, opening)
        if report is not None and report.embedder is not None:
            opening["model"] = report.embedder
        index = stack.enter_context(Index.open(folder, **opening, encode=encode))
        problems = report.problems if report is not None else []
        is_empty = not any(True for _ in index.items())  # to count them takes longer
        yield index, index.problems() if is_empty else problems


def _updated(args: argparse.Namespace, stack: ExitStack, opening: dict[str, Any]) -> "tuple[Path, Report | None]":
    """Folder of an index, and what was embedded for it.

    Args:
        stack: of what is done while it is used, and then undone.
    """
    from onepeace.index import build, is_index
    from onepeace.index.cache import kept_index

    indexes = [path for path in args.paths if is_index(path)]
    if indexes and len(args.paths) > 1:
        raise UsageError(f"{indexes[0]} is an index; give one index, or only files and folders")
    if indexes:
        return Path(indexes[0]), None
    if getattr(args, "no_index", False):
        args.kept = "nothing is kept"
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="onepeace-")), "index")
        return folder, build(folder, args.paths, **opening)
    index = stack.enter_context(kept_index(args.paths, **opening))
    if index.is_new:
        hint = "; --no-index keeps none" if "no_index" in args else ""
        files.say(f"an index of these files is kept for the next search (see: onepeace index list{hint})")
    files.say_kept(index.report.kept)
    return index.folder, index.report


def table(results: "Results", query: "Query", is_filtered: bool) -> str:
    """Table of the hits, with a heading if none is relevant."""
    if not results.hits:
        return _why_nothing(results, query, is_filtered)
    columns = _columns(results)
    lines = format_table(tuple(columns), list(zip(*columns.values(), strict=True)))
    return f"{results.heading}\n{lines}" if results.heading else lines


def _columns(results: "Results") -> dict[str, list[str]]:
    """Cells by the heads of their columns; those that would be empty are left out."""
    columns = {
        "rank": [str(hit.rank) for hit in results],
        "cosine" if results[0].match is None else "match": [hit.value for hit in results],
        "kind": [hit.kind for hit in results],
    }
    if any(hit.start is not None for hit in results):
        columns["at"] = [hit.at for hit in results]
    if any(hit.words for hit in results):
        columns["words"] = [" ".join(hit.words) + " (rare)" * hit.rare for hit in results]
    columns["path"] = [_place(hit) for hit in results]
    return columns


def _why_nothing(results: "Results", query: "Query", is_filtered: bool) -> str:
    if results.compared:
        return "nothing found"
    other_files = "no file but the query's own" if query.paths else "no file"
    missing = "meets the filters" if is_filtered else "is in the index"
    return f"nothing found: {other_files} {missing}"


def _place(hit: "Hit") -> str:
    """A path as a user types it: relative if it is below the working folder, otherwise unchanged."""
    path = hit.item.path.removeprefix(os.getcwd() + os.sep)
    return f"{path} (+{len(hit.copies)} very similar)" if hit.copies else path
