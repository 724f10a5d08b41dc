"""Roots of an index: the folders, files, tables and shards that it was built from, which `update` scans again."""

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from onepeace.errors import UsageError
from onepeace.files.source import scheme
from onepeace.index.paths import is_shard, is_table
from onepeace.index.store import Store

BLOB = "roots"
"""Name of the roots in the database."""


@dataclass(frozen=True)
class Root:
    """A path that an index was built from, or that was removed from it; `update` scans the roots again."""

    path: str
    """Absolute."""
    type: Literal["folder", "file", "table", "shard", "removed"]
    exclude: tuple[str, ...] = ()
    """Patterns as in a .gitignore file, for a folder."""
    follow_links: bool = False
    """Whether links that lead out of a folder are followed."""


def roots_of(
    paths: Iterable[str | os.PathLike[str]],
    exclude: Sequence[str] = (),
    follow_links: bool = False,
) -> list[Root]:
    """Roots of an index for paths given on a command line.

    Args:
        paths: folders, files, tables (.csv, .tsv, .jsonl), webdataset shards (.tar, .tar.gz; patterns with braces and
            stars).
        exclude: patterns as in a .gitignore file, relative to each folder.

    Raises:
        UsageError: a path that does not exist; UserError: a pattern that matches no shard.
    """
    roots = []
    for given_path in paths:
        path = os.fspath(given_path)
        absolute = os.path.abspath(path)
        if os.path.isdir(absolute):
            roots.append(Root(absolute, "folder", tuple(exclude), follow_links))
        elif os.path.lexists(absolute):  # before patterns, as names may have brackets
            roots.append(Root(absolute, _type_of_file(absolute)))
        elif is_shard(path) and re.search(r"[*?{\[$]", path) and not scheme(path):
            from onepeace.data.source import expand

            roots += [Root(shard, "shard") for shard in expand(path)]
        else:
            raise UsageError("no such file or folder", where=path)
    return roots


def _type_of_file(path: str) -> Literal["file", "table", "shard"]:
    if is_shard(path):
        return "shard"
    if is_table(path):
        return "table"
    return "file"


def known_roots(store: Store) -> dict[str, Root]:
    """Paths that an index was built from, and those that were removed from it, each with its `Root`."""
    roots = {}
    for fields in json.loads(store.blob(BLOB) or b"[]"):
        root = Root(
            path=fields["path"],
            type=fields["kind"],
            exclude=tuple(fields["exclude"]),
            follow_links=fields.get("follow_links", False),
        )
        roots[root.path] = root
    return roots


def keep_roots(store: Store, roots: Iterable[Root], without: Iterable[Root] = ()) -> None:
    """Store roots, replacing older ones of the same path; call it in a transaction.

    Args:
        without: roots that are dropped.
    """
    by_path = known_roots(store)
    for root in without:
        del by_path[root.path]
    by_path |= {root.path: root for root in roots}
    entries = []
    for path in sorted(by_path):
        fields = asdict(by_path[path])
        fields["kind"] = fields.pop("type")  # its name in stored indexes
        entries.append(fields)
    store.keep_blob(BLOB, json.dumps(entries).encode())


def listed(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[str | os.PathLike[str]]:
    """Paths as a list; a single path becomes a list of one, as a string is not a list of its characters.

    Raises:
        UsageError: an empty path, which would be the current folder.
    """
    several = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if "" in several:
        raise UsageError("a path is empty; name a file or folder, or . for the current folder")
    return several
