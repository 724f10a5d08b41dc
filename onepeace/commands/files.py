"""What the commands over files share: their options, the files they are about, and how failures are reported."""

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from onepeace.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from onepeace.embed.embedder import Embedder

KINDS = ("image", "audio", "text")


class File(NamedTuple):
    """A file to encode."""

    path: Path
    modality: str


class Problem(NamedTuple):
    """A file that failed."""

    name: str
    reason: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """PATHS and the options of the model."""
    parser.add_argument("paths", nargs="+", metavar="PATHS", help="files, and folders with all that is in them")
    parser.add_argument("--model", default="tiny", metavar="NAME", help="tiny, a model folder or a released model")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps; default: the best there is")
    parser.add_argument("--dtype", default="auto", metavar="NAME", help="float32, bfloat16, float16 or auto")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="files in one pass (default: 32)")
    parser.add_argument("--only", choices=KINDS, help="leave out the other kinds of files")


def find(args: argparse.Namespace) -> tuple[list[File], list[Problem]]:
    """The files that `args.paths` and `args.only` mean, and what cannot be read among them.

    Raises:
        UsageError: a path that does not exist, nothing found, or a batch size below 1.
    """
    from onepeace.files.walk import walk
    from onepeace.processors import PROCESSORS

    if args.batch_size < 1:
        raise UsageError(f"--batch-size {args.batch_size} is too few; it must be at least 1")
    suffixes = {suffix: key for key, processor in PROCESSORS.items() for suffix in processor.suffixes}
    found, unreadable = walk(args.paths, suffixes)
    files, problems = [], [Problem(shown(path), reason) for path, reason in unreadable]
    for path, known in found:
        modality = known or _by_content(path)
        if modality is None:
            problems.append(Problem(shown(path), f"not a picture, sound or text (unknown ending {path.suffix!r})"))
        elif args.only in (None, modality):
            files.append(File(path, modality))
    if not files and not problems:
        what = args.only or "image, audio or text"
        raise UsageError(f"no {what} files in {', '.join(args.paths)}")
    return files, problems


def load(args: argparse.Namespace) -> "Embedder":
    """The model that `args` names."""
    from onepeace.embed.embedder import load

    return load(args.model, device=args.device, dtype=args.dtype)


def encode(model: "Embedder", files: Iterable[File], batch_size: int) -> tuple["Tensor", list[File], list[Problem]]:
    """Vectors (n, E) of those files that can be read, these files, and the others.

    Files of a modality that the model lacks are in neither list; they are counted on stderr.
    """
    files = list(files)
    known = [file for file in files if file.modality in model.modalities]
    if len(known) < len(files):
        lacking = " and ".join(sorted({file.modality for file in files} - set(model.modalities)))
        say(f"{len(files) - len(known)} {lacking} files are left out: this model has {', '.join(model.modalities)}")
    items = [{file.modality: file.path} for file in known]
    vectors, failures = model.encode(items, batch_size=batch_size, on_error="skip")
    reasons = {failure.index: failure.reason for failure in failures}
    encoded = [file for index, file in enumerate(known) if index not in reasons]
    failed = [Problem(shown(known[index].path), reason) for index, reason in reasons.items()]
    return cast("Tensor", vectors), encoded, failed


def exit_code(problems: Sequence[Problem], num_files: int) -> int:
    """Lists what failed on stderr; 1 if anything did, else 0."""
    if problems:
        say(f"{len(problems)} of {num_files + len(problems)} files failed:")
    for problem in problems:
        print(f"  {problem.name}: {problem.reason}", file=sys.stderr)
    return 1 if problems else 0


def check_folder_of(path: Path) -> None:
    """`UsageError` if nothing can be written at `path`; asked before the work, not after it."""
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.parent}")
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; name a file")


def check_top(args: argparse.Namespace) -> None:
    if args.top < 1:
        raise UsageError(f"--top {args.top} is too few; it must be at least 1")


def say(message: str) -> None:
    print(f"onepeace: {message}", file=sys.stderr)


def shown(path: Path) -> str:
    """A path on one line of a terminal, escapes in place of what would move the cursor or cannot be printed."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in os.fspath(path))
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _by_content(path: Path) -> str | None:
    """The modality of a named file with an unknown ending, by its first bytes."""
    from onepeace.processors import PROCESSORS

    try:
        with open(path, "rb") as file:
            head = file.read(1 << 16)
    except OSError:
        return None
    return next((key for key, processor in PROCESSORS.items() if processor.matches(head)), None)
