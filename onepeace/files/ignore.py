"""Patterns of files to leave out: globs of the command line, and .onepeaceignore files (like .gitignore)."""

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from onepeace.errors import UserError, one_line

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

NAME = ".onepeaceignore"


class Ignore:
    """Predicate of a path below ``root`` and whether that is a folder: True = leave it out.

    The last matching pattern decides, as in git: those of a folder come after those of the folders above it, and the
    given patterns come last.

    Args:
        root: the folder that is walked.
        patterns: like the lines of a .gitignore file in ``root``.

    Raises:
        UserError: a pattern is invalid, or a .onepeaceignore file in a folder of the path cannot be read.
    """

    def __init__(self, root: Path, patterns: Sequence[str] = ()) -> None:
        self.root = root
        self.given = _parse(patterns, "--exclude") if patterns else None
        self._of_folder = lru_cache(maxsize=None)(self._read)

    def __call__(self, path: Path, is_folder: bool) -> bool:
        verdict = self._verdict(self.given, self.root, path, is_folder) if self.given else None
        for folder in path.parents:
            if verdict is not None:
                break
            if spec := self._of_folder(folder):
                verdict = self._verdict(spec, folder, path, is_folder)
            if folder == self.root:
                break
        return bool(verdict)

    @staticmethod
    def _verdict(spec: "GitIgnoreSpec", folder: Path, path: Path, is_folder: bool) -> bool | None:
        """True = leave out, False = take in (a pattern with "!"), None = no pattern matches."""
        return spec.check_file(path.relative_to(folder).as_posix() + ("/" if is_folder else "")).include

    @staticmethod
    def _read(folder: Path) -> "GitIgnoreSpec | None":
        path = folder / NAME
        try:
            lines = path.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
        except FileNotFoundError:
            return None
        except OSError as error:
            if not os.access(folder, os.X_OK):  # nothing in it can be read
                return None
            raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
        return _parse(lines, str(path))


def _parse(patterns: Sequence[str], where: str) -> "GitIgnoreSpec":
    from pathspec import GitIgnoreSpec

    try:
        return GitIgnoreSpec.from_lines(patterns)
    except ValueError as error:
        raise UserError(f"{where}: {one_line(error)}") from error
