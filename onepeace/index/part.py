"""A part of an index: the files at or below some paths, as in the index of all folders that a user searches (cache.py).

A `Store` that shows a part has no other files, for any caller.
"""

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from onepeace.index.paths import SEPARATOR
from onepeace.index.roots import Root

FOLDER_ENDS = (os.sep,)
CONTAINER_ENDS = (SEPARATOR,)
ANY_ENDS = (os.sep, SEPARATOR)
"""What follows the path of a folder, or of a table or shard, or of either, in the path of a file inside it."""
ENDS = {"folder": FOLDER_ENDS, "table": CONTAINER_ENDS, "shard": CONTAINER_ENDS, "file": (), "removed": ANY_ENDS}
"""These by type of root."""


@dataclass(frozen=True)
class Part:
    """The files at or below some roots, without those at or below others."""

    roots: tuple[Root, ...]
    left_out: tuple[Root, ...] = ()
    """Roots below the others that these do not have: hidden, ignored, or gone."""

    def sql(self) -> str:
        """SQL condition on the table of files."""
        condition = _sql_of(self.roots)
        if self.left_out:
            condition = f"{condition} AND NOT {_sql_of(self.left_out)}"
        return condition


def part_of(roots: Sequence[Root], known_roots: Iterable[Root], paths: Collection[str]) -> Part:
    """The part that a scan has looked at.

    Args:
        roots: what was scanned.
        known_roots: all roots of the index. One below the scanned ones of which the scan has found nothing is left out:
            it is hidden, ignored or a shard, its disk is not mounted, or it is gone.
        paths: those of the entries of the scan.
    """
    above = _with_folders_above(paths)
    scanned = {root.path for root in roots}
    left_out = []
    for root in known_roots:
        is_below = bool(_with_folders_above([root.path]) & scanned)
        if root.type != "removed" and root.path not in scanned and is_below and root.path not in above:
            left_out.append(root)
    return Part(tuple(roots), tuple(left_out))


def roots_inside(part: Part, known_roots: Iterable[Root]) -> list[Root]:
    """Known roots whose files the part has by other roots."""
    kept = {root.path for root in (*part.roots, *part.left_out)}
    scanned = {root.path for root in part.roots}
    inside = []
    for root in known_roots:
        is_below = bool(_with_folders_above([root.path]) & scanned)
        if root.type in ("folder", "file") and root.path not in kept and is_below:
            inside.append(root)
    return inside


def _with_folders_above(paths: Iterable[str]) -> set[str]:
    """Paths, the shards and tables that they are in, and all folders above them."""
    places = set(paths)
    waiting = set()
    for path in places:
        container, _, _ = path.partition(SEPARATOR)
        waiting |= {container, os.path.dirname(path)}
    while waiting:
        places |= waiting
        waiting = set(map(os.path.dirname, waiting)) - places
    return places


def sql_below(paths: Iterable[str]) -> str:
    """SQL condition for files at these paths, and in folders, tables and shards at these paths."""
    return _sql_within([(path, ANY_ENDS) for path in paths])


def _sql_of(roots: Iterable[Root]) -> str:
    return _sql_within([(root.path, ENDS[root.type]) for root in roots])


def _sql_within(places: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Condition for paths, and what follows them after one of some endings."""
    paths = ", ".join(_literal(os.fsencode(path)) for path, _ in places)
    conditions = [f"path IN ({paths})"]
    for path, ends in places:
        for end in ends:
            first = os.fsencode(path.removesuffix(end) + end)
            after_last = first[:-1] + bytes([first[-1] + 1])
            conditions.append(f"path >= {_literal(first)} AND path < {_literal(after_last)}")
    return _any_of(conditions)


def _literal(content: bytes) -> str:
    return f"X'{content.hex()}'"


def _any_of(conditions: Sequence[str]) -> str:
    """One condition of several; halved, as SQLite limits how deep a condition is nested."""
    if len(conditions) == 1:
        return f"({conditions[0]})"
    middle = len(conditions) // 2
    return f"({_any_of(conditions[:middle])} OR {_any_of(conditions[middle:])})"
