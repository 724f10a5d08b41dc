"""`onepeace ground`: where on pictures a thing is that words describe, as a box and drawn."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onepeace.commands import files, generate
from onepeace.errors import UsageError
from onepeace.files.drawing import Drawings, with_box

if TYPE_CHECKING:
    from onepeace.generative.answers import Answer

EXAMPLES = f"""\
the box is x0, y0, x1, y1 in pixels of the picture, from its top left corner; --draw names the folder of the pictures
with their boxes, PNGs called like the files, numbered where several have one name.

  onepeace ground street.jpg --text "the bus on the left" --model models/ofa-refcoco
  onepeace ground pictures --text "a red umbrella" --model models/ofa-refcoco --draw umbrellas --json

{generate.EXIT_CODES}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("--text", required=True, metavar="T", help="what is to be found, in words")
    parser.add_argument(
        "--draw", type=Path, default=Path("boxes"), metavar="FOLDER", help="where pictures are drawn (default: boxes)"
    )
    generate.add_arguments(parser, required=True)


def run(args: argparse.Namespace) -> int:
    if not args.text.strip():
        raise UsageError("--text is empty")
    drawings = Drawings(args.draw)

    from onepeace.processors import ImageProcessor

    def result_of(path: Path, answer: "Answer") -> tuple[dict[str, Any], tuple[str, ...]]:
        box = answer.box  # type: ignore[union-attr]
        drawn = drawings.save(with_box(ImageProcessor(draft=False).load(path), box, args.text), path)
        result = {"text": args.text, "box": list(box), "picture": os.fspath(drawn)}
        return result, (", ".join(f"{corner:.0f}" for corner in box), files.shown(drawn))

    return generate.run(args, "ground", ("box",), {"text": args.text}, result_of, ("box", "drawn"))
