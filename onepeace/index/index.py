"""`Index`, the public interface of an index folder. Importing it does not import torch."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from onepeace.errors import UserError
from onepeace.extensions import plugin
from onepeace.files.walk import Unreadable
from onepeace.index.database import LOCAL, Store
from onepeace.index.filters import Condition, compile_condition, kinds_of, register
from onepeace.index.hints import Vocabulary, hints, whole_words
from onepeace.index.items import Item
from onepeace.index.match import Banks, banks_of
from onepeace.index.query import (
    Allowed,
    Query,
    SearchOptions,
    encode,
    mask_of,
    uses_text_branch,
    without_files,
    without_other_spaces,
)
from onepeace.index.search import Results, Search
from onepeace.index.sources import Root, known_roots
from onepeace.index.vectors import Matrix
from onepeace.index.verify import Model, check_model, is_name
from onepeace.index.words import WordSearch
from onepeace.progress import status

if TYPE_CHECKING:
    from onepeace.embed.embedder import Embedder
    from onepeace.export.text_branch import TextBranch


CACHED_MASKS = 16
"""Number of filters whose masks are cached."""
OF_VECTORS = ("matrix", "banks", "service", "_cached_mask_of", "_uses_text_branch")
"""Cached properties that are computed from the files and their vectors."""
OF_MODEL = ("embedder", "_text_branch", "_vocabulary")
"""Cached properties that depend on the model, and are dropped when the index has been built anew with another one."""


class Index:
    """Vectors and metadata of files, stored in a folder.

    ``with Index.open("photos.index") as index: index.search("dog")``. The object is read-only. Another process may
    write meanwhile: each call sees the latest state, and ``with index.reading():`` makes several calls see one.

    Attributes:
        store: the database.
    """

    def __init__(
        self,
        store: Store,
        model: Model | None,
        device: str | None,
        dtype: str,
    ) -> None:
        self._model = model
        self._device = device
        self._dtype = dtype
        self.store = store
        self._made_with = self.model_hash
        register(store.connection, self.roots())

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        *,
        model: Model | None = None,
        device: str | None = None,
        dtype: str = "auto",
    ) -> "Index":
        """Open an existing index.

        Args:
            model: model for queries: a name, if the model of the index has another one on this machine, or an
                `Embedder`. Queries then always use it. With None, an index that is built anew with another model is
                searched with that.
            device, dtype: see `onepeace.load`; the model is loaded with the first query that needs it.

        Raises:
            UserError: there is no index, it is damaged, or it has another format version; the `Embedder` is not the
                model of the index.
        """
        store = Store(Path(folder))
        if model is not None and not is_name(model):
            try:
                check_model(store, model)
            except BaseException:
                store.close()
                raise
        return cls(store, model, device, dtype)

    def __enter__(self) -> "Index":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.drop_cached()
        self.store.close()

    @contextmanager
    def reading(self) -> Iterator[bool]:
        """Context in which all calls see one state, the latest when it begins; yields whether that differs from the one
        seen before. Between calls nothing is held that lets the log of a writer grow.

        Raises:
            UserError: the index is gone or damaged, or was built anew with another model than the one it was opened
                with.
        """
        if self.store.is_reading:
            yield False
            return
        is_replaced = self.store.is_replaced()
        if is_replaced:
            new_store = Store(self.folder)
            self.close()
            self.store = new_store
        before = self.store.meta["generation"]
        with self.store.snapshot():
            has_changed = is_replaced or self.store.meta["generation"] != before
            if has_changed:
                self.drop_cached()
                register(self.store.connection, self.roots())
            if self.model_hash != self._made_with:
                if self._model is not None:
                    remedy = f"built anew with another model, {self.model}; open it with that one"
                    raise UserError(remedy, where=self.folder)
                self._drop(OF_MODEL)
                self._made_with = self.model_hash
            yield has_changed

    def __repr__(self) -> str:
        return f"Index({str(self.folder)!r}, {len(self)} files, model {self.model!r})"

    @property
    def folder(self) -> Path:
        return self.store.folder

    @property
    def model(self) -> str:
        """Name of the model that made the vectors."""
        return self.store.meta["model"]

    @property
    def model_hash(self) -> str:
        """Hash of the model that made the vectors."""
        return self.store.meta["model_hash"]

    @property
    def embed_dim(self) -> int:
        """Dimension of the vectors."""
        return self.store.embed_dim

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities of the vectors, which are those of the model."""
        return self.store.modalities

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
        with self.reading():
            items = list(self.store.items(condition.sql, (*condition.params, top, offset), order))
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
        roots = known_roots(self.store)
        return {path: root for path, root in roots.items() if root.type != "removed"}

    def stats(self) -> dict[str, Any]:
        """Counts of files by kind, vectors, captions, problems and bytes on disk, and the model."""
        by_kind = "SELECT modality, count(*) FROM files WHERE problem IS NULL GROUP BY modality"
        paths_on_disk = filter(Path.is_file, self.folder.rglob("*"))
        with self.reading():
            store = self.store
            ((num_vectors,),) = store.select("SELECT count(*) FROM vectors")
            return {
                "files": dict(store.select(by_kind)),
                "vectors": num_vectors,
                "captions": store.count("caption IS NOT NULL"),
                "problems": dict(Counter(problem.reason for problem in self.problems())),
                "bytes": sum(path.stat().st_size for path in paths_on_disk),
                "model": store.meta["model"],
                "model_hash": store.meta["model_hash"],
                "made_by": store.meta.get("made_by"),
                "created": store.meta["created"],
                "roots": list(self.roots()),
            }

    def means(self) -> tuple[list[Item], np.ndarray]:
        """Files with vectors, and the mean unit vector of each, (n, E) float32."""
        with self.reading():
            items = {item.id: item for item in self.items()}
            matrix = self.matrix
        ids, file_of_row = matrix.files
        sums = np.zeros((len(ids), self.embed_dim), np.float32)
        np.add.at(sums, file_of_row, matrix.vectors[:])
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        sums /= np.maximum(lengths, 1e-12)
        return [items[file_id] for file_id in ids.tolist()], sums

    @cached_property
    def embedder(self) -> "Embedder":
        """The model of the index; loaded on first use."""
        from onepeace.embed.embedder import load

        if self._model is not None and not is_name(self._model):
            return self._model
        check_model(self.store, self._model)
        name = self._model or self.model
        status(f"loading the model {name} ...")
        return load(name, device=self._device, dtype=self._dtype)

    @cached_property
    def matrix(self) -> Matrix:
        """All vectors."""
        with self.reading():
            return Matrix(self.store)

    @cached_property
    def banks(self) -> Banks:
        """The unrelated queries, which define the scale of the scores and the match."""
        with self.reading():
            return banks_of(self.store)

    @cached_property
    def service(self) -> Any:
        """Vector database for nearest-neighbour search (vectors.py), if any."""
        address = self.store.meta["store"]
        if address == LOCAL:
            return None
        open_store = plugin(address, "open_store")
        return open_store(address, self.store, self.matrix)

    @property
    def text_branch(self) -> "TextBranch | None":
        """Text branch that encodes text queries without the model, if it exists and the index has many files."""
        return self._text_branch if self._uses_text_branch else None

    @cached_property
    def _uses_text_branch(self) -> bool:
        return uses_text_branch(self.store)

    @cached_property
    def _text_branch(self) -> "TextBranch | None":
        from onepeace.export.text_branch import TextBranch

        return TextBranch.open(self.model_hash)

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        """The whole words of the tokenizer that encodes texts; empty for an encoder of others."""
        pieces = self.text_branch or self.embedder.processors.get("text")
        tokenizer = getattr(pieces, "tokenizer", None)
        return {} if tokenizer is None else whole_words(tokenizer)

    @cached_property
    def _cached_mask_of(self) -> "Callable[[tuple[str, ...], Condition | None, tuple[str, ...]], Allowed]":
        """A function: `mask_of` these vectors, which remembers the last masks."""
        return lru_cache(CACHED_MASKS)(partial(mask_of, self.store, self.matrix))

    def search(
        self,
        query: str | Query,
        *,
        top: int = 10,
        offset: int = 0,
        only: str | Sequence[str] = (),
        where: str | None = None,
        below: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
        sort: Literal["match", "date", "path"] = "match",
        min_match: float | None = None,
        collapse: bool = True,
    ) -> Results:
        """The files nearest to a query, best first.

        Args:
            query: a text, or a `Query` of texts, pictures, sounds and files of the index.
            top, offset: number of hits, and number of hits to skip before them.
            only: kind or kinds of files: image, audio, text, video.
            where: a condition on the metadata of the files, such as ``"width >= 1000"`` (filters.py).
            below: path or paths of files, and of the folders, tables and shards that files lie in.
            sort: "match"; or "date" (newest first) or "path". These two sort the best 200 hits, then the next 200, and
                so on. They leave out weak hits, unless all are weak or ``min_match`` is 0.
            min_match: drop hits with a lower match, but for files with rare words (words.py).
            collapse: group near copies into one hit.

        Raises:
            UserError: the query cannot be encoded, or a condition or option is invalid.
        """
        options = SearchOptions(top=top, offset=offset, sort=sort, min_match=min_match, collapse=collapse)
        condition = None if where is None else compile_condition(where)
        query = Query(text=query) if isinstance(query, str) else query
        folders = [below] if isinstance(below, (str, os.PathLike)) else below
        paths = tuple(os.fspath(folder) for folder in folders)
        with self.reading():
            kinds = kinds_of(only, self.modalities)
            vector = encode(query, self)
            allowed = self._cached_mask_of(kinds, condition, paths)
            allowed = without_files(self, allowed, query.paths)
            allowed = without_other_spaces(self, allowed, vector.vector)
            words = WordSearch(self.store, " ".join(query.texts) if query.is_text else "", self.matrix.num_files)
            results = Search(self, vector, words, allowed, options).results()
            if options.offset or not query.texts:  # hints stand above the first page
                return results
            lines, suggestion = hints(query.texts, self._vocabulary, words.has)
        return replace(results, hints=lines, suggestion=suggestion)

    def drop_cached(self) -> None:
        """Drop everything computed from the vectors; it is recomputed on demand."""
        service = self.__dict__.get("service")  # without opening it
        if service is not None:
            service.close()
        self._drop(OF_VECTORS)

    def _drop(self, names: Sequence[str]) -> None:
        for name in names:
            self.__dict__.pop(name, None)


def _embedded(where: str | None) -> Condition:
    """Condition for files with vectors that also satisfy ``where``."""
    if where is None:
        return Condition("problem IS NULL")
    condition = compile_condition(where)
    return Condition(f"problem IS NULL AND ({condition.sql})", condition.params)
