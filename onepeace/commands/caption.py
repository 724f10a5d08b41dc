"""`onepeace caption`: what is on pictures, and heard in sounds, in a sentence each."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onepeace.commands import generate

if TYPE_CHECKING:
    from onepeace.generative.answers import Answer

EXAMPLES = f"""\
  onepeace caption data/samples
  onepeace caption pictures --model models/ofa-caption --json > captions.jsonl

{generate.EXIT_CODES}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    generate.add_arguments(parser, default="tiny-captions")


def run(args: argparse.Namespace) -> int:
    def result_of(path: Path, answer: "Answer") -> tuple[dict[str, Any], tuple[str, ...]]:
        return {"caption": answer.text}, (answer.text,)  # type: ignore[union-attr]

    return generate.run(args, "caption", ("text",), {}, result_of, ("caption",))
