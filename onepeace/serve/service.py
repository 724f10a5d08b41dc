"""Service shared by HTTP and MCP: one index with its model and generator, safe for use from many threads."""

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from onepeace.extensions import imported
from onepeace.files.source import NamedBytes
from onepeace.index import Hit, Index, Item, Query, Results
from onepeace.index.items import as_text
from onepeace.index.sources import Root
from onepeace.serve import browse, media
from onepeace.serve.limits import Limits
from onepeace.serve.model import ModelService, Queues, shown_name
from onepeace.serve.requests import Refused

if TYPE_CHECKING:
    from onepeace.serve.queue import ModelQueue

PRESENT = 1.0
"""Seconds for which the model of the index is taken for the same, so that vectors do not wait for searches."""
GENERATOR = "onepeace.generative.serving.SharedGenerator"
"""Class of the generative model that a server may have."""


class Service(ModelService):
    """An index with its model and generator. Each request sees what other processes have written to the index before.

    Args:
        index: an open index; the caller closes it.
        generator: name of a generative model for captions, answers and boxes, if any.
        limits, queues: see `ModelService`; `index` encodes its queries by ``queues.encode``, to encode them together.
    """

    def __init__(
        self,
        index: Index,
        generator: str | None = None,
        limits: Limits | None = None,
        queues: Queues | None = None,
    ) -> None:
        super().__init__(lambda: index.embedder, limits, queues)
        self.generator: Any = imported(GENERATOR)(generator) if generator else None
        self._index = index
        self._is_present_until = 0.0
        self._present_queue: ModelQueue | None = None

    @property
    def model(self) -> str:
        """Name of the model, which changes if the index is moved to another one; so do the following."""
        return shown_name(self._index.model)

    @property
    def roots(self) -> dict[str, Root]:
        """Roots of the index, see `Index.roots`."""
        return self._index.roots()

    @property
    def embed_dim(self) -> int:
        return self._index.embed_dim

    @property
    def modalities(self) -> tuple[str, ...]:
        return self._index.modalities

    def queue(self) -> "ModelQueue":
        queue = super().queue()
        self._is_present_until = time.monotonic() + PRESENT
        self._present_queue = queue
        return queue

    def queue_now(self) -> "ModelQueue | None":
        return self._present_queue if time.monotonic() < self._is_present_until else None

    def about(self) -> dict[str, Any]:
        """File counts by kind, the indexed folders, the model, and its tasks."""
        stats = self._index.stats()
        return {
            "files": stats["files"],
            "roots": [as_text(root) for root in stats["roots"]],
            "model": self.model,
            "embed_dim": self.embed_dim,
            "modalities": list(self.modalities),
            "tasks": [] if self.generator is None else list(self.generator.tasks),
        }

    def item(self, key: int | str) -> Item:
        """The file with that number or path; Refused (404) if the index has none."""
        item = self._index.item(key)
        if item is None:
            raise Refused(404, f"{key}: no such file in the index")
        return item

    def search(self, query: Query, **options: Any) -> Results:
        """The files nearest to a query, see `Index.search`."""
        return self._index.search(query, **options)

    def newest(self, *, top: int, offset: int = 0, **filters: Any) -> Results:
        """The files of the index that pass the filters, newest first; shown when there is no query."""
        items, count = self._index.newest(top, offset, **filters)
        hits = [unranked(item, rank) for rank, item in enumerate(items, offset + 1)]
        return Results(tuple(hits), count)

    def timeline(self, *, only: Sequence[str] = (), **filters: Any) -> dict[str, Any]:
        """Numbers of files that pass the filters, by time, see `browse.timeline`; by kind also of the other kinds."""
        with self._index.reading() as state:
            by_time = state.remember(browse.timeline, state.condition(only=only, **filters))
            return {**by_time, "kinds": state.remember(browse.kinds, state.condition(**filters))}

    def names(self, words: str) -> dict[str, Any]:
        """Files and folders whose names contain a text, see `browse.names`."""
        with self._index.reading() as state:
            return browse.names(state, words)

    def values(self) -> dict[str, Any]:
        """The most frequent values of the files' tags, see `browse.values`."""
        with self._index.reading() as state:
            return state.remember(browse.values)

    def value(self, item: Item) -> Mapping[str, object]:
        """Model input of a file of the index, {modality: value}; for a video, its middle frame.

        Raises:
            Refused: the file is too large, gone or changed.
        """
        if item.kind == "video":
            return {"image": media.picture(item, self.roots, (item.duration or 0) / 2)}
        if item.size > self.limits.upload:
            raise Refused(413, f"{item.path}: {item.size} bytes are above the limit of {self.limits.upload}")
        data = media.body_of(item, self.roots).read()
        if item.kind == "text":
            return {"text": data.decode("utf-8-sig", "replace")}
        return {item.kind: NamedBytes(data, item.path)}

    def points(self) -> dict[str, Any]:
        """The files as 2-D points, see `browse.points`."""
        with self._index.reading() as state:
            return state.remember(browse.points)


def unranked(item: Item, rank: int = 1) -> Hit:
    """A file as a hit of no query."""
    return Hit(rank=rank, item=item, modality=item.kind, score=0.0)
