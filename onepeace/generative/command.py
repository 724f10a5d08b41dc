"""`onepeace caption`, `answer` and `ground`: run a generative model on files."""

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onepeace.commands import files, options
from onepeace.errors import UsageError, expect
from onepeace.files.table import format_table

if TYPE_CHECKING:
    from onepeace.files.drawing import Drawings
    from onepeace.generative.generator import Generator
    from onepeace.generative.tasks import Answer, Task

EXAMPLES = {
    "caption": """\
Videos are skipped. Only the beginning of a long sound is read.

  onepeace caption data/samples
  onepeace caption pictures --model ofa-base-caption --json > captions.jsonl""",
    "answer": """\
  onepeace answer street.jpg "how many buses are there?" --model ofa-base-vqa
  onepeace answer pictures --text "is it day or night?" --labels day,night --model ofa-base-vqa --json""",
    "ground": """\
The box is x0, y0, x1, y1 in pixels, from the top left corner of the picture.

  onepeace ground street.jpg "the bus on the left" --model ofa-base-refcoco
  onepeace ground pictures --text "a red umbrella" --model ofa-base-refcoco --draw umbrellas --json""",
}
TRAINED_FOR = {"caption": "caption", "answer": "vqa", "ground": "refcoco"}
"""Part of the names of the released models that are trained for each command."""
TEXTS = {"answer": "question about each picture", "ground": "phrase to locate"}
"""The text that a command has beside the files."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    name = parser.prog.split()[-1]
    parser.epilog = f"{EXAMPLES[name]}\n\nreleased models for it: {_models_for(name)}\n{files.EXIT_CODES}"
    files.add_paths(parser)
    if name in TEXTS:
        text = f"{TEXTS[name]}; also without --text, after the paths"
        parser.add_argument("--text", "--question", metavar="T", help=text)
    if name == "answer":
        parser.add_argument("--labels", metavar="A,B,C", help="answers to choose from (free text)")
    if name == "ground":
        parser.add_argument("--draw", type=Path, metavar="FOLDER", help="write pictures with boxes drawn (PNG)")
    default = "tiny-captions" if name == "caption" else None
    options.add_model(parser, default, batch_size=8, dtype=False)
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    from onepeace.files.drawing import Drawings
    from onepeace.progress import Progress

    name = args.command
    text = _text(args)
    if args.model is None:
        raise UsageError(f"{name} needs --model: a folder, or one of {_models_for(name)}")
    drawings = Drawings(args.draw) if getattr(args, "draw", None) else None
    found_files, problems = files.find(args.paths)
    generator = _load(args)
    task = _task(args, generator)
    readable = files.readable(found_files, generator.reader.processors(task))
    fields = {} if text is None else {"text": text}
    items = [{file.modality: file.path, **fields} for file in readable]
    rows = []
    with Progress(len(readable)) as progress:
        for generated in generator.stream(task, items, batch_size=args.batch_size):
            progress.update()
            path = readable[generated.index].path
            if not generated.answers:
                problems.append(files.Unreadable(path, str(generated.reason)))
                continue
            answer = generated.answer
            result = {**fields, **_result(name, answer)}
            if drawings and "box" in result:
                result["picture"] = _draw(drawings, path, result["box"], result["text"])
            if args.json:
                scores = {"score": answer.score, "confidence": answer.confidence}
                print(json.dumps({"path": os.fspath(path), **result, **scores}), flush=True)
            rows.append((str(answer), f"{answer.confidence:.2f}", str(path)))
    if rows and not args.json:
        column = "box" if name == "ground" else name
        print(format_table((column, "confidence", "path"), rows))
    return files.exit_code(problems, len(rows))


def _load(args: argparse.Namespace) -> "Generator":
    from onepeace.progress import status

    status(f"loading the model {args.model} ...")  # before the import, which takes seconds
    from onepeace.generative.generator import load_generator

    return load_generator(args.model, device=args.device)


def _text(args: argparse.Namespace) -> str | None:
    """The question or the phrase; None for a command that has neither."""
    if args.command not in TEXTS:
        return None
    text = files.take_words(args.paths, has_query=args.text is not None) or args.text
    if text is None or not text.strip():
        raise UsageError(f"no {TEXTS[args.command]}; give words after the paths, or --text")
    return text


def _task(args: argparse.Namespace, generator: "Generator") -> "Task":
    """The task of the command, with the answers to choose from, if any.

    Raises:
        UserError: the model has no such task.
    """
    name = args.command
    task = generator.task(name)
    labels = (getattr(args, "labels", None) or "").split(",")
    choices = [label.strip() for label in labels if label.strip()]
    if choices:
        task = replace(task, answer="choice", choices=choices)
    return task


def _models_for(name: str) -> str:
    """The names of the released models that are trained for a command."""
    from onepeace.hub.download import RELEASED

    models = []
    for model, released in RELEASED.items():
        if released.generates and TRAINED_FOR[name] in model:
            models.append(model)
    return ", ".join(models)


def _result(name: str, answer: "Answer") -> dict[str, Any]:
    """The JSON fields of an answer, by the name of the task."""
    from onepeace.generative.tasks import Box, Choice, Text

    if isinstance(answer, Box):
        return {"box": list(answer.box)}
    if isinstance(answer, Choice):
        return {name: answer.choice, "scores": answer.scores}
    text = expect(answer, Text)
    if text.agreement is None and text.is_sure:
        return {name: text.text}
    return {name: text.text, "agreement": text.agreement, "sure": text.is_sure}


def _draw(drawings: "Drawings", path: Path, box: list[float], phrase: str) -> str:
    """Save the picture with a box; returns the path of the drawing."""
    from onepeace.files.drawing import with_box
    from onepeace.processors import ImageProcessor

    picture = ImageProcessor(draft=False).load(path)
    drawing = drawings.save(with_box(picture, box, phrase), path)
    return os.fspath(drawing)
