"""What the commands over files share: their options, the files they are about, and how failures are reported."""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from onepeace.commands import number
from onepeace.errors import UsageError
from onepeace.files.walk import Found, Unreadable, walk

if TYPE_CHECKING:
    from torch import Tensor

    from onepeace.embed.embedder import Embedder

KINDS = ("image", "audio", "text")


def add_arguments(
    parser: argparse.ArgumentParser, kinds: Sequence[str] = KINDS, *, model: bool = True, batch_size: bool = True
) -> None:
    """PATHS and the options of the model; without --model where the command names it in another way, and without
    --batch-size where files are computed one by one."""
    parser.add_argument("paths", nargs="+", metavar="PATHS", help="files, and folders with all that is in them")
    if model:
        parser.add_argument("--model", default="tiny", metavar="NAME", help="tiny, a model folder or a released model")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps; default: the best there is")
    parser.add_argument("--dtype", default="auto", metavar="NAME", help="float32, bfloat16, float16 or auto")
    if batch_size:
        parser.add_argument(
            "--batch-size", type=number.positive, default=32, metavar="N", help="files in one pass (default: 32)"
        )
    parser.add_argument("--only", choices=kinds, help="leave out the other kinds of files")


def find(args: argparse.Namespace) -> tuple[list[Found], list[Unreadable]]:
    """The files that `args.paths` and `args.only` mean, and what cannot be read among them.

    Raises:
        UsageError: a path that does not exist, or nothing found.
    """
    from onepeace.processors import guessed, sniff

    suffixes = {suffix: key for key, processor in guessed().items() for suffix in processor.suffixes}
    found, problems = walk(args.paths, suffixes)
    files = []
    for path, known in found:
        modality = known or sniff(path)
        if modality is None:
            problems.append(Unreadable(path, f"not a picture, sound or text (unknown ending {path.suffix!r})"))
        elif args.only in (None, modality):
            files.append(Found(path, modality))
    if not files and not problems:
        what = args.only or "image, audio or text"
        raise UsageError(f"no {what} files in {', '.join(args.paths)}")
    return files, problems


def load(args: argparse.Namespace) -> "Embedder":
    """The model that `args` names."""
    from onepeace.embed.embedder import load

    return load(args.model, device=args.device, dtype=args.dtype)


def encode(
    model: "Embedder", files: Sequence[Found], batch_size: int
) -> tuple["Tensor", list[Found], list[Unreadable]]:
    """Vectors (n, E) of those files that can be read, these files, and the others.

    Files of a modality that the model lacks are in neither list; they are counted on stderr.
    """
    known = [file for file in files if file.modality in model.modalities]
    say_left_out(Counter(file.modality for file in files if file.modality not in model.modalities))
    items = [{file.modality: file.path} for file in known]
    vectors, failures = model.encode(items, batch_size=batch_size, on_error="skip")
    reasons = {failure.index: failure.reason for failure in failures}
    encoded = [file for index, file in enumerate(known) if index not in reasons]
    failed = [Unreadable(known[index].path, reason) for index, reason in reasons.items()]
    return cast("Tensor", vectors), encoded, failed


def exit_code(problems: Sequence[Unreadable], num_files: int) -> int:
    """Lists what failed on stderr; 1 if anything did, else 0."""
    if problems:
        say(f"{len(problems)} of {num_files + len(problems)} files failed:")
    for problem in problems:
        print(f"  {shown(problem.path)}: {problem.reason}", file=sys.stderr)
    return 1 if problems else 0


def lines_of(path: Path, what: str) -> list[str]:
    """The lines of a text file that are not empty, without the spaces around them.

    Raises:
        UsageError: it cannot be read, or there are none; ``what`` they are is for the message.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise UsageError(f"{path}: no {what} in it")
    return lines


def check_folder_of(path: Path) -> None:
    """`UsageError` if nothing can be written at `path`; asked before the work, not after it."""
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.parent}")
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; name a file")


def say(message: str) -> None:
    print(f"onepeace: {message}", file=sys.stderr)


def say_left_out(count: Mapping[str, int]) -> None:
    """How many files there are of modalities that the model lacks."""
    if count:
        kinds = sorted(count)
        number = f"{sum(count.values())} {' and '.join(kinds)} files"
        say(f"{number} are left out: this model has no {' or '.join(kinds)}")


def counted(count: int, thing: str) -> str:
    """ "1 file", "2 files"."""
    return f"{count} {thing}{'' if count == 1 else 's'}"


def shown(path: Path | str) -> str:
    """A path on one line of a terminal, escapes in place of what would move the cursor or cannot be printed."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in os.fspath(path))
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
