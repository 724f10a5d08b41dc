"""Service shared by HTTP and MCP: one index with its model and generator, safe for use from many threads."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from onepeace.extensions import imported
from onepeace.files.source import NamedBytes
from onepeace.hub.towers.config import names_towers, public_name
from onepeace.index import Hit, Index, Item, Query, Results
from onepeace.index.encoder import Encoder
from onepeace.index.items import as_text
from onepeace.index.sources import Root
from onepeace.serve import browse, media
from onepeace.serve.requests import Decoder, Limits, Refused

GENERATOR = "onepeace.generative.serving.SharedGenerator"
"""Class of the generative model that a server may have."""
CHUNK = 16
"""Items encoded before other requests get access to the model."""


class Service:
    """An index with its model and generator. Each request sees what other processes have written to the index before.

    Args:
        index: an open index; the caller closes it.
        generator: name of a generative model for captions, answers and boxes, if any.
        limits: limits of one request.
    """

    def __init__(self, index: Index, generator: str | None = None, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.generator: Any = imported(GENERATOR)(generator) if generator else None
        self._index = index

    @property
    def model(self) -> str:
        """Name of the model, which changes if the index is moved to another one; so do the following."""
        name = self._index.model
        return public_name(name) if names_towers(name) else Path(name).name

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

    def decoder(self) -> Decoder:
        return Decoder(self.limits, lambda: self._index.embedder.processors)

    def item(self, key: int | str) -> Item:
        """The file with that number or path; Refused (404) if the index has none."""
        item = self._index.item(key)
        if item is None:
            raise Refused(404, f"{key}: no such file in the index")
        return item

    def search(self, query: Query, **options: Any) -> Results:
        """The files nearest to a query, see `Index.search`."""
        return self._index.search(query, **options)

    def newest(self, *, top: int, offset: int = 0, only: Sequence[str] = (), where: str | None = None) -> Results:
        """The files of the index that pass the filters, newest first; shown when there is no query."""
        items, count = self._index.newest(top, offset, with_kinds(where, only))
        hits = [unranked(item, rank) for rank, item in enumerate(items, offset + 1)]
        return Results(tuple(hits), count)

    def timeline(self, *, only: Sequence[str] = (), where: str | None = None) -> dict[str, Any]:
        """Numbers of files that pass the filters, by time, see `browse.timeline`; by kind also of the other kinds."""
        with self._index.reading() as state:
            by_time = state.remember(browse.timeline, with_kinds(where, only))
            return {**by_time, "kinds": state.remember(browse.kinds, where)}

    def names(self, words: str) -> dict[str, Any]:
        """Files and folders whose names contain a text, see `browse.names`."""
        with self._index.reading() as state:
            return browse.names(state, words)

    def values(self) -> dict[str, Any]:
        """The most frequent values of the files' tags, see `browse.values`."""
        with self._index.reading() as state:
            return state.remember(browse.values)

    def encode(self, items: Iterable[Mapping[str, object]]) -> np.ndarray:
        """(n, E) float32 unit vectors of decoded items, {modality: value} each; a few are in memory at a time."""
        items = iter(items)
        encoder = self._encoder()
        return np.concatenate([encoder.encode(chunk) for chunk in iter(lambda: list(islice(items, CHUNK)), [])])

    def _encoder(self) -> Encoder:
        with self._index.reading() as state:
            return state.encoder

    def classify(
        self, items: Iterable[Mapping[str, object]], labels: Sequence[str], template: str | None = None
    ) -> list[dict[str, float]]:
        """Probability of each label for every item, most likely first.

        Args:
            items: {modality: value} each.
            template: sentence with {} for the label; None = the default of the modality.

        Raises:
            Refused: too many labels.
        """
        names = list(dict.fromkeys(label.strip() for label in labels if label.strip()))
        if not 1 <= len(names) <= self.limits.labels:
            raise Refused(422, f"labels: {len(names)} labels; give 1 to {self.limits.labels}")
        encoder = self._encoder()
        with encoder.turn:
            probabilities = np.asarray(encoder.embedder.classify(items, names, template=template, progress=False))
        results = []
        for row in probabilities:
            order = np.argsort(-row, kind="stable")
            results.append({names[i]: float(row[i]) for i in order})
        return results

    def value(self, item: Item) -> Mapping[str, object]:
        """Model input of a file of the index, {modality: value}; for a video, its middle frame.

        Raises:
            Refused: the file is too large, gone or changed.
        """
        if item.modality == "video":
            return {"image": media.picture(item, self.roots, (item.duration or 0) / 2)}
        if item.size > self.limits.upload:
            raise Refused(413, f"{item.path}: {item.size} bytes are above the limit of {self.limits.upload}")
        data = media.body_of(item, self.roots).read()
        if item.modality == "text":
            return {"text": data.decode("utf-8-sig", "replace")}
        return {item.modality: NamedBytes(data, item.path)}

    def points(self) -> dict[str, Any]:
        """The files as 2-D points, see `browse.points`."""
        with self._index.reading() as state:
            return state.remember(browse.points)


def with_kinds(where: str | None, kinds: Sequence[str]) -> str | None:
    """A condition for files that are of one of the kinds, if there are any, and satisfy ``where``."""
    conditions = [f"({where}\n)"] if where else []
    if kinds:
        conditions.append(f"kind in {tuple(kinds)}")
    return " and ".join(conditions) or None


def unranked(item: Item, rank: int = 1) -> Hit:
    """A file as a hit of no query."""
    return Hit(rank=rank, item=item, modality=item.modality, score=0.0)
