"""Input and output files of commands, and the report of files that failed."""

import argparse
import os
import re
import sys
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from pathlib import Path

from onepeace.errors import UsageError, printable
from onepeace.files.walk import LINKS, FoundFile, Unreadable, walk

EXIT_CODES = "exit code: 0, 1 when files could not be read (listed at the end), 2 for wrong usage"

PATH = re.compile(r"[/\\]|\.[A-Za-z]\w{0,5}$")
"""A separator or an ending, by which a path is told from words."""


def add_paths(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", metavar="PATHS", help="files, and folders with all their contents")


def take_words(paths: list[str], has_query: bool) -> str | None:
    """Remove the words after the paths, which name no file or folder, and return them as one text, None without any.

    Raises:
        UsageError: there are words although a query is given by options.
    """
    words: list[str] = []
    while len(paths) > 1 and not os.path.lexists(paths[-1]) and not PATH.search(paths[-1]):
        words.insert(0, paths.pop())
    if words and has_query:
        raise UsageError("no such file or folder; give words with --text if the query has other parts", where=words[0])
    if len(words) > 1:
        say(f"searching for {' '.join(words)!r}")
    return " ".join(words) or None


def find(paths: Sequence[str]) -> tuple[list[FoundFile], list[Unreadable]]:
    """The pictures, sounds, texts and videos below `paths`, and the files that cannot be read.

    Raises:
        UsageError: a path does not exist, or nothing was found.
    """
    from onepeace.index.sources import modalities_by_suffix
    from onepeace.processors import sniff

    others: Counter[str] = Counter()
    walked, problems = walk(paths, modalities_by_suffix(), others=others)
    say_other_kinds(others)
    found_files = []
    for path, modality_by_ending in walked:
        modality = modality_by_ending or sniff(path)
        if modality:
            found_files.append(FoundFile(path, modality))
        else:
            reason = f"not a picture, sound or text (unknown file extension {path.suffix!r})"
            problems.append(Unreadable(path, reason))
    if not found_files and not problems:
        raise UsageError(f"no pictures, sounds or texts in {', '.join(paths)}")
    return found_files, problems


def readable(
    candidates: Iterable[FoundFile], modalities: Container[str], reader: str = "this model"
) -> list[FoundFile]:
    """The files whose modality is in `modalities`; the number of the others is printed to stderr.

    Raises:
        UsageError: there are files, and none of these modalities.
    """
    files = list(candidates)
    left_out = Counter(file.modality for file in files if file.modality not in modalities)
    num_videos = left_out.pop("video", 0)
    if num_videos:
        videos = counted(num_videos, "video")
        say(f"{videos} skipped: this command does not read videos; onepeace search finds them")
    if left_out:
        kinds = " and ".join(counted(number, f"{kind} file") for kind, number in sorted(left_out.items()))
        them = "it" if left_out.total() == 1 else "them"
        say(f"{kinds} skipped: {reader} does not read {them}")
    chosen = [file for file in files if file.modality in modalities]
    if files and not chosen:
        raise UsageError(f"nothing to do: {reader} reads none of the files")
    return chosen


def say_other_kinds(count: Counter[str]) -> None:
    """Print how many files have unsupported extensions, and how many links were not followed."""
    by_extension = Counter(count)
    num_links = by_extension.pop(LINKS, 0)
    if by_extension:
        extensions = ", ".join(f"{extension} {number:,}" for extension, number in by_extension.most_common())
        say(f"{counted(by_extension.total(), 'file')} of other types skipped: {extensions}")
    if num_links:
        say(f"{LINKS}, skipped: {num_links:,} (index build --follow-links follows them)")


def say_kept(missing: Sequence[Path]) -> None:
    """Print that missing files are kept once, if there are any."""
    if missing:
        folder = os.path.commonpath(missing)
        say(
            f"{counted(len(missing), 'file')} below {folder} are missing, most of what was there. They are kept "
            "this once, in case a disk is not mounted; the next update removes them"
        )


def exit_code(problems: Sequence[Unreadable], num_files: int) -> int:
    """Print the failed files to stderr and return the exit code: 1 if there are any, else 0."""
    if problems:
        say(f"{len(problems)} of {num_files + len(problems)} files failed:")
    for problem in problems:
        print(printable(f"  {problem.path}: {problem.reason}"), file=sys.stderr)
    return 1 if problems else 0


def lines_of(path: Path) -> list[str]:
    """The non-empty lines of a text file, stripped.

    Raises:
        UsageError: the file cannot be read, or has no such lines.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot be read ({getattr(error, 'strerror', None) or error})", where=path) from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise UsageError("the file is empty; give one entry per line", where=path)
    return lines


def check_output(path: Path, force: bool, inputs: Iterable[str] = ()) -> None:
    """Raise `UsageError` if `path` cannot be written, or exists without `force`. Call it before the work starts."""
    if not path.parent.is_dir():
        raise UsageError(f"the folder {path.parent} does not exist", where=path)
    if path.is_dir():
        raise UsageError("is a folder; give a file name", where=path)
    if path.exists() and not path.is_file():  # a pipe or device would be replaced
        raise UsageError("is not a regular file; give a file name", where=path)
    if path.exists() and any(os.path.exists(name) and os.path.samefile(path, name) for name in inputs):
        raise UsageError("is read by this command, so it is not overwritten; choose another name", where=path)
    if path.resolve().suffix.lower() != path.suffix.lower():
        raise UsageError(f"is a link to {path.resolve()}, a file of another kind; choose another name", where=path)
    if path.exists() and not force:
        raise UsageError("already exists; choose another name, or overwrite it with --force", where=path)


def check_input(value: str) -> None:
    """Raise `UsageError` unless `value` is a URL or an existing file."""
    from onepeace.files.source import scheme

    if scheme(value) or os.path.isfile(value):
        return
    if os.path.isdir(value):
        raise UsageError("is a folder; give a file name", where=value)
    raise UsageError("no such file", where=value)


def say(message: str) -> None:
    """Print a line about the run to stderr; control characters in names are escaped."""
    print(printable(f"onepeace: {message}"), file=sys.stderr)


def show(line: object) -> None:
    """Print a line of the result to stdout; control characters in names are escaped."""
    print(printable(line))


def counted(count: int, thing: str) -> str:
    """A count with its noun: "1 file", "2 files"."""
    plural = "" if count == 1 else "s"
    return f"{count:,} {thing}{plural}"
