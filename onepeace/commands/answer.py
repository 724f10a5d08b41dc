"""`onepeace answer`: the answer to a question about pictures, free or one of several."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onepeace.commands import generate
from onepeace.errors import UsageError

if TYPE_CHECKING:
    from onepeace.generative.answers import Answer

EXAMPLES = f"""\
  onepeace answer street.jpg --question "how many buses are there?" --model models/ofa-vqa
  onepeace answer pictures --question "is it day or night?" --candidates day,night --model models/ofa-vqa --json

{generate.EXIT_CODES}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("--question", required=True, metavar="Q", help="what is asked about each picture")
    parser.add_argument("--candidates", metavar="A,B,C", help="the answers to choose from (default: any words)")
    generate.add_arguments(parser, required=True)


def run(args: argparse.Namespace) -> int:
    from onepeace.generative.answers import Text

    if not args.question.strip():
        raise UsageError("--question is empty")
    candidates = None
    if args.candidates is not None:
        candidates = list(dict.fromkeys(one.strip() for one in args.candidates.split(",") if one.strip()))
        if not candidates:
            raise UsageError("--candidates names no answer")

    def result_of(path: Path, answer: "Answer") -> tuple[dict[str, Any], tuple[str, ...]]:
        if candidates is None:  # a fine-tuned model may have choices of its own, too many to list
            text = answer.text if isinstance(answer, Text) else answer.choice  # type: ignore[union-attr]
            return {"question": args.question, "answer": text}, (text,)
        choice, scores = answer.choice, answer.scores  # type: ignore[union-attr]
        return {"question": args.question, "answer": choice, "scores": scores}, (choice,)

    fields, kinds = {"text": args.question}, ("text", "choice")
    return generate.run(args, "answer", kinds, fields, result_of, ("answer",), candidates)
