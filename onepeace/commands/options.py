"""Options shared by several commands, and the number types of options (argparse's `type`)."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onepeace.embed.embedder import Embedder


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """Type of an integer of at least `least`, and at most `most`."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least or (most is not None and int(text) > most):
            allowed = f"of at least {least}" if most is None else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number {allowed}")
        return int(text)

    return read


def probability(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


positive = whole(1)


def add_model(
    parser: argparse.ArgumentParser,
    default: str | None = "tiny",
    *,
    batch_size: int | None = 32,
    dtype: bool = True,
) -> None:
    """Add --model, --device, --dtype and --batch-size.

    Args:
        batch_size: the default; None if the command encodes files one at a time.
        dtype: False if the results are not stored, so that the default of the device is right.
    """
    shown_default = f" ({default})" if default else ""
    text = (
        f"a bundled model, a model folder, a released model, or open_clip:NAME/WEIGHTS, clap:NAME, ...{shown_default}"
    )
    parser.add_argument("--model", default=default, metavar="NAME", help=text)
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps (best available)")
    if dtype:
        parser.add_argument("--dtype", default="auto", metavar="NAME", help="float32, bfloat16, float16 or auto (auto)")
    if batch_size is not None:
        text = f"files per forward pass; fewer need less memory ({batch_size})"
        parser.add_argument("--batch-size", type=positive, default=batch_size, metavar="N", help=text)


def load(args: argparse.Namespace) -> "Embedder":
    """Load the model that `args` name."""
    from onepeace.progress import status

    status(f"loading the model {args.model} ...")
    import onepeace
    from onepeace.train.recipe import model_folder

    # The folder of a training run stands for the model in it.
    name = model_folder(args.model) if Path(args.model).is_dir() else args.model
    return onepeace.load(name, device=args.device, **({"dtype": args.dtype} if "dtype" in args else {}))


def add_output(parser: argparse.ArgumentParser, metavar: str, text: str) -> None:
    """Add -o and --force, for commands whose output takes time to compute (see `files.check_output`)."""
    parser.add_argument("-o", "--output", type=Path, required=True, metavar=metavar, help=text)
    parser.add_argument("--force", action="store_true", help=f"overwrite {metavar} if it exists")


def add_table(parser: argparse.ArgumentParser) -> None:
    """Add --column and --split, which say what is read of a table or data set."""
    text = "read CONTENT (image, audio, text or label) from the column NAME, as in text=sentence (repeatable)"
    parser.add_argument("--column", type=_column, action="append", default=[], metavar="CONTENT=NAME", help=text)
    text = "split of a data set that has several: train, validation, test"
    parser.add_argument("--split", metavar="NAME", help=text)


def _column(text: str) -> tuple[str, str]:
    """The content of a column and its name."""
    content, equals, name = text.partition("=")
    if not (content and equals and name):
        raise argparse.ArgumentTypeError(f"{text!r} is not CONTENT=NAME, such as text=sentence")
    return content, name


def add_json(parser: argparse.ArgumentParser, text: str = "print one JSON object per line instead of a table") -> None:
    parser.add_argument("--json", action="store_true", help=text)
