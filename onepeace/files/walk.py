"""Files named on a command line, and those in the folders named there, by file ending.

Left out are those that match patterns: of the command line, and of .onepeaceignore files (like .gitignore). They are
matched by pathspec over RE2, which takes time in proportion to a path's length; Python's own expressions try all ways
in which the stars of a pattern may share a path: eleven stars take 20 seconds.
"""

import errno
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from onepeace.errors import UsageError, UserError, one_line
from onepeace.files.source import open_regular

LINKS = "links that lead out of the folder"
"""Key of such links in the counts of what is left out."""
NAME = ".onepeaceignore"
MAX_CHARS = 1 << 20
BYTES = {0xDC80 + number: 0xF780 + number for number in range(128)}
"""Bytes of names that are not UTF-8, which Python keeps as surrogates, as characters that RE2 takes."""


class FoundFile(NamedTuple):
    """A file to read."""

    path: Path
    modality: str
    """Modality by the file's ending; "" for a file that was named and has an unknown ending."""


class Unreadable(NamedTuple):
    """A path that cannot be read."""

    path: Path
    reason: str


def walk(
    paths: Iterable[str | Path],
    modality_by_suffix: Mapping[str, str],
    skip: Callable[[Path, bool], bool] | None = None,
    *,
    follow_links: bool = False,
    others: Counter[str] | None = None,
) -> tuple[list[FoundFile], list[Unreadable]]:
    """Files at or below `paths`, each once, in the order given; a folder's own files by name, then its folders by name,
    then its links to folders.

    Inside folders, hidden names, unknown endings and links that lead out of the folder are skipped, and no folder is
    entered twice, so a loop of links ends. Files named in `paths` are never skipped.

    Args:
        modality_by_suffix: modality of each known ending, lower case, with the dot.
        skip: called with a path inside a folder and whether it is a folder itself; True = skip it. If it raises a
            UserError, the folder cannot be read.
        follow_links: follow links that lead out of the folder too.
        others: counts what is left out: files by their endings, and links.

    Returns:
        The files found, and what could not be read: broken links, pipes, folders without permission.

    Raises:
        UsageError: a path that does not exist.
    """
    walker = _Walk(modality_by_suffix, skip, follow_links, Counter() if others is None else others)
    for name in paths:
        path = Path(name)
        if not os.path.lexists(path):
            raise UsageError("no such file or folder", where=name)
        if os.path.isdir(path):
            walker.enter(path)
        else:
            walker.take(path, modality_by_suffix.get(path.suffix.lower(), ""))
    return list(walker.found.values()), walker.unreadable


@dataclass
class _Walk:
    """The state of `walk`, whose arguments it takes."""

    modality_by_suffix: Mapping[str, str]
    skip: Callable[[Path, bool], bool] | None
    follow_links: bool
    others: Counter[str]
    found: dict[str, FoundFile] = field(default_factory=dict)
    unreadable: list[Unreadable] = field(default_factory=list)
    _entered: set[tuple[int, int]] = field(default_factory=set)

    def enter(self, top: Path) -> None:
        """Take the files of a folder and of all folders below it."""
        real = os.path.join(os.path.realpath(top), "")
        starts = [top]  # links to folders come last, so that files get their real paths where these are walked too
        for start in starts:
            waiting = [start]
            while waiting:
                folders = self._enter_one(waiting.pop(), real)
                starts += filter(os.path.islink, folders)
                waiting += [folder for folder in reversed(folders) if not os.path.islink(folder)]

    def _enter_one(self, top: Path, real: str) -> list[Path]:
        """Take the files of a folder; returns the folders in it that are to be entered, by name."""
        # One level at a time: before Python 3.12 `os.walk` calls itself for each, which ends at a depth of 1000.
        for folder, folders, names in islice(os.walk(top, onerror=self._refuse), 1):
            if self._is_new(folder):
                try:
                    wanted = [path for path in _in_order(folder, folders) if self._is_wanted(path, True, real)]
                    self._take_of_folder(_in_order(folder, names), real)
                    return wanted
                except UserError as error:
                    self.unreadable.append(Unreadable(top, str(error)))
        return []

    def take(self, path: Path, modality: str) -> None:
        """Take a file, or note why it cannot be read."""
        if os.path.isfile(path):
            self.found.setdefault(os.path.abspath(path), FoundFile(path, modality))
        else:
            self.unreadable.append(Unreadable(path, _why_not(path)))

    def _take_of_folder(self, paths: Iterable[Path], real: str) -> None:
        """Take the files of a folder, or none of them if `skip` raises an error."""
        wanted = []
        for path in paths:
            if not self._is_wanted(path, False, real):
                continue
            suffix = path.suffix.lower()
            if suffix in self.modality_by_suffix:
                wanted.append(path)
            else:
                self.others[suffix or "no ending"] += 1
        for path in wanted:
            self.take(path, self.modality_by_suffix[path.suffix.lower()])

    def _is_new(self, folder: str) -> bool:
        """Whether a folder can be read and was not entered before."""
        try:
            status = os.stat(folder)
        except OSError as error:
            self._refuse(error)
            return False
        identity = (status.st_dev, status.st_ino)
        is_new = identity not in self._entered
        self._entered.add(identity)
        return is_new

    def _is_wanted(self, path: Path, is_folder: bool, real: str) -> bool:
        """Whether a path is neither hidden, nor to be skipped, nor a link that leads out of the folder with this real
        path and is not followed."""
        if path.name.startswith(".") or (self.skip and self.skip(path, is_folder)):
            return False
        if self.follow_links or not os.path.islink(path):
            return True
        if os.path.join(os.path.realpath(path), "").startswith(real):
            return True
        self.others[LINKS] += 1
        return False

    def _refuse(self, error: OSError) -> None:
        self.unreadable.append(Unreadable(Path(error.filename), error.strerror or "cannot be read"))


def _in_order(folder: str, names: Iterable[str]) -> list[Path]:
    return [Path(folder, name) for name in sorted(names)]


def _why_not(path: Path) -> str:
    """Reason why a path is not a readable file."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return "a link to nothing"
    except OSError as error:
        return error.strerror or "cannot be read"
    return "not a regular file"  # reading a pipe could block forever


class Globs:
    """Patterns, of which the last one that matches a path decides.

    Args:
        lines: patterns as in a .gitignore file.
        where: name of their source, with which messages begin.

    Attributes:
        includes: number of patterns that are not empty, comments, or negated by "!".

    Raises:
        UserError: a pattern is invalid.
    """

    def __init__(self, lines: Iterable[str], where: str) -> None:
        from pathspec import GitIgnoreSpec

        try:
            self._spec = GitIgnoreSpec.from_lines([_plain(line) for line in lines], backend="re2")
        except Exception as error:  # ValueError of pathspec, and the errors of re and re2
            raise UserError(f"{one_line(error)}", where=where) from error
        self.includes = sum(pattern.include is True for pattern in self._spec.patterns)

    def verdict(self, path: str) -> bool | None:
        """True if the deciding pattern matches the path, False if it does and begins with "!"; None if none matches.

        Args:
            path: relative, with "/" between its parts, and "/" at the end of a folder.
        """
        return self._spec.check_file(_plain(path)).include

    def matches(self, path: str) -> bool:
        """Whether `verdict` is True; takes a third of its time."""
        return self._spec.match_file(_plain(path))


def _plain(text: str) -> str:
    return text if text.isascii() else text.translate(BYTES)


class Ignore:
    """Predicate of a path below ``root`` and whether that is a folder: True = leave it out.

    The last matching pattern decides, as in git: those of a folder come after those of the folders above it, and the
    given patterns come last.

    Args:
        root: the folder that is walked.
        patterns: like the lines of a .gitignore file in ``root``.

    Raises:
        UserError: a pattern is invalid; when called: a .onepeaceignore file in a folder of the path cannot be used.
    """

    def __init__(self, root: Path, patterns: Sequence[str] = ()) -> None:
        self.root = root
        self.given = Globs(patterns, "--exclude") if patterns else None
        self._of_folder = lru_cache(maxsize=None)(_patterns_in)

    def __call__(self, path: Path, is_folder: bool) -> bool:
        verdict = _verdict(self.given, self.root, path, is_folder)
        for folder in path.parents:
            if verdict is not None:
                break
            verdict = _verdict(self._of_folder(folder), folder, path, is_folder)
            if folder == self.root:
                break
        return bool(verdict)


def _verdict(globs: Globs | None, folder: Path, path: Path, is_folder: bool) -> bool | None:
    """True = leave out, False = take in (a pattern with "!"), None = no pattern matches."""
    if globs is None:
        return None
    name = path.relative_to(folder).as_posix()
    return globs.verdict(f"{name}/" if is_folder else name)


def _patterns_in(folder: Path) -> Globs | None:
    """Patterns of the .onepeaceignore file of a folder, if it has one."""
    path = folder / NAME
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", opener=open_regular) as file:
            text = file.read(MAX_CHARS + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG or not os.access(folder, os.X_OK):  # no path leads to it
            return None
        raise UserError(f"cannot be read ({error.strerror or error})", where=NAME) from error
    if len(text) > MAX_CHARS:
        raise UserError(f"has more than {MAX_CHARS} characters", where=NAME)
    return Globs(text.splitlines(), NAME)
