"""Checks an index for damage: SQLite's own check, counts, and what is derived from the vectors."""

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from onepeace.index.database import Damaged, Store, build_again, failing
from onepeace.index.vectors import faults

INCOMPLETE = """problem IS NULL AND id NOT IN (SELECT file FROM vectors) OR id NOT IN (SELECT file FROM words)"""
"""SQL condition for files that lack vectors or words."""


@dataclass
class CheckReport:
    """Faults of an index, which is intact if `damaged` is empty."""

    folder: Path
    files: int = 0
    """Files that have vectors."""
    damaged: list[str] = field(default_factory=list)
    """One line per fault."""

    @property
    def ok(self) -> bool:
        return not self.damaged

    def __str__(self) -> str:
        if self.ok:
            return f"the index is intact; files with vectors: {self.files:,}"
        return "\n".join([*self.damaged, build_again(self.folder)])


def check(folder: str | os.PathLike[str]) -> CheckReport:
    """Look for damage in an index: pages, tables, counts, and vectors that differ from those in derived files.

    Raises:
        UserError: there is no index, it has another format, or it cannot be read.
    """
    report = CheckReport(Path(folder))
    try:
        with closing(Store(report.folder)) as store, store.snapshot(), failing(report.folder, "read"):
            report.damaged = list(dict.fromkeys(_faults(store)))  # SQLite may report one twice
            report.files = store.count("problem IS NULL")
    except Damaged as error:
        report.damaged.append(error.damage)
    return report


def _faults(store: Store) -> Iterator[str]:
    """Yield one line for each fault of an index."""
    for (line,) in store.select("PRAGMA integrity_check(20)"):
        if line != "ok":
            yield line
    number = len(store.select("PRAGMA foreign_key_check"))
    if number:
        yield f"rows that belong to no file: {number}"
    number = store.count(INCOMPLETE)
    if number:
        yield f"files without their vectors or words: {number}"
    for (name,) in store.select("SELECT name FROM blobs"):
        store.blob(name)
    yield from faults(store)
