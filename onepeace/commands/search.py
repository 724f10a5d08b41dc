"""`onepeace search`: the files of an index, or of folders, that are nearest to words, a picture, a sound, or a mix."""

import argparse
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onepeace.commands import files, hits, number
from onepeace.errors import UsageError, UserError
from onepeace.files.atomic import write_text_atomic
from onepeace.files.source import scheme

if TYPE_CHECKING:
    import numpy as np

    from onepeace.index.index import Index
    from onepeace.index.query import Part
    from onepeace.index.search import Results

AWAY = -0.5
"""Weight of the words of --without."""
MANY = 500
"""Plain files from which on an index is suggested."""
ALONE = 300_000
"""Files up to which comparing one query with all takes less time than opening a search structure for it."""
OPTIONS = (
    "top", "offset", "path_glob", "after", "before", "where", "sort", "rank", "min_match", "duplicates", "nearest",
)  # fmt: skip
"""That are handed on to the index."""
EXAMPLES = """\
PATHS are one index (made by: onepeace index build), or files and folders, which are embedded each time.

a mix is one query: each part is turned into a vector, and the weighted sum is searched for. A query's own file is
not among its hits. "match" is the probability that a hit is relevant, "-" where the calibration of the model knows
none for such a pair of kinds; without any the cosine similarity is shown. A video is found by its pictures and by its
sound; "at" says where in it.

--where: size, mtime, date, width, height, duration, modality, path, caption and metadata.NAME, with < <= = != >= >, ~
(contains), in (...), is null, and, or, not. Units are kB, MB, GB of size, and s, min, h of duration.

  onepeace search my.index --text "a dog barking"
  onepeace search my.index --image dog.jpg --without "people" --only image --after 2024-05
  onepeace search my.index --audio bark.ogg --text "in the snow" --weights audio=0.7,text=0.3
  onepeace search my.index --like Pictures/dog.jpg --where "width >= 1000" --sort date --html hits.html
  onepeace search pictures sounds --text "a dog barking" --top 5 --json
  onepeace search my.index --compare clip.index --like Pictures/dog.jpg

exit code: 0, 1 when files could not be read (listed at the end), 2 for wrong usage"""


class _AddPart(argparse.Action):
    """Keeps the parts of the query in the order they were given."""

    def __call__(self, parser, namespace, values, option_string=None):  # type: ignore[no-untyped-def]
        namespace.query = [*(namespace.query or []), (self.const, values)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    files.add_arguments(parser, (*files.KINDS, "video"))
    parser.epilog = EXAMPLES
    parser.set_defaults(query=None, model=None)
    query = parser.add_argument_group("the query; every option may be given several times")
    for kind, metavar, text in (
        ("text", "WORDS", "search for words"),
        ("image", "FILE", "search for what is like a picture"),
        ("audio", "FILE", "search for what is like a sound"),
        ("like", "PATH", "search for what is like a file of the index, without reading it"),
        ("without", "WORDS", f"away from words (weight {AWAY})"),
    ):
        query.add_argument(f"--{kind}", action=_AddPart, const=kind, dest="query", metavar=metavar, help=text)
    query.add_argument(
        "--weights", metavar="W", help="of a mix: text=0.7,audio=0.3, or numbers in the order of the parts"
    )
    parser.add_argument(
        "--vectors", type=Path, metavar="FILE",
        help="for an index of imported vectors: those of the words of the query, as for `onepeace index import`, the "
        "words in place of paths",
    )  # fmt: skip
    parser.add_argument("--queries", type=Path, metavar="FILE", help="a query of words in each line; a table of each")
    chosen = parser.add_argument_group("which files may be found")
    chosen.add_argument("--path-glob", metavar="GLOB", help='as "holidays/**/*.jpg"')
    chosen.add_argument("--after", metavar="DATE", help="2024, 2024-05 or 2024-05-01: from its start on")
    chosen.add_argument("--before", metavar="DATE", help="before the start of it")
    chosen.add_argument("--where", metavar="CONDITION", help="as \"duration < 5 or width >= 1000 and caption ~ 'dog'\"")
    shown = parser.add_argument_group("which hits, and how")
    shown.add_argument("--top", type=number.positive, default=10, metavar="K", help="how many hits (default: 10)")
    shown.add_argument("--offset", type=number.count, default=0, metavar="N", help="leave out the first N")
    text = "date (newest first) or path: of the best 200, or of as many as are asked for (default: match)"
    shown.add_argument("--sort", choices=("match", "date", "path"), default="match", help=text)
    shown.add_argument("--rank", metavar="NAME", help="znorm (default), raw, centred or per-modality")
    shown.add_argument(
        "--min-match",
        type=number.probability,
        default=0.5,
        metavar="P",
        help="below it a hit counts as not relevant (0.5)",
    )
    shown.add_argument(
        "--duplicates", choices=("collapse", "show"), default="collapse", help="near copies: one hit, or each"
    )
    nearest = "search structure of the index: exact, faiss-ivf, usearch or faiss-hnsw; default: the one that is there"
    shown.add_argument("--nearest", default="auto", metavar="NAME", help=nearest)
    shown.add_argument(
        "--compare", type=Path, metavar="INDEX", help="the hits of another index, as of another model, beside"
    )
    shown.add_argument("--json", action="store_true", help="one JSON object per line instead of a table")
    shown.add_argument("--html", type=Path, metavar="FILE", help="also write the hits as a page to look at")


def run(args: argparse.Namespace) -> int:
    from onepeace.index.index import Index

    queries = _queries(args)
    _check_options(args)
    if args.html:
        if len(queries) > 1 or args.compare:
            raise UsageError("--html is of one query in one index; leave out --queries and --compare")
        files.check_folder_of(args.html)
    with ExitStack() as stack:
        index, problems = stack.enter_context(_opened(args))
        indexes = {index.model: index}
        if args.compare:
            other = stack.enter_context(Index.open(args.compare, device=args.device, dtype=args.dtype))
            names = (index.model, other.model)
            if names[0] == names[1]:  # the same model, over other files
                names = (str(args.paths[0]), str(args.compare))
            if names[0] == names[1]:
                raise UsageError(f"--compare {args.compare}: is the index that is searched; name another one")
            indexes = dict(zip(names, (index, other), strict=True))
        if args.vectors and not any(each.is_imported for each in indexes.values()):
            raise UsageError(f"--vectors {args.vectors}: is for an index of imported vectors; leave it out")
        known = {} if args.vectors is None else _vectors_of_words(args.vectors)
        for words, query in queries:
            parts = {name: _parts(query, each, known) for name, each in indexes.items()}
            found = {name: _search(each, parts[name], args, len(queries) == 1) for name, each in indexes.items()}
            about = {} if words is None else {"query": words}
            if args.json:
                for name, results in found.items():
                    hits.print_json(results, **about, **({"index": name} if args.compare else {}))
            else:
                if words is not None:
                    print(f"{files.shown(words)}:")
                hits.print_both(found) if args.compare else hits.print_table(found[index.model])
            if args.html:
                page = _page(index, query, found[index.model], args.html.parent)
                write_text_atomic(args.html, page)
        return files.exit_code(problems, len(index))


def _check_options(args: argparse.Namespace) -> None:
    """Says what cannot be read before anything is embedded."""
    from onepeace.index import nearest
    from onepeace.index.path_glob import path_glob
    from onepeace.index.ranking import RANKINGS
    from onepeace.index.where import after, before, parse

    if args.rank not in (None, *RANKINGS):
        raise UsageError(f"--rank {args.rank}: it can be {', '.join(RANKINGS)}")
    nearest.check(args.nearest)
    conditions = ((parse, args.where), (after, args.after), (before, args.before), (path_glob, args.path_glob))
    for read, text in conditions:
        try:
            if text is not None:
                read(text)
        except UsageError as error:  # begins with the name
            raise UsageError(f"--{error}") from error


def _parts(query: Sequence[tuple[str, Any, float]], index: "Index", known: "Mapping[str, np.ndarray]") -> "list[Part]":
    """What an index is asked. One of imported vectors has no model: its own files are asked for by name, and words by
    the vectors that are given for them."""
    from onepeace.index.query import Part

    parts = [Part("text" if kind == "without" else kind, value, weight) for kind, value, weight in query]
    if not index.is_imported:
        return parts
    return [
        replace(part, kind="like") if part.kind in ("image", "audio")
        else replace(part, kind="vector", value=known[part.value]) if part.kind == "text" and part.value in known
        else part
        for part in parts
    ]  # fmt: skip


def _search(index: "Index", parts: "Sequence[Part]", args: argparse.Namespace, is_alone: bool) -> "Results":
    options = {name: getattr(args, name) for name in OPTIONS}
    if is_alone and args.nearest == "auto" and index.mirror is None and len(index) <= ALONE:
        options["nearest"] = "exact"
    return index.search(parts, only=() if args.only is None else (args.only,), **options)


@contextmanager
def _opened(args: argparse.Namespace) -> "Iterator[tuple[Index, list[files.Unreadable]]]":
    """The index that is named, or one that is made of the files named and lives as long; what could not be read."""
    from onepeace.index.index import Index, is_index
    from onepeace.index.write import build

    options = {"device": args.device, "dtype": args.dtype}
    indexes = [path for path in args.paths if is_index(path)]
    if indexes:
        if len(args.paths) > 1:
            raise UsageError(f"{indexes[0]} is an index; search one index, or plain files, at a time")
        with Index.open(indexes[0], model=args.model, **options) as index:
            yield index, []
        return
    with tempfile.TemporaryDirectory(prefix="onepeace-") as folder:
        found = build(folder, args.paths, args.model, batch_size=args.batch_size, only=args.only, **options)
        files.say_left_out(found.left_out)
        if found.embedded >= MANY:
            files.say(f"{found.embedded} files were embedded for this query; an index answers at once: onepeace index")
        with Index.open(folder, model=args.model, **options) as index:
            yield index, found.problems


def _queries(args: argparse.Namespace) -> list[tuple[str | None, list[tuple[str, Any, float]]]]:
    """Name, and (kind, value, weight) of each part, of every query."""
    given = list(args.query or [])
    for kind, value in given:
        if kind in ("image", "audio") and not scheme(value) and not os.path.exists(value):
            raise UsageError(f"{value}: no such file")
        if kind in ("image", "audio") and os.path.isdir(value):
            raise UsageError(f"{value}: is a folder; name a file")
    if args.queries is None:
        if not given:
            raise UsageError("nothing to search for; give --text, --image, --audio, --like or several of them")
        return [(None, _weighted(args.weights, given))]
    lines = files.lines_of(args.queries, "query")
    return [(line, _weighted(args.weights, [("text", line), *given])) for line in lines]


def _weighted(text: str | None, parts: Sequence[tuple[str, Any]]) -> list[tuple[str, Any, float]]:
    """The parts with their weights, as given by name or in their order."""
    kinds = [kind for kind, _ in parts]
    if text is None:
        weights = [AWAY if kind == "without" else 1.0 for kind in kinds]
        return [(*part, weight) for part, weight in zip(parts, weights, strict=True)]
    fields = [field.strip() for field in text.split(",")]
    named = ["=" in field for field in fields]
    if any(named) != all(named):
        raise UsageError(f"--weights {text}: give a name to all weights or to none")
    pairs = [field.split("=", 1) for field in fields] if all(named) else list(zip(kinds, fields, strict=False))
    by_name = {name.strip(): value for name, value in pairs} if all(named) else {}
    if all(named) and len({*kinds}) < len(kinds):
        raise UsageError(
            f"--weights {text}: a kind of part is given twice; write the weights in the order of the parts"
        )
    if len(fields) != len(kinds) or (by_name and by_name.keys() != {*kinds}):
        raise UsageError(f"--weights {text}: the query has the parts {', '.join(kinds)}; give one weight for each")
    try:
        weights = [float(by_name[kind] if by_name else value) for kind, (_, value) in zip(kinds, pairs, strict=True)]
    except ValueError:
        raise UsageError(f"--weights {text}: weights are numbers, as in text=0.7,audio=0.3") from None
    if not all(map(math.isfinite, weights)) or not any(weights):
        raise UsageError(f"--weights {text}: weights must be finite, and not all 0")
    if any(kind == "without" and weight > 0 for kind, weight in zip(kinds, weights, strict=True)):
        raise UsageError(f"--weights {text}: the weight of without must not be above 0; give one as {AWAY}")
    return [(*part, weight) for part, weight in zip(parts, weights, strict=True)]


def _vectors_of_words(file: Path) -> "dict[str, np.ndarray]":
    from onepeace.files.embeddings import read_embeddings

    embeddings = read_embeddings(file)
    return dict(zip(embeddings.paths, embeddings.vectors, strict=True))


def _page(index: "Index", query: Sequence[tuple[str, Any, float]], results: "Results", folder: Path) -> str:
    from onepeace.index.content import content
    from onepeace.serve.hits import QueryPart, Shown, render

    # As it was given: an index of imported vectors is asked for others, which say nothing to people.
    given = [QueryPart("text" if kind == "without" else kind, value, weight) for kind, value, weight in query]
    shown = []
    for hit in results.hits:
        try:
            value = content(hit.item)
        except UserError:  # gone since it was embedded
            value = hit.item.path
        shown.append(Shown(hit, value))
    return render(given, shown, folder, num_files=results.compared, model=index.model)
