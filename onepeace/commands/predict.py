"""`onepeace predict`: what the task head of a fine-tuned model says of files."""

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onepeace.commands import files, number
from onepeace.errors import UsageError
from onepeace.files.drawing import Drawings, with_box, with_mask
from onepeace.files.source import describe
from onepeace.files.table import format_table

if TYPE_CHECKING:
    from PIL import Image

    from onepeace.embed.predict import Head

EXAMPLES = """\
what is printed follows from what the model was fine-tuned for: labels with scores, an answer to a question about a
picture (--text), the box of a phrase (--text, --draw FOLDER for pictures with the box), the boxes of all objects
(--draw), one of several answers (--text, --candidates), what is heard when, or what is seen where (--draw FOLDER for
pictures with the classes in colour).

  onepeace predict runs/pets/model pictures --top 3
  onepeace predict models/kinetics clips --top 3
  onepeace predict models/vqa cat.jpg --text "what colour is the cat?"
  onepeace predict models/refcoco street.jpg --text "the bus on the left" --draw boxes
  onepeace predict models/avqa yard.wav --text "what is barking?" --candidates "a dog,a seal"

exit code: 0, 1 when files could not be read (listed at the end), 2 for wrong usage"""

COLUMNS = {"label": "labels", "labels": "labels", "answer": "answer", "box": "box", "boxes": "boxes",
           "choice": "choice", "events": "events", "mask": "classes"}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("model", metavar="MODEL", help="a model folder with a task head, or the run that made it")
    files.add_arguments(parser, model=False)
    parser.add_argument("--head", metavar="NAME", help="which of the model's heads, if it has several")
    parser.add_argument("--text", metavar="T", help="the question, phrase or statement that goes with each file")
    parser.add_argument("--candidates", metavar="A,B,C", help="the answers to choose from")
    parser.add_argument(
        "--pair", action="store_true", help="the files are pairs of pictures, each pair one item (NLVR2)"
    )
    parser.add_argument(
        "--top", type=number.positive, default=1, metavar="K", help="labels shown of each file (default: 1)"
    )
    parser.add_argument("--draw", type=Path, metavar="FOLDER", help="write PNGs with the boxes or masks")
    parser.add_argument("--json", action="store_true", help="one JSON object per line instead of a table")


def run(args: argparse.Namespace) -> int:
    drawings = Drawings(args.draw) if args.draw else None
    found, problems = files.find(args)
    from onepeace.embed.predict import Head
    from onepeace.train.folder import model_folder

    args.model = os.fspath(model_folder(args.model))
    head = Head(files.load(args), args.head)
    if args.draw and head.task not in ("box", "boxes", "mask"):
        raise UsageError(f"--draw is for boxes and masks, and this model gives {COLUMNS[head.task]}")
    own = head.embedder.processors[head.on].suffixes  # a video may be read as frames or as sound
    found = [file._replace(modality=head.on) if file.path.suffix.lower() in own else file for file in found]
    asked = args.text is not None and head.on == "text"  # the head reads the words, and they are about any file
    readable = set(head.embedder.processors) - {"text"} if asked else {head.on}
    known = [file for file in found if file.modality in readable]
    if left_out := len(found) - len(known):
        about = f"the head {head.name} reads {' or '.join(sorted(readable))}"
        files.say(f"{files.counted(left_out, 'file')} left out: {about}")
    groups = [[file] for file in known]
    if args.pair:
        if len(known) % 2:
            raise UsageError(f"--pair takes an even number of pictures, not {len(known)}")
        groups = [[one, other] for one, other in zip(known[::2], known[1::2], strict=True)]
    paths = [[file.path for file in group] for group in groups]
    items = [_item(args, group[0].modality, each) for group, each in zip(groups, paths, strict=True)]
    rows, failed = [], []
    for prediction in head.predict(items, batch_size=args.batch_size, top=args.top):
        path = paths[prediction.index][0]
        if prediction.result is None:
            failed.append(files.Unreadable(path, str(prediction.reason).removeprefix(f"{describe(path)}: ")))
            continue
        result = dict(prediction.result)
        if drawings:
            result["picture"] = os.fspath(drawings.save(_drawn(args, head, path, result), path))
        result.pop("mask", None)
        if args.json:
            names = [os.fspath(one) for one in paths[prediction.index]]
            print(json.dumps({"path": names[0] if len(names) == 1 else names, **result}), flush=True)
        rows.append((_line(head.task, result), " ".join(map(files.shown, paths[prediction.index]))))
    if rows and not args.json:
        print(format_table((COLUMNS[head.task], "path"), rows))
    return files.exit_code([*problems, *failed], len(rows))


def _item(args: argparse.Namespace, modality: str, group: list[Path]) -> dict[str, Any]:
    item: dict[str, Any] = {modality: group if len(group) > 1 else group[0]}
    if args.text is not None:
        item["text"] = args.text
    if args.candidates is not None:
        item["candidates"] = [one.strip() for one in args.candidates.split(",") if one.strip()]
    return item


def _line(task: str, result: dict[str, Any]) -> str:
    """A result as a cell of the table."""
    if task in ("label", "labels"):
        return ", ".join(f"{one['label']} {one['score']:.2f}" for one in result["labels"])
    if task == "answer":
        return f"{result['answer']} {result['score']:.2f}"
    if task == "box":
        return ", ".join(f"{corner:.0f}" for corner in result["box"])
    if task == "boxes":
        return ", ".join(f"{one['label']} {one['score']:.2f}" for one in _shown(result)) or "nothing"
    if task == "choice":
        return result["choice"]
    if task == "events":
        events = [f"{e['label']} {e['onset']:.2f}-{e['offset']:.2f} s" for e in result["events"]]
        return ", ".join(events) or "nothing"
    return ", ".join(f"{one['label']} {one['share']:.0%}" for one in result["labels"])


def _shown(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The boxes of which the model is sure enough."""
    from onepeace.embed.tasks import THRESHOLD

    return [one for one in result["boxes"] if one["score"] >= THRESHOLD]


def _drawn(args: argparse.Namespace, head: "Head", path: Path, result: dict[str, Any]) -> "Image.Image":
    """The picture with its boxes or mask."""
    picture = head.embedder.processors["image"].load(path)  # type: ignore[attr-defined]
    if head.task in ("box", "boxes"):
        width, height = head.embedder.processors["image"].size_in_pixels(path)  # type: ignore[attr-defined]
        scale = (picture.width / width, picture.height / height)
        named = (
            [(result["box"], args.text)]
            if head.task == "box"
            else [(one["box"], f"{one['label']} {one['score']:.2f}") for one in _shown(result)]
        )
        for box, caption in named:
            picture = with_box(picture, [corner * scale[i % 2] for i, corner in enumerate(box)], caption)
        return picture
    return with_mask(picture, result["mask"], [one["label"] for one in result["labels"]], head.config["labels"])
