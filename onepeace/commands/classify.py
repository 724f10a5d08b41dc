"""`onepeace classify`: classify files by given labels (zero-shot) or with a trained task head."""

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onepeace.commands import files, options
from onepeace.errors import UsageError
from onepeace.files.drawing import Drawings, with_box, with_mask
from onepeace.files.source import describe
from onepeace.files.table import format_table
from onepeace.files.walk import FoundFile, Unreadable

if TYPE_CHECKING:
    from PIL import Image

    from onepeace.embed.embedder import Embedder
    from onepeace.embed.predict import Predictor

EXAMPLES = f"""\
With --labels, any model classifies zero-shot: each label is put into a sentence for the kind of file, or into
--template. Without --labels, or with --text, a fine-tuned model applies its head: labels, an answer or a box for
--text, one of --labels for --text, object boxes, sound events with times, or a segmentation mask.
Videos are skipped, unless the head reads videos or sounds. Of a long sound the beginning is read.

  onepeace classify pictures --labels dog,cat,bird
  onepeace classify sounds --labels names.txt --template "{{}}" --top 3 --json
  onepeace classify new_recordings --model runs/sounds --top 3
  onepeace classify cat.jpg --model models/vqa --text "what colour is the cat?"
  onepeace classify yard.wav --model models/avqa --text "what is barking?" --labels "a dog,a seal"
  onepeace classify street.jpg --model models/refcoco --text "the bus on the left" --draw boxes

{files.EXIT_CODES}"""
COLUMNS = {"events": "events", "box": "box", "boxes": "boxes", "mask": "classes", "answer": "answer",
           "choice": "answer"}  # fmt: skip
"""Title of the results column by task, if it is not "label"."""
DRAWN = ("box", "boxes", "mask")
Predicted = tuple[list[Path], dict[str, Any] | None, str]
"""The files of an item, the result (None if it failed), and why it failed."""


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
    labels = _labels(args.labels)
    is_zero_shot = bool(labels) and args.text is None
    if args.template is not None and not is_zero_shot:
        raise UsageError("--template needs --labels, and no --text")
    if is_zero_shot and (args.draw or args.head):
        raise UsageError(f"--{'draw' if args.draw else 'head'} needs a trained head; leave out --labels")
    drawings = Drawings(args.draw) if args.draw else None
    found, problems = files.find(args.paths)
    model = options.load(args)
    if is_zero_shot:
        head, predicted = None, _zero_shot(args, model, found, labels)
    else:
        from onepeace.embed.predict import Predictor

        head = Predictor(model, args.head)
        if drawings and head.task not in DRAWN:
            raise UsageError(f"--draw needs boxes or masks, and the head {head.name} predicts none")
        predicted = _by_head(args, head, found, labels)
    rows, failed = [], []
    for paths, result, reason in predicted:
        if result is None:
            failed.append(Unreadable(paths[0], reason))
            continue
        if drawings and head:
            result["picture"] = os.fspath(drawings.save(_drawn(head, paths[0], result, args.text), paths[0]))
        result.pop("mask", None)
        if args.json:
            names = [os.fspath(path) for path in paths]
            print(json.dumps({"path": names[0] if len(names) == 1 else names, **result}), flush=True)
        rows.append((_cell(result), " ".join(map(files.shown, paths))))
    if rows and not args.json:
        column = COLUMNS.get(head.task, "label") if head else "label"
        print(format_table((column, "path"), rows))
    return files.exit_code([*problems, *failed], len(rows))


def _labels(text: str | None) -> list[str]:
    if text is None:
        return []
    if "," not in text and (text.endswith(".txt") or os.sep in text):
        files.check_input(text)
    names = files.lines_of(Path(text)) if os.path.isfile(text) else text.split(",")
    labels = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    if not labels:
        raise UsageError("--labels is empty; give at least one label")
    return labels


def _zero_shot(
    args: argparse.Namespace, model: "Embedder", found: Sequence[FoundFile], labels: list[str]
) -> Iterator[Predicted]:
    known = files.readable(found, model.modalities)
    items = [{file.modality: file.path} for file in known]
    probabilities, failures = model.classify(
        items,
        labels,
        template=args.template,
        batch_size=args.batch_size,
        on_error="skip",
    )
    reasons = {failure.index: str(failure.reason) for failure in failures}
    rows = iter(probabilities)
    for index, file in enumerate(known):
        if index in reasons:
            yield [file.path], None, reasons[index]
            continue
        best = next(rows).sort(descending=True, stable=True)
        ranked = zip(best.values.tolist()[: args.top], best.indices.tolist(), strict=False)
        yield [file.path], {"labels": [{"label": labels[i], "score": round(score, 6)} for score, i in ranked]}, ""


def _by_head(
    args: argparse.Namespace, head: "Predictor", found: Sequence[FoundFile], labels: list[str]
) -> Iterator[Predicted]:
    reads_words = head.on == "text" or head.task in ("answer", "box", "choice")
    if args.text is not None and not reads_words:
        raise UsageError(f"the head {head.name} reads no text; leave out --text")
    if labels and head.task != "choice":
        raise UsageError(f"the head {head.name} does not choose among --labels; leave out either them or --text")
    own = head.embedder.processors[head.on].suffixes  # a video may be read as frames or as sound
    found = [file._replace(modality=head.on) if file.path.suffix.lower() in own else file for file in found]
    asked = args.text is not None and head.on == "text"  # the head reads the text, which is about files of any modality
    known = files.readable(
        found, set(head.embedder.processors) - {"text"} if asked else {head.on}, f"the head {head.name}"
    )
    size = head.config.get("inputs", 1)  # some heads read pairs of pictures (NLVR2)
    if len(known) % size:
        raise UsageError(f"the head {head.name} reads {size} files at a time; {len(known)} is not a multiple of it")
    groups = [known[start : start + size] for start in range(0, len(known), size)]
    words = {} if args.text is None else {"text": args.text}
    candidates = {"candidates": labels} if labels else {}
    paths = [[file.path for file in group] for group in groups]
    items = [
        {group[0].modality: each if size > 1 else each[0], **words, **candidates}
        for group, each in zip(groups, paths, strict=True)
    ]
    from onepeace.progress import Progress

    with Progress(len(items)) as progress:
        for one in head.predict(items, batch_size=args.batch_size, top=args.top):
            progress.update()
            group = paths[one.index]
            yield group, one.result and dict(one.result), str(one.reason).removeprefix(f"{describe(group[0])}: ")


def _cell(result: dict[str, Any]) -> str:
    """A result as a cell of the table, by its fields (onepeace/embed/tasks.py)."""
    if "answer" in result:
        return f"{result['answer']} {result['score']:.2f}"
    if "choice" in result:
        return result["choice"]
    if "box" in result:
        return ", ".join(f"{corner:.0f}" for corner in result["box"])
    if "boxes" in result:
        return ", ".join(f"{one['label']} {one['score']:.2f}" for one in _sure(result)) or "nothing"
    if "events" in result:
        events = [f"{one['label']} {one['onset']:.2f}-{one['offset']:.2f} s" for one in result["events"]]
        return ", ".join(events) or "nothing"
    return ", ".join(
        f"{one['label']} {one['score']:.2f}" if "score" in one else f"{one['label']} {one['share']:.0%}"
        for one in result["labels"]
    )


def _sure(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The boxes whose score reaches the threshold."""
    from onepeace.embed.tasks import THRESHOLD

    return [one for one in result["boxes"] if one["score"] >= THRESHOLD]


def _drawn(head: "Predictor", path: Path, result: dict[str, Any], words: str | None) -> "Image.Image":
    """The picture with its boxes or mask drawn."""
    processor: Any = head.embedder.processors["image"]
    picture = processor.load(path)
    if "mask" in result:
        return with_mask(picture, result["mask"], [one["label"] for one in result["labels"]], head.config["labels"])
    width, height = processor.size_in_pixels(path)
    scale = (picture.width / width, picture.height / height)
    named = [(result["box"], words or "")] if "box" in result else [
        (one["box"], f"{one['label']} {one['score']:.2f}") for one in _sure(result)
    ]  # fmt: skip
    for box, caption in named:
        picture = with_box(picture, [corner * scale[i % 2] for i, corner in enumerate(box)], caption)
    return picture
