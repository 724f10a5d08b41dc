"""`onepeace search`: the files of a folder that are nearest to words, a picture, a sound, or a mix of them."""

import argparse
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

from onepeace.commands import files
from onepeace.errors import UsageError
from onepeace.files.atomic import write_text_atomic
from onepeace.files.table import format_table

if TYPE_CHECKING:
    from torch import Tensor

EXAMPLES = """\
a mix is one query: each part is turned into a vector, and the weighted sum is searched for. A query's own file is
not among its hits. Scores are cosine similarities.

  onepeace search pictures sounds --text "a dog barking"
  onepeace search pictures --audio bark.ogg --text "in the snow" --weights audio=0.7,text=0.3
  onepeace search . --image dog.jpg --only audio --top 5 --html hits.html

exit code: 0, 1 when files could not be read (listed at the end), 2 for wrong usage"""


class _AddPart(argparse.Action):
    """Keeps the parts of the query in the order they were given."""

    def __call__(self, parser, namespace, values, option_string=None):  # type: ignore[no-untyped-def]
        parts = dict(namespace.query or {})
        if self.const in parts:
            parser.error(f"{option_string} is given twice")
        namespace.query = {**parts, self.const: values}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    files.add_arguments(parser)
    parser.epilog = EXAMPLES
    parser.set_defaults(query=None)
    for modality, metavar, text in (
        ("text", "WORDS", "search for words"),
        ("image", "FILE", "search for what is like a picture"),
        ("audio", "FILE", "search for what is like a sound"),
    ):
        parser.add_argument(f"--{modality}", action=_AddPart, const=modality, dest="query", metavar=metavar, help=text)
    parser.add_argument(
        "--weights", metavar="W", help="of a mix: text=0.7,audio=0.3, or numbers in the order of the parts"
    )
    parser.add_argument("--top", type=files.positive, default=10, metavar="K", help="how many hits (default: 10)")
    parser.add_argument("--json", action="store_true", help="one JSON object per line instead of a table")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write the hits as a page to look at")


def run(args: argparse.Namespace) -> int:
    if not args.query:
        raise UsageError("nothing to search for; give --text, --image, --audio or several of them")
    weights = _weights(args.weights, list(args.query))
    if args.html:
        files.check_folder_of(args.html)
    own = _own_files(args.query)
    found, problems = files.find(args)

    from onepeace.serve.hits import Hit, QueryPart, render

    model = files.load(args)
    query = cast("Tensor", model.encode([args.query], weights=weights, progress=False))
    found = [file for file in found if os.path.realpath(file.path) not in own]
    vectors, found, failed = files.encode(model, found, args.batch_size)
    scores = cast("Tensor", model.similarity(vectors, query))[:, 0]
    best = scores.argsort(descending=True, stable=True)[: args.top].tolist()
    hits = [
        Hit(rank, float(scores[index]), found[index].modality, found[index].path)
        for rank, index in enumerate(best, start=1)
    ]
    if args.json:
        for hit in hits:
            print(json.dumps({**hit._asdict(), "score": round(hit.score, 6), "path": os.fspath(hit.path)}))
    elif hits:
        rows = [(str(hit.rank), f"{hit.score:.3f}", hit.modality, files.shown(hit.path)) for hit in hits]
        print(format_table(("rank", "score", "kind", "path"), rows))
    if args.html:
        parts = [QueryPart(key, value, weights.get(key, 1.0)) for key, value in args.query.items()]
        page = render(parts, hits, args.html.parent, num_files=len(found), model=args.model)
        write_text_atomic(args.html, page)
    return files.exit_code([*problems, *failed], len(found))


def _own_files(query: dict[str, str]) -> set[str]:
    """Real paths of the query's files, which have to be there."""
    from onepeace.files.source import scheme

    local = [value for key, value in query.items() if key != "text" and not scheme(value)]
    for value in local:
        if not os.path.exists(value):
            raise UsageError(f"{value}: no such file")
    return {os.path.realpath(value) for value in local}


def _weights(text: str | None, modalities: list[str]) -> dict[str, float]:
    """Weights of the query's parts, as given by name or in their order."""
    if text is None:
        return {}
    fields = [field.strip() for field in text.split(",")]
    named = ["=" in field for field in fields]
    if any(named) != all(named):
        raise UsageError(f"--weights {text}: give a name to all weights or to none")
    pairs = [field.split("=", 1) for field in fields] if all(named) else list(zip(modalities, fields, strict=False))
    if len(fields) != len(modalities) or {name.strip() for name, _ in pairs} != set(modalities):
        raise UsageError(f"--weights {text}: the query has the parts {', '.join(modalities)}; give one weight for each")
    try:
        weights = {name.strip(): float(value) for name, value in pairs}
    except ValueError:
        raise UsageError(f"--weights {text}: weights are numbers, as in text=0.7,audio=0.3") from None
    if not all(map(math.isfinite, weights.values())) or not any(weights.values()):
        raise UsageError(f"--weights {text}: weights must be finite, and not all 0")
    return weights
