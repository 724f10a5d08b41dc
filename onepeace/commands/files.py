"""Files that commands are about, and how their failures are reported."""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from pathlib import Path

from onepeace.errors import UsageError
from onepeace.files.walk import LINKS, Found, Unreadable, walk

EXIT_CODES = "exit code: 0, 1 when files could not be read (listed at the end), 2 for wrong usage"


def add_paths(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", metavar="PATHS", help="files, and folders with all that is in them")


def find(paths: Sequence[str]) -> tuple[list[Found], list[Unreadable]]:
    """The pictures, sounds, texts and videos that `paths` mean, and what cannot be read among them.

    Raises:
        UsageError: a path that does not exist, or nothing found.
    """
    from onepeace.processors import sniff
    from onepeace.processors.endings import modality_by_ending

    others: Counter[str] = Counter()
    walked, problems = walk(paths, modality_by_ending(), others=others)
    say_other_kinds(others)
    found = []
    for path, known in walked:
        if modality := known or sniff(path):
            found.append(Found(path, modality))
        else:
            problems.append(Unreadable(path, f"not a picture, sound or text (unknown ending {path.suffix!r})"))
    if not found and not problems:
        raise UsageError(f"no pictures, sounds or texts in {', '.join(paths)}")
    return found, problems


def readable(found: Iterable[Found], modalities: Container[str], reader: str = "this model") -> list[Found]:
    """The files whose modality is among those that are read; the others are counted on stderr."""
    files = list(found)
    if left_out := Counter(file.modality for file in files if file.modality not in modalities):
        kinds = " and ".join(counted(number, f"{kind} file") for kind, number in sorted(left_out.items()))
        say(f"{kinds} left out: {reader} does not read {'it' if left_out.total() == 1 else 'them'}")
    return [file for file in files if file.modality in modalities]


def say_other_kinds(count: Counter[str]) -> None:
    """How many files have endings that nothing reads, and how many links were not followed."""
    endings = [(ending, number) for ending, number in count.most_common() if ending != LINKS]
    if endings:
        kinds = ", ".join(f"{ending} {number:,}" for ending, number in endings)
        say(f"{counted(sum(dict(endings).values()), 'file')} of other kinds left out: {kinds}")
    if count[LINKS]:
        say(f"{count[LINKS]:,} {LINKS} left out")


def exit_code(problems: Sequence[Unreadable], num_files: int) -> int:
    """Lists what failed on stderr; 1 if anything did, else 0."""
    if problems:
        say(f"{len(problems)} of {num_files + len(problems)} files failed:")
    for problem in problems:
        print(f"  {shown(problem.path)}: {problem.reason}", file=sys.stderr)
    return 1 if problems else 0


def lines_of(path: Path) -> list[str]:
    """Stripped lines of a text file, without the empty ones.

    Raises:
        UsageError: it cannot be read, or there are none.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise UsageError(f"{path}: no words in it")
    return lines


def check_output(path: Path, force: bool = True) -> None:
    """`UsageError` if nothing can be written at `path`, or something is there and `force` is not given; asked before
    the work, not after it."""
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.parent}")
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; name a file")
    if path.exists() and not force:
        raise UsageError(f"{path}: is there already; --force replaces it")


def check_input(value: str) -> None:
    """`UsageError` unless it is an address, or a file that is there."""
    from onepeace.files.source import scheme

    if not scheme(value) and not os.path.isfile(value):
        raise UsageError(f"{value}: {'is a folder; name a file' if os.path.isdir(value) else 'no such file'}")


def say(message: str) -> None:
    print(f"onepeace: {message}", file=sys.stderr)


def counted(count: int, thing: str) -> str:
    """ "1 file", "2 files"."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def shown(path: Path | str) -> str:
    """A path on one line of a terminal, escapes in place of what would move the cursor or cannot be printed."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in os.fspath(path))
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
