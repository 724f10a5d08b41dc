"""Which files of a folder are left out: globs of the command line, and .onepeaceignore files (as .gitignore)."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from onepeace.errors import UserError, one_line

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

NAME = ".onepeaceignore"


class Ignore:
    """Call it with a path below ``root``, and whether that is a folder: True = leave it out.

    Args:
        root: the folder that is walked.
        patterns: as lines of a .gitignore file in ``root``.

    Raises:
        UserError: a pattern, or a .onepeaceignore file on the way, that cannot be read.
    """

    def __init__(self, root: Path, patterns: Sequence[str] = ()) -> None:
        self.root = root
        self.given = _parse(patterns, "--exclude") if patterns else None
        self._of_folder = lru_cache(maxsize=None)(self._read)

    def __call__(self, path: Path, is_folder: bool) -> bool:
        if self.given and self._matches(self.given, path, self.root, is_folder):
            return True
        for folder in path.parents:
            spec = self._of_folder(folder)
            if spec and self._matches(spec, path, folder, is_folder):
                return True
            if folder == self.root:
                break
        return False

    @staticmethod
    def _matches(spec: "GitIgnoreSpec", path: Path, folder: Path, is_folder: bool) -> bool:
        return spec.match_file(path.relative_to(folder).as_posix() + ("/" if is_folder else ""))

    @staticmethod
    def _read(folder: Path) -> "GitIgnoreSpec | None":
        path = folder / NAME
        try:
            lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
        return _parse(lines, str(path))


def _parse(patterns: Sequence[str], where: str) -> "GitIgnoreSpec":
    from pathspec import GitIgnoreSpec

    try:
        return GitIgnoreSpec.from_lines(patterns)
    except ValueError as error:
        raise UserError(f"{where}: {one_line(error)}") from error
