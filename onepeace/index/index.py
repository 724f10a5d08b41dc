"""`Index`, the public interface of an index folder. Importing it does not import torch."""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from onepeace.errors import UserError
from onepeace.files.walk import Unreadable
from onepeace.index.database import Store
from onepeace.index.encoder import Encode, Encoder
from onepeace.index.filters import Condition, compile_condition
from onepeace.index.items import Item
from onepeace.index.query import Query, SearchOptions
from onepeace.index.search import Results
from onepeace.index.sources import Root
from onepeace.index.state import Connections, Generation, Paths, State
from onepeace.index.verify import Model, check_model

if TYPE_CHECKING:
    from onepeace.embed.embedder import Embedder


class _Reading(threading.local):
    """The state that a thread reads at the moment."""

    state: State | None = None


class Index:
    """Vectors and metadata of files, stored in a folder.

    ``with Index.open("photos.index") as index: index.search("dog")``. The object is read-only, and any number of
    threads may use it at once. Another process may write meanwhile: each call sees the latest state, and ``with
    index.reading():`` makes several calls see one.
    """

    def __init__(
        self,
        folder: Path,
        model: Model | None,
        device: str | None,
        dtype: str,
        encode: Encode | None,
    ) -> None:
        self.folder = folder
        self._model = model
        self._device = device
        self._dtype = dtype
        self._encode = encode
        self._connections = Connections(folder)
        self._lock = threading.Lock()  # of the following two, which are exchanged
        self._encoder: Encoder | None = None
        self._generation: Generation | None = None
        self._now = _Reading()

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        *,
        model: Model | None = None,
        device: str | None = None,
        dtype: str = "auto",
        encode: Encode | None = None,
    ) -> "Index":
        """Open an existing index.

        Args:
            model: model for queries: a name, if the model of the index has another one on this machine, or an
                `Embedder`. Queries then always use it. With None, an index that is built anew with another model is
                searched with that.
            device, dtype: see `onepeace.load`; the model is loaded with the first query that needs it.
            encode: a function that computes the vectors (n, E) of the queries by a model: of the `Embedder` and a list
                of {modality: value}. A server's may compute those of several requests together. With None, the model
                encodes the queries of one thread at a time.

        Raises:
            UserError: there is no index, it is damaged, or it has another format version; the model is not that of the
                index.
        """
        index = cls(Path(folder), model, device, dtype, encode)
        try:
            with index.reading() as state:
                if model is not None:
                    check_model(state.folder, state.store.meta, model)
        except BaseException:
            index.close()
            raise
        return index

    def __enter__(self) -> "Index":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the index; what other threads read at the moment is read to its end."""
        self._connections.close()
        with self._lock:
            self._generation = None

    @contextmanager
    def reading(self) -> Iterator[State]:
        """Context in which all calls of this thread see one state, the latest when it begins; yields it. Between calls
        nothing is held that lets the log of a writer grow.

        Raises:
            UserError: the index is closed, gone or damaged, or was built anew with another model than the one it was
                opened with.
        """
        if self._now.state is not None:
            yield self._now.state
            return
        with self._latest() as state:
            self._now.state = state
            try:
                yield state
            finally:
                self._now.state = None

    @contextmanager
    def _latest(self) -> Iterator[State]:
        """Context with the latest state, of the caller alone."""
        with self._connections.reader() as store:
            with self._lock:
                if self._generation is None or self._generation.meta != store.meta:
                    self._generation = Generation(store, self._encoder_for(store))
                generation = self._generation
            yield State(store, generation)

    def _encoder_for(self, store: Store) -> Encoder:
        """The encoder of a generation: another one if it has another model."""
        name, model_hash = store.meta["model"], store.meta["model_hash"]
        encoder = self._encoder
        if encoder is not None and encoder.model_hash != model_hash and self._model is not None:
            remedy = f"built anew with another model, {name}; open it with that one"
            raise UserError(remedy, where=self.folder)
        if encoder is None or (encoder.name, encoder.model_hash) != (name, model_hash):
            encoder = Encoder(self.folder, store.meta, self._model, self._device, self._dtype, self._encode)
            self._encoder = encoder
        return encoder

    def __repr__(self) -> str:
        with self.reading() as state:
            return f"Index({str(self.folder)!r}, {state.count()} files, model {state.model!r})"

    @property
    def model(self) -> str:
        """Name of the model that made the vectors."""
        with self.reading() as state:
            return state.model

    @property
    def model_hash(self) -> str:
        """Hash of the model that made the vectors."""
        with self.reading() as state:
            return state.model_hash

    @property
    def embed_dim(self) -> int:
        """Dimension of the vectors."""
        with self.reading() as state:
            return state.embed_dim

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities of the vectors, which are those of the model."""
        with self.reading() as state:
            return state.modalities

    @property
    def embedder(self) -> "Embedder":
        """The model of the index; loaded on first use."""
        with self.reading() as state:
            encoder = state.encoder
        return encoder.embedder

    def __len__(self) -> int:
        with self.reading() as state:
            return state.count()

    def items(self, where: str | Condition | None = None) -> Iterator[Item]:
        """Files with vectors that satisfy a condition (filters.py), in the order in which they were added."""
        condition = compile_condition(where) if isinstance(where, str) else where
        if self._now.state is not None:
            return self._now.state.items(condition)
        return self._items(condition)

    def _items(self, condition: Condition | None) -> Iterator[Item]:
        with self._latest() as state:
            yield from state.items(condition)

    def newest(
        self,
        top: int,
        offset: int = 0,
        where: str | Condition | None = None,
        *,
        only: str | Sequence[str] = (),
        below: Paths = (),
    ) -> tuple[list[Item], int]:
        """Files with vectors that pass the filters of `search`, newest first, and their total number."""
        with self.reading() as state:
            return state.newest(top, offset, state.condition(where, only, below))

    def item(self, key: str | os.PathLike[str] | int) -> Item | None:
        """The file with this path or id, if it is in the index and has vectors."""
        with self.reading() as state:
            return state.item(key)

    def problems(self) -> list[Unreadable]:
        """Files that could not be embedded, with the reasons."""
        with self.reading() as state:
            return state.problems()

    def roots(self) -> dict[str, Root]:
        """The indexed folders, files, tables and shards, by path."""
        with self.reading() as state:
            return state.roots

    def stats(self) -> dict[str, Any]:
        """Counts of files by kind, vectors, captions, problems and bytes on disk, and the model."""
        with self.reading() as state:
            return state.stats()

    def means(self) -> tuple[list[Item], np.ndarray]:
        """Files with vectors, and the mean unit vector of each, (n, E) float32."""
        with self.reading() as state:
            return state.means()

    def search(
        self,
        query: str | Query,
        *,
        top: int = 10,
        offset: int = 0,
        only: str | Sequence[str] = (),
        where: str | Condition | None = None,
        below: Paths = (),
        sort: Literal["match", "date", "path"] = "match",
        min_match: float | None = None,
        collapse: bool = True,
    ) -> Results:
        """The files nearest to a query, best first.

        Args:
            query: a text, or a `Query` of texts, pictures, sounds and files of the index.
            top, offset: number of hits, and number of hits to skip before them.
            only: kind or kinds of files: image, audio, text, video, or a modality that was registered.
            where: a condition on the metadata of the files, such as ``"width >= 1000"`` (filters.py).
            below: path or paths of files, and of the folders, tables and shards that files lie in, which may be
                relative, or links.
            sort: "match"; or "date" (newest first) or "path". These two sort the best 200 hits, then the next 200, and
                so on. They leave out weak hits, unless all are weak or ``min_match`` is 0.
            min_match: drop hits with a lower match, but for files with rare words (words.py).
            collapse: group near copies into one hit.

        Raises:
            UserError: the query cannot be encoded, or a condition or option is invalid.
        """
        options = SearchOptions(top=top, offset=offset, sort=sort, min_match=min_match, collapse=collapse)
        query = Query(text=query) if isinstance(query, str) else query
        inputs = query.inputs
        encoder = None
        vectors = np.empty((0, 0), np.float32)
        while True:
            with self.reading() as state:
                condition = state.condition(where, only, below)
                if not inputs or state.encoder is encoder:
                    return state.search(query, vectors, options, condition)
                encoder, by_branch = state.encoder, state.uses_text_branch
            vectors = encoder.encode(inputs, by_branch)  # while nothing is held, as it may take long
