"""Patterns of files to leave out: globs of the command line, and .onepeaceignore files (like .gitignore)."""

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from onepeace.errors import UserError
from onepeace.files.globs import Globs
from onepeace.files.regular import open_regular

NAME = ".onepeaceignore"
MAX_CHARS = 1 << 20


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
        self._of_folder = lru_cache(maxsize=None)(_read)

    def __call__(self, path: Path, is_folder: bool) -> bool:
        verdict = _verdict(self.given, self.root, path, is_folder) if self.given else None
        for folder in path.parents:
            if verdict is not None:
                break
            globs = self._of_folder(folder)
            if globs is not None:
                verdict = _verdict(globs, folder, path, is_folder)
            if folder == self.root:
                break
        return bool(verdict)


def _verdict(globs: Globs, folder: Path, path: Path, is_folder: bool) -> bool | None:
    """True = leave out, False = take in (a pattern with "!"), None = no pattern matches."""
    name = path.relative_to(folder).as_posix()
    return globs.verdict(f"{name}/" if is_folder else name)


def _read(folder: Path) -> Globs | None:
    path = folder / NAME
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", opener=open_regular) as file:
            text = file.read(MAX_CHARS + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        if not os.access(folder, os.X_OK):  # nothing in it can be read
            return None
        raise UserError(f"cannot be read ({error.strerror or error})", where=NAME) from error
    if len(text) > MAX_CHARS:
        raise UserError(f"has more than {MAX_CHARS} characters", where=NAME)
    return Globs(text.splitlines(), NAME)
