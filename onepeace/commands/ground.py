"""`onepeace ground`: where on pictures a thing is that words describe, as a box and drawn."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onepeace.commands import files, generate
from onepeace.errors import UsageError
from onepeace.files.atomic import write_atomic

if TYPE_CHECKING:
    from onepeace.generative.answers import Answer

EXAMPLES = f"""\
the box is x0, y0, x1, y1 in pixels of the picture, from its top left corner; --draw names the folder of the pictures
with their boxes, PNGs called like the files.

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
    if not args.draw.parent.is_dir():
        raise UsageError(f"{args.draw}: there is no folder {args.draw.parent}")

    def result_of(path: Path, answer: "Answer") -> tuple[dict[str, Any], tuple[str, ...]]:
        box = answer.box  # type: ignore[union-attr]
        drawn = _draw(path, box, args.text, args.draw)
        result = {"text": args.text, "box": list(box), "picture": os.fspath(drawn)}
        return result, (", ".join(f"{corner:.0f}" for corner in box), files.shown(drawn))

    columns = ("box", "drawn")
    return generate.run(args, lambda generator: generator.task("ground"), {"text": args.text}, result_of, columns)


def _draw(path: Path, box: tuple[float, ...], caption: str, folder: Path) -> Path:
    """Write the picture with its box, named like it."""
    from onepeace.files.drawing import with_box
    from onepeace.processors import ImageProcessor

    drawn = with_box(ImageProcessor(draft=False).load(path), box, caption)
    folder.mkdir(exist_ok=True)
    target = folder / f"{path.name}.png"
    with write_atomic(target) as temporary:
        drawn.save(temporary, "PNG")
    return target
