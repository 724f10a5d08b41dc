"""`Index`, the public interface of an index folder. Importing it does not import torch."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from onepeace.errors import UserError
from onepeace.index.banks import Banks, banks_of
from onepeace.index.contents import Contents
from onepeace.index.fields import Condition
from onepeace.index.filters import compile_condition
from onepeace.index.functions import register
from onepeace.index.hints import Vocabulary, hints, whole_words
from onepeace.index.hits import Results
from onepeace.index.identity import Model, check_model, is_name
from onepeace.index.items import Item
from onepeace.index.mask import kinds_of, mask_of, paths_of, without_files, without_other_spaces
from onepeace.index.matrix import Matrix
from onepeace.index.part import Part
from onepeace.index.plugin import LOCAL, plugin
from onepeace.index.query import Query, encode
from onepeace.index.search import Search, SearchOptions
from onepeace.index.store import Store
from onepeace.index.words import WordSearch
from onepeace.progress import status

if TYPE_CHECKING:
    from onepeace.embed.embedder import Embedder
    from onepeace.export.text_branch import TextBranch

CACHED_MASKS = 16
"""Number of filters whose masks are cached."""

T = TypeVar("T")


class of_vectors(cached_property[T]):
    """A cached property computed from the vectors; `Index.drop_cached` drops all that are declared by it."""


class of_model(cached_property[T]):
    """A cached property that depends on the model; dropped when the index has been moved to another one."""


class Index(Contents):
    """Vectors and metadata of files, stored in a folder.

    ``with Index.open("photos.index") as index: index.search("dog")``. The object is read-only and shows the state at
    the time of opening; another process may write meanwhile.

    Attributes:
        store: the database, in the state that is shown.
    """

    def __init__(
        self,
        store: Store,
        model: Model | None,
        device: str | None,
        dtype: str,
        part: Part | None = None,
    ) -> None:
        self._model = model
        self._device = device
        self._dtype = dtype
        self._part = part
        self.store = store
        self._prepare_store()

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        *,
        model: Model | None = None,
        device: str | None = None,
        dtype: str = "auto",
        part: Part | None = None,
    ) -> "Index":
        """Open an existing index.

        Args:
            model: model for queries: a name, if the model of the index has another one on this machine, or an
                `Embedder`. Queries then always use it. With None, `refresh` loads the other model when the index
                is moved to one.
            device, dtype: see `onepeace.load`; the model is loaded with the first query that needs it.
            part: show these files alone (part.py); None = all.

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
        return cls(store, model, device, dtype, part)

    def __enter__(self) -> "Index":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.drop_cached()
        self.store.close()

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

    def means(self) -> tuple[list[Item], np.ndarray]:
        """Files with vectors, and the mean unit vector of each, (n, E) float32."""
        items = {item.id: item for item in self.items()}
        ids, file_of_row = self.matrix.files
        sums = np.zeros((len(ids), self.embed_dim), np.float32)
        np.add.at(sums, file_of_row, self.matrix.vectors)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        sums /= np.maximum(lengths, 1e-12)
        is_shown = [file_id in items for file_id in ids.tolist()]
        return [items[file_id] for file_id in ids[is_shown].tolist()], sums[is_shown]

    @of_model
    def embedder(self) -> "Embedder":
        """The model of the index; loaded on first use."""
        from onepeace.embed.embedder import load

        if self._model is not None and not is_name(self._model):
            return self._model
        check_model(self.store, self._model)
        name = self._model or self.model
        status(f"loading the model {name} ...")
        return load(name, device=self._device, dtype=self._dtype)

    @of_vectors
    def matrix(self) -> Matrix:
        """All vectors."""
        return Matrix(self.store)

    @of_vectors
    def banks(self) -> Banks:
        """The unrelated queries, which define the scale of the scores and the match."""
        return banks_of(self.store)

    @of_vectors
    def service(self) -> Any:
        """Vector database for nearest-neighbour search (matrix.py), if any."""
        address = self.store.meta["store"]
        if address == LOCAL:
            return None
        open_store = plugin(address, "open_store")
        return open_store(address, self.store, self.matrix)

    @of_model
    def text_branch(self) -> "TextBranch | None":
        """Text branch that encodes text queries without the model, if it exists."""
        from onepeace.export.text_branch import TextBranch

        return TextBranch.open(self.model_hash)

    @of_model
    def _vocabulary(self) -> Vocabulary:
        """The whole words of the tokenizer that encodes texts; empty for an encoder of others."""
        pieces = self.text_branch or self.embedder.processors.get("text")
        tokenizer = getattr(pieces, "tokenizer", None)
        return {} if tokenizer is None else whole_words(tokenizer)

    @of_vectors
    def _cached_mask_of(self) -> "Callable[[tuple[str, ...], Condition | None, tuple[str, ...]], np.ndarray | None]":
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
        rank: Literal["match", "raw"] = "match",
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
            rank: "match", or "raw" for the plain cosine.
            min_match: drop hits with a lower match, but for files with rare words (words.py).
            collapse: group near copies into one hit.

        Raises:
            UserError: the query cannot be encoded, or a condition or option is invalid.
        """
        options = SearchOptions(
            top=top,
            offset=offset,
            sort=sort,
            rank=rank,
            min_match=min_match,
            collapse=collapse,
        )
        kinds = kinds_of(only, self.modalities)
        condition = None if where is None else compile_condition(where)
        query = Query(text=query) if isinstance(query, str) else query
        # Functions, so that a query that needs no model, or the text branch alone, loads none.
        vector = encode(query, self.store, self.matrix, lambda: self.embedder, lambda: self.text_branch)
        if not self.matrix.is_whole():  # a file was cut short: reading past its end would kill the process
            self.drop_cached()
        allowed = self._cached_mask_of(kinds, condition, paths_of(below))
        allowed = without_files(self.store, self.matrix, allowed, query.paths)
        allowed = without_other_spaces(self.store, self.matrix, allowed, vector.vector)
        text = " ".join(query.texts) if query.is_text else ""
        words = WordSearch(self.store, text, self.matrix.num_files)
        search = Search(self.store, self.matrix, self.banks, self.service, vector, words, allowed, options)
        results = search.results()
        if options.offset:  # hints stand above the first page
            return results
        lines, suggestion = hints(query.texts, self._vocabulary if query.texts else {}, words.has)
        return replace(results, hints=lines, suggestion=suggestion)

    def refresh(self) -> bool:
        """Load the changes of another process; returns whether there are any.

        If another process has moved the index to another model, an index opened without a model uses the new one.

        Raises:
            UserError: the index was moved to another model than the one it was opened with, or is damaged. The old
                state then remains visible.
        """
        is_lost = self.store.has_lost_memory()
        if is_lost:  # close first: a new connection of this process would read the memory that was lost
            self.close()
        new_store = Store(self.folder)
        if new_store.meta == self.store.meta and not is_lost:
            new_store.close()
            return False
        if new_store.meta["model_hash"] != self.model_hash:
            if self._model is not None:
                new_store.close()
                moved_to = new_store.meta["model"]
                raise UserError(f"moved to another model, {moved_to}; open it with that one", where=self.folder)
            self._drop_cached(of_model)
        self.close()
        self.store = new_store
        self._prepare_store()
        return True

    def _prepare_store(self) -> None:
        """Make a newly opened store ready for filters, and hide files that are not in the part to show."""
        register(self.store.connection, self.roots())
        if self._part is not None:
            self.store.show_only(self._part.sql())

    def drop_cached(self) -> None:
        """Drop everything computed from the vectors; it is recomputed on demand."""
        service = self.__dict__.get("service")  # without opening it
        if service is not None:
            service.close()
        self._drop_cached(of_vectors)

    def _drop_cached(self, declared_by: type[cached_property[Any]]) -> None:
        """Drop the values of all cached properties of a type."""
        for name, attribute in vars(Index).items():
            if isinstance(attribute, declared_by):
                self.__dict__.pop(name, None)
