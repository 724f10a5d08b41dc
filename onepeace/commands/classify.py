"""`onepeace classify`: classify files by given labels (zero-shot) or with a trained task head."""

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onepeace.commands import files, options
from onepeace.errors import UsageError
from onepeace.files.table import format_table
from onepeace.files.walk import FoundFile, Unreadable

if TYPE_CHECKING:
    from onepeace.embed.classify import ClassifiedFiles
    from onepeace.embed.embedder import Embedder
    from onepeace.embed.predict import Predictor

EXAMPLES = f"""\
With --labels alone, any model classifies zero-shot: each label is put into a sentence for the kind of file, or into
--template. Otherwise a fine-tuned model applies its head. This prints, depending on the head, its labels, the answer to
--text, the best of --labels as the answer to --text, the box of the phrase --text, or what a head of your own predicts
(--import FILE.py).
Videos are skipped, unless the head reads videos or sounds. Only the beginning of a long sound is read.

  onepeace classify pictures --labels dog,cat,bird
  onepeace classify sounds --labels names.txt --template "{{}}" --top 3 --json
  onepeace classify new_recordings --model runs/sounds --top 3
  onepeace classify cat.jpg --model models/vqa --text "what colour is the cat?"
  onepeace classify yard.wav --model models/avqa --text "what is barking?" --labels "a dog,a seal"
  onepeace classify street.jpg --model models/refcoco --text "the bus on the left" --draw boxes

{files.EXIT_CODES}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    files.add_paths(parser)
    parser.add_argument("--labels", metavar="A,B,C|FILE", help="labels to choose from, or a file with one per line")
    parser.add_argument("--template", metavar="T", help='sentence with {} for the label, e.g. "a drawing of a {}"')
    parser.add_argument("--text", metavar="T", help="question, phrase or statement about each file")
    parser.add_argument("--head", metavar="NAME", help="head to use, if the model has several")
    parser.add_argument("--top", type=options.positive, default=1, metavar="K", help="labels shown per file (1)")
    parser.add_argument("--draw", type=Path, metavar="FOLDER", help="write pictures with boxes or masks drawn (PNG)")
    options.add_model(parser, dtype=False)
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    from onepeace.embed.predict import TASKS
    from onepeace.files.drawing import Drawings
    from onepeace.processors import ImageProcessor

    labels = _labels(args.labels)
    is_zero_shot = bool(labels) and args.text is None
    _check_options(args, labels, is_zero_shot)
    drawings = Drawings(args.draw) if args.draw else None
    found_files, problems = files.find(args.paths)
    embedder = options.load(args)
    head = None if is_zero_shot else _head(args, embedder)
    task = TASKS["label" if head is None else head.task]
    rows = []
    for paths, result, reason in _results(args, embedder, head, found_files, labels):
        if result is None:
            problems.append(Unreadable(paths[0], reason))
            continue
        if drawings is not None and head is not None and task.draw is not None:
            picture = ImageProcessor(draft=False).load(paths[0])
            drawn = task.draw(picture, result, args.text or "", head.config.get("labels", ()))
            result["picture"] = os.fspath(drawings.save(drawn, paths[0]))
        if args.json:
            _print_json(paths, result)
        rows.append((task.cell(result), " ".join(map(str, paths))))
    if rows and not args.json:
        print(format_table((task.column, "path"), rows))
    return files.exit_code(problems, len(rows))


def _check_options(args: argparse.Namespace, labels: Sequence[str], is_zero_shot: bool) -> None:
    """Raise `UsageError` for options without effect, before the model is loaded."""
    if args.template is not None and not is_zero_shot:
        raise UsageError("--template needs --labels, and no --text")
    if is_zero_shot and (args.draw or args.head):
        option = "draw" if args.draw else "head"
        raise UsageError(f"--{option} is for a trained head, and --labels alone uses none; leave out one of them")


def _head(args: argparse.Namespace, embedder: "Embedder") -> "Predictor":
    from onepeace.embed.predict import TASKS, Predictor

    head = Predictor(embedder, args.head)
    if args.draw and TASKS[head.task].draw is None:
        raise UsageError(f"--draw needs boxes or masks, and the head {head.name} predicts none")
    return head


def _print_json(paths: Sequence[Path], result: dict[str, Any]) -> None:
    names = [os.fspath(path) for path in paths]
    path = names[0] if len(names) == 1 else names
    fields = {key: value for key, value in result.items() if key != "mask"}  # a tensor, for drawing only
    print(json.dumps({"path": path, **fields}), flush=True)


def _labels(text: str | None) -> list[str]:
    """The labels of the option: separated by commas, or the lines of a file."""
    if text is None:
        return []
    # A value that looks like a file name is meant as one: if there is no such file, that is an error, not a label.
    if "," not in text and (text.endswith(".txt") or os.sep in text):
        files.check_input(text)
    names = files.lines_of(Path(text)) if os.path.isfile(text) else text.split(",")
    labels = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    if not labels:
        raise UsageError("--labels is empty; give at least two labels")
    return labels


def _results(
    args: argparse.Namespace,
    embedder: "Embedder",
    head: "Predictor | None",
    found_files: Sequence[FoundFile],
    labels: Sequence[str],
) -> "Iterator[ClassifiedFiles]":
    """Yield the results of the files: by the head, or zero-shot by the labels without one."""
    from onepeace.embed.classify import classify_by_labels
    from onepeace.embed.predict import HeadInput
    from onepeace.progress import Progress

    sizes = {"top": args.top, "batch_size": args.batch_size}
    if head is None:
        readable = files.readable(found_files, embedder.modalities)
        yield from classify_by_labels(embedder.classify, readable, labels, template=args.template, **sizes)
        return
    head_input = HeadInput(head, args.text, labels)
    readable = files.readable(map(head_input.as_read, found_files), head_input.modalities, f"the head {head.name}")
    with Progress(len(readable)) as progress:
        for result in head_input.classify(readable, **sizes):
            progress.update(len(result.paths))
            yield result
