"""Patterns of paths as in a .gitignore file, by pathspec over RE2, which takes time in proportion to a path's length.

Python's own expressions try all ways in which the stars of a pattern may share a path: eleven stars take 20 seconds.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from onepeace.errors import UserError, one_line

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

BYTES = {0xDC80 + number: 0xF780 + number for number in range(128)}
"""Bytes of names that are not UTF-8, which Python keeps as surrogates, as characters that RE2 takes."""


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
        self._spec = _compiled(lines, where)
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


def _compiled(lines: Iterable[str], where: str) -> "GitIgnoreSpec":
    from pathspec import GitIgnoreSpec

    try:
        return GitIgnoreSpec.from_lines([_plain(line) for line in lines], backend="re2")
    except Exception as error:  # ValueError of pathspec, and the errors of re and re2
        raise UserError(f"{one_line(error)}", where=where) from error
