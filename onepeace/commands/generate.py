"""`onepeace caption`, `answer` and `ground`: run a generative model on files."""

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onepeace.commands import files, options
from onepeace.errors import UsageError, UserError, expect
from onepeace.files.drawing import Drawings, with_box
from onepeace.files.table import format_table

if TYPE_CHECKING:
    from onepeace.generative.answers import Answer

EXAMPLES = {
    "caption": """\
Videos are skipped. Of a long sound the beginning is read.

  onepeace caption data/samples
  onepeace caption pictures --model ofa-base-caption --json > captions.jsonl""",
    "answer": """\
  onepeace answer street.jpg --question "how many buses are there?" --model ofa-base-vqa
  onepeace answer pictures --question "is it day or night?" --labels day,night --model ofa-base-vqa --json""",
    "ground": """\
The box is x0, y0, x1, y1 in pixels, from the top left corner of the picture.

  onepeace ground street.jpg --text "the bus on the left" --model ofa-base-refcoco
  onepeace ground pictures --text "a red umbrella" --model ofa-base-refcoco --draw umbrellas --json""",
}
TRAINED_FOR = {"caption": "caption", "answer": "vqa", "ground": "refcoco"}
"""Part of the names of the released models that are trained for each command."""
KINDS = {"caption": ("text",), "answer": ("text", "choice"), "ground": ("box",)}
"""Answer kinds that each command supports (onepeace/generative/answers.py)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    name = parser.prog.split()[-1]
    parser.epilog = f"{EXAMPLES[name]}\n\nreleased models for it: {_models_for(name)}\n{files.EXIT_CODES}"
    files.add_paths(parser)
    if name == "answer":
        parser.add_argument("--question", required=True, metavar="Q", help="question about each picture")
        parser.add_argument("--labels", metavar="A,B,C", help="answers to choose from (free text)")
    if name == "ground":
        parser.add_argument("--text", required=True, metavar="T", help="phrase to locate")
        parser.add_argument("--draw", type=Path, metavar="FOLDER", help="write pictures with boxes drawn (PNG)")
    default = "tiny-captions" if name == "caption" else None
    options.add_model(parser, default, batch_size=8, dtype=False)
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    name = args.command
    asked = {"caption": None, "answer": "question", "ground": "text"}[name]
    given = {asked: getattr(args, asked)} if asked else {}
    fields = {"text": given[asked]} if asked else {}
    if asked and not fields["text"].strip():
        raise UsageError(f"--{asked} is empty")
    if args.model is None:
        raise UsageError(f"{name} needs --model: a folder, or one of {_models_for(name)}")
    choices = [label for part in (getattr(args, "labels", None) or "").split(",") if (label := part.strip())]
    drawings = Drawings(args.draw) if getattr(args, "draw", None) else None
    found, problems = files.find(args.paths)

    from onepeace.progress import Progress, status

    status(f"loading the model {args.model} ...")
    from onepeace.generative.generator import load_generator

    generator = load_generator(args.model, device=args.device)
    task = generator.task(name)
    if choices:
        task = replace(task, answer="choice", choices=choices)
    if task.answer not in KINDS[name]:
        raise UserError(f"the task {name} of {args.model} returns {task.answer}, not {' or '.join(KINDS[name])}")
    processors = generator.reader.processors(task)
    found = files.readable(found, processors)
    items = ({file.modality: file.path, **fields} for file in found)
    rows, failed = [], []
    with Progress(len(found)) as progress:
        for one in generator.stream(task, items, batch_size=args.batch_size):
            progress.update()
            path = found[one.index].path
            if not one.answers:
                failed.append(files.Unreadable(path, str(one.reason)))
                continue
            result = _result(name, one.answer)
            if drawings:
                result["picture"] = _draw(drawings, path, result["box"], args.text)
            if args.json:
                numbers = {"score": one.answer.score, "confidence": one.answer.confidence}
                print(json.dumps({"path": os.fspath(path), **given, **result, **numbers}), flush=True)
            rows.append((str(one.answer), f"{one.answer.confidence:.2f}", files.shown(path)))
    if rows and not args.json:
        column = {"ground": "box"}.get(name, name)
        print(format_table((column, "confidence", "path"), rows))
    return files.exit_code([*problems, *failed], len(rows))


def _models_for(name: str) -> str:
    """The names of the released models that are trained for a command."""
    from onepeace.hub.registry import RELEASED

    suited = [model for model, released in RELEASED.items() if released.generates and TRAINED_FOR[name] in model]
    return ", ".join(suited)


def _result(name: str, answer: "Answer") -> dict[str, Any]:
    """The JSON fields of an answer, by the name of the task."""
    from onepeace.generative.answers import Box, Choice, Text

    if isinstance(answer, Box):
        return {"box": list(answer.box)}
    if isinstance(answer, Choice):
        return {name: answer.choice, "scores": answer.scores}
    text = expect(answer, Text)
    known = {} if text.agreement is None and text.is_sure else {"agreement": text.agreement, "sure": text.is_sure}
    return {name: text.text, **known}


def _draw(drawings: Drawings, path: Path, box: list[float], words: str) -> str:
    from onepeace.processors import ImageProcessor

    return os.fspath(drawings.save(with_box(ImageProcessor(draft=False).load(path), box, words), path))
