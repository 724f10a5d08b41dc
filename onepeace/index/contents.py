"""What an index holds: its files, those that could not be embedded, where they come from, and counts."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onepeace.files.walk import Unreadable
from onepeace.index.fields import Condition
from onepeace.index.filters import compile_condition
from onepeace.index.items import Item
from onepeace.index.part import Part
from onepeace.index.roots import Root, known_roots
from onepeace.index.store import Store


class Contents:
    """The files of an index, or of a part of it."""

    store: Store
    _part: Part | None

    def __len__(self) -> int:
        return self.store.count("problem IS NULL")

    def items(self, where: str | None = None) -> Iterator[Item]:
        """Files with vectors that satisfy a condition (filters.py), in the order in which they were added."""
        condition = _embedded(where)
        return self.store.items(condition.sql, condition.params)

    def newest(self, top: int, offset: int = 0, where: str | None = None) -> tuple[list[Item], int]:
        """Files with vectors that satisfy a condition, newest first, and their total number."""
        condition = _embedded(where)
        order = "date DESC, id LIMIT ? OFFSET ?"
        parameters = (*condition.params, top, offset)
        items = list(self.store.items(condition.sql, parameters, order))
        return items, self.store.count(condition.sql, condition.params)

    def item(self, key: str | os.PathLike[str] | int) -> Item | None:
        """The file with this path or id, if it is in the index and has vectors."""
        if isinstance(key, int):
            items = self.store.items("id = ? AND problem IS NULL", (key,))
        else:
            items = self.store.items("path = ? AND problem IS NULL", (os.fsencode(key),))
        return next(items, None)

    def problems(self) -> list[Unreadable]:
        """Files that could not be embedded, with the reasons."""
        items = self.store.items("problem IS NOT NULL")
        return [Unreadable(Path(item.path), item.problem or "") for item in items]

    def roots(self) -> dict[str, Root]:
        """The indexed folders, files, tables and shards, by path."""
        if self._part is not None:
            return {root.path: root for root in self._part.roots}
        roots = known_roots(self.store)
        return {path: root for path, root in roots.items() if root.type != "removed"}

    def stats(self) -> dict[str, Any]:
        """Counts of files by kind, vectors, captions, problems and bytes on disk, and the model."""
        store = self.store
        counts_by_kind = store.select("SELECT modality, count(*) FROM files WHERE problem IS NULL GROUP BY modality")
        ((num_vectors,),) = store.select("SELECT coalesce(sum(vectors), 0) FROM files")
        problems = Counter(problem.reason for problem in self.problems())
        paths_on_disk = filter(Path.is_file, store.folder.rglob("*"))
        return {
            "files": dict(counts_by_kind),
            "vectors": num_vectors,
            "captions": store.count("caption IS NOT NULL"),
            "problems": dict(problems),
            "bytes": sum(path.stat().st_size for path in paths_on_disk),
            "model": store.meta["model"],
            "model_hash": store.meta["model_hash"],
            "made_by": store.meta.get("made_by"),
            "created": store.meta["created"],
            "roots": list(self.roots()),
        }


def _embedded(where: str | None) -> Condition:
    """Condition for files with vectors that also satisfy ``where``."""
    condition = Condition("1") if where is None else compile_condition(where)
    return Condition(f"problem IS NULL AND ({condition.sql})", condition.params)
