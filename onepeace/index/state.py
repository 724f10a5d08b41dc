"""One generation of an index, as its readers see it, and their connections to the database.

A `State` belongs to one reader: its connection is in a read transaction, so all that it reads is of one generation.
What is computed from a generation is in its `Generation`, which the readers share; a later generation has another one,
and the earlier one goes with its last reader.
"""

import os
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np

from onepeace.errors import UserError
from onepeace.extensions import plugin
from onepeace.files.walk import Unreadable
from onepeace.index import filters
from onepeace.index.database import LOCAL, Store
from onepeace.index.encoder import Encoder
from onepeace.index.filters import Condition, all_of, compile_condition, embedded, of_kinds, register
from onepeace.index.hints import hints
from onepeace.index.items import Item
from onepeace.index.match import Banks, banks_of
from onepeace.index.query import (
    Allowed,
    Query,
    SearchOptions,
    mask_of,
    uses_text_branch,
    vector_of,
    without_files,
    without_other_spaces,
)
from onepeace.index.search import Results, Search
from onepeace.index.sources import known_roots
from onepeace.index.vectors import Matrix
from onepeace.index.words import WordSearch
from onepeace.threads import Computed

Part = TypeVar("Part")
Paths: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

MAX_FILES = 100_000
"""Number of files above which no parts of words are found."""
FREE = 8
"""Connections that are kept for the next readers; each has up to 2 MB of pages in memory."""
MASKS = 16
"""Filters whose masks are kept."""
ANSWERS = 64
"""Values that are kept for `State.remember`."""
PAGE = 4096
"""Files that are read from the database at once."""


class Connections:
    """Connections to the database of an index, each used by one reader at a time, and kept for the next one.

    Raises:
        UserError: there is no index, it has another format, or it cannot be read; Damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._free: list[Store] | None = [Store(folder)]  # None = closed

    @contextmanager
    def reader(self) -> Iterator[Store]:
        """Context with a connection whose statements see one generation, the latest when it begins. At its end nothing
        is held that lets the log of a writer grow.

        Raises:
            UserError: they are closed, or the index is gone or damaged.
        """
        store = self._taken()
        try:
            with store.snapshot():
                yield store
        finally:
            with self._lock:
                is_kept = self._free is not None and len(self._free) < FREE
                if self._free is not None and is_kept:
                    self._free.append(store)
            if not is_kept:
                store.close()

    def _taken(self) -> Store:
        while True:
            with self._lock:
                if self._free is None:
                    raise UserError("the index is closed; open it again", where=self.folder)
                store = self._free.pop() if self._free else None
            if store is None:
                return Store(self.folder)
            if not store.is_replaced():
                return store
            store.close()

    def close(self) -> None:
        """Close those that no reader has; a reader's are closed when it ends, and there are no new readers."""
        with self._lock:
            free, self._free = self._free or [], None
        for store in free:
            store.close()


class Generation:
    """The parts of one generation of an index that its readers share.

    Args:
        store: a connection that sees it.
        encoder: of its model.
    """

    def __init__(self, store: Store, encoder: Encoder) -> None:
        self.meta = store.meta
        self.encoder = encoder
        self.roots = {path: root for path, root in known_roots(store).items() if root.type != "removed"}
        self.parts = Computed()
        self.masks = Computed(MASKS)
        self.answers = Computed(ANSWERS)
        self._registered: weakref.WeakSet[Store] = weakref.WeakSet()

    def register(self, store: Store) -> None:
        """Add the functions that conditions call to a connection, which depend on the roots."""
        if store not in self._registered:
            register(store.connection, self.roots)
            self._registered.add(store)


class State:
    """One generation of an index, as one reader sees it; `Index.reading` gives one.

    Args:
        store: a connection of the reader, which sees the generation.
        generation: what is shared with its other readers, who may be in other threads.
    """

    def __init__(self, store: Store, generation: Generation) -> None:
        self.store = store
        self.folder = store.folder
        self.encoder = generation.encoder
        self.roots = generation.roots
        """The indexed folders, files, tables and shards, by path."""
        self.model = store.meta["model"]
        """Name of the model that made the vectors."""
        self.model_hash = store.meta["model_hash"]
        """Hash of the model that made the vectors."""
        self.embed_dim = store.embed_dim
        """Dimension of the vectors."""
        self.modalities = store.modalities
        """Modalities of the vectors, which are those of the model."""
        self._generation = generation
        generation.register(store)

    def _part(self, name: str, compute: Callable[[], Part]) -> Part:
        """Something that is computed from the generation, by the first reader that needs it."""
        return self._generation.parts.get(name, compute)

    @property
    def matrix(self) -> Matrix:
        """All vectors."""
        return self._part("matrix", lambda: Matrix(self.store))

    @property
    def banks(self) -> Banks:
        """The unrelated queries, which define the scale of the scores and the match."""
        return self._part("banks", lambda: banks_of(self.store))

    @property
    def vector_database(self) -> Any:
        """Vector database for nearest-neighbour search (vectors.py), if any."""
        return self._part("vector database", self._open_vector_database)

    def _open_vector_database(self) -> Any:
        address = self.store.meta["store"]
        if address == LOCAL:
            return None
        database = plugin(address, "open_store")(address, self.store, self.matrix)
        weakref.finalize(self._generation, database.close)
        return database

    @property
    def uses_text_branch(self) -> bool:
        """Whether texts are encoded by the text branch of the model."""
        return self._part("uses text branch", lambda: uses_text_branch(self.store))

    @property
    def terms(self) -> str:
        """All words by which files are found that begin with a letter, a line each; "" above `MAX_FILES` files, as it
        takes about 1 s for a million."""
        return self._part("terms", self._all_terms)

    def _all_terms(self) -> str:
        ((last_id,),) = self.store.select("SELECT max(file) FROM words")
        if (last_id or 0) > MAX_FILES:
            return ""
        self.store.select("CREATE VIRTUAL TABLE IF NOT EXISTS temp.terms USING fts5vocab (main, word_index, row)")
        rows = self.store.select("SELECT term FROM temp.terms WHERE term >= 'a'")
        return "\n".join(term for (term,) in rows)

    def remember(self, function: "Callable[..., Part]", *arguments: Any) -> Part:
        """``function(state, *arguments)``, computed once for the generation, as long as it is among the last values."""
        return self._generation.answers.get((function, arguments), lambda: function(self, *arguments))

    def condition(
        self,
        where: str | Condition | None = None,
        only: str | Sequence[str] = (),
        below: Paths = (),
    ) -> Condition | None:
        """The filters of `Index.search` as one condition; None if there is none.

        Raises:
            UsageError: one of them cannot be read.
        """
        if where is None and not only and not below:
            return None
        if isinstance(where, str):
            where = compile_condition(where)
        return all_of(where, of_kinds(only, self.modalities), filters.below(below))

    def count(self, condition: Condition | None = None) -> int:
        """Number of files with vectors that satisfy a condition."""
        passing = embedded(condition)
        return self.store.count(passing.sql, passing.params)

    def items(self, condition: Condition | None = None) -> Iterator[Item]:
        """Files with vectors that satisfy a condition, in the order in which they were added. No statement is left open
        between two of them."""
        passing = embedded(condition)
        last_id = 0
        while True:
            where = f"id > ? AND ({passing.sql})"
            page = [*self.store.items(where, (last_id, *passing.params, PAGE), "id LIMIT ?")]
            yield from page
            if len(page) < PAGE:
                return
            last_id = page[-1].id

    def newest(self, top: int, offset: int = 0, condition: Condition | None = None) -> tuple[list[Item], int]:
        """Files with vectors that satisfy a condition, newest first, and their total number."""
        passing = embedded(condition)
        order = "date DESC, id LIMIT ? OFFSET ?"
        items = self.store.items(passing.sql, (*passing.params, top, offset), order)
        return list(items), self.count(condition)

    def item(self, key: str | os.PathLike[str] | int) -> Item | None:
        """The file with this path or id, if it has vectors."""
        if isinstance(key, int):
            items = self.store.items("id = ? AND problem IS NULL", (key,))
        else:
            items = self.store.items("path = ? AND problem IS NULL", (os.fsencode(key),))
        return next(iter([*items]), None)

    def problems(self) -> list[Unreadable]:
        """Files that could not be embedded, with the reasons."""
        items = self.store.items("problem IS NOT NULL")
        return [Unreadable(Path(item.path), item.problem or "") for item in items]

    def stats(self) -> dict[str, Any]:
        """Counts of files by kind, vectors, captions, problems and bytes on disk, and the model."""
        by_kind = "SELECT kind, count(*) FROM files WHERE problem IS NULL GROUP BY kind"
        meta = self.store.meta
        ((num_vectors,),) = self.store.select("SELECT count(*) FROM vectors")
        return {
            "files": dict(self.store.select(by_kind)),
            "vectors": num_vectors,
            "captions": self.store.count("caption IS NOT NULL"),
            "problems": dict(Counter(problem.reason for problem in self.problems())),
            "bytes": _bytes_in(self.folder),
            "model": meta["model"],
            "model_hash": meta["model_hash"],
            "made_by": meta.get("made_by"),
            "created": meta["created"],
            "roots": list(self.roots),
        }

    def means(self) -> tuple[list[Item], np.ndarray]:
        """Files with vectors, and the mean unit vector of each, (n, E) float32."""
        items = {item.id: item for item in self.items()}
        ids, file_of_row = self.matrix.files
        sums = np.zeros((len(ids), self.embed_dim), np.float32)
        np.add.at(sums, file_of_row, self.matrix.vectors[:])
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        sums /= np.maximum(lengths, 1e-12)
        return [items[file_id] for file_id in ids.tolist()], sums

    def search(
        self,
        query: Query,
        encoded: Sequence[np.ndarray] | np.ndarray,
        options: SearchOptions,
        condition: Condition | None = None,
    ) -> Results:
        """The files nearest to a query, best first; see `Index.search`.

        Args:
            encoded: vectors of `Query.inputs`, by the model of this state.
            condition: for the files; None = all.
        """
        vector = vector_of(query, encoded, self)
        allowed = without_files(self, self._allowed(condition), query.paths)
        allowed = without_other_spaces(self, allowed, vector.vector)
        words = WordSearch(self, " ".join(query.texts) if query.is_text else "", self.matrix.num_files)
        results = Search(self, vector, words, allowed, options).results()
        if options.offset or not query.texts:  # hints stand above the first page
            return results
        lines, suggestion = hints(query.texts, self.encoder.vocabulary(self.uses_text_branch), words.has)
        return replace(results, hints=lines, suggestion=suggestion)

    def _allowed(self, condition: Condition | None) -> Allowed:
        """The rows of the files that satisfy a condition; the last masks are remembered."""
        return self._generation.masks.get(condition, lambda: mask_of(self.store, self.matrix, condition))


def _bytes_in(folder: Path) -> int:
    """Bytes of the files below a folder, in which files come and go."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total
