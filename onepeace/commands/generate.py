"""What the commands of generative models share: their options, and the loop over pictures."""

import argparse
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onepeace.commands import files, number
from onepeace.errors import UserError
from onepeace.files.table import format_table
from onepeace.files.walk import Unreadable

if TYPE_CHECKING:
    from onepeace.generative.answers import Answer

EXIT_CODES = "exit code: 0, 1 when files could not be read (listed at the end), 2 for wrong usage"


def add_arguments(parser: argparse.ArgumentParser, **model: object) -> None:
    """PATHS, the model and how results are printed. `model`: whether there is a default, as argparse has it."""
    parser.add_argument("paths", nargs="+", metavar="PATHS", help="files, and folders with all that is in them")
    parser.add_argument("--model", metavar="NAME", help="folder or name of a generative model", **model)  # type: ignore[arg-type]
    parser.add_argument("--tasks", metavar="FILE", help="tasks in YAML, over the model's own")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps; default: the best there is")
    parser.add_argument("--dtype", default="auto", metavar="NAME", help="float32, bfloat16, float16 or auto")
    parser.add_argument(
        "--batch-size", type=number.positive, default=8, metavar="N", help="files in one pass (default: 8)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per line instead of a table")


def run(
    args: argparse.Namespace,
    name: str,
    kinds: tuple[str, ...],
    fields: Mapping[str, object],
    result_of: "Callable[[Path, Answer], tuple[dict[str, Any], tuple[str, ...]]]",
    columns: tuple[str, ...],
    choices: list[str] | None = None,
) -> int:
    """Puts a task to every file that `args` names, and prints what comes out.

    Args:
        name: of the task.
        kinds: of answers that `result_of` takes, as in `Task.answer`.
        fields: of the task's prompt, the same for every file.
        result_of: the fields of the JSON object of a path and its answer, and the cells of its row in the table.
        columns: heads of those cells.
        choices: in place of the task's kind of answer, one of these.

    Raises:
        UserError: the task has another kind of answer.
    """
    found, problems = files.find(argparse.Namespace(paths=args.paths, only=None))
    from onepeace.generative.generator import load_generator

    generator = load_generator(args.model, device=args.device, dtype=args.dtype, tasks=args.tasks)
    task = generator.task(name)
    if choices is not None:
        task = replace(task, answer="choice", choices=choices)
    if task.answer not in kinds:
        where = args.model if args.tasks is None else f"{args.model} with {args.tasks}"
        raise UserError(f"the task {name} of {where} gives no {' or '.join(kinds)} but {task.answer}")
    known = generator.reader.processors(task)
    files.say_left_out(Counter(file.modality for file in found if file.modality not in known))
    found = [file for file in found if file.modality in known]
    items = ({file.modality: file.path, **fields} for file in found)
    rows, failed = [], []
    for one in generator.stream(task, items, batch_size=args.batch_size):
        path = found[one.index].path
        if not one.answers:
            failed.append(Unreadable(path, str(one.reason)))
            continue
        result, cells = result_of(path, one.answer)
        numbers = {"score": one.answer.score, "confidence": one.answer.confidence}
        if args.json:
            print(json.dumps({"path": os.fspath(path), **result, **numbers}), flush=True)
        rows.append((*cells, f"{one.answer.confidence:.2f}", files.shown(path)))
    if rows and not args.json:
        print(format_table((*columns, "confidence", "path"), rows))
    return files.exit_code([*problems, *failed], len(rows))
