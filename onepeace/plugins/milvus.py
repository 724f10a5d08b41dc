"""The vectors of an index in Milvus too: ``onepeace index build --store milvus://HOST[:PORT]``, or milvus://FILE.db for
a file of Milvus Lite, in the folder of the index if its path is relative.

`open_store` is the hook of `onepeace.index.nearest`. SQLite stays the truth. A collection has the vectors by their ids,
which are never used twice. Which of them it is known to have is one of its properties, written when all were sent: so
whatever a crash leaves undone is done by the next command that writes, and until then a query compares the later
vectors here. Milvus names candidates, which are then compared with the vectors here: hits are the same as without it.
"""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from onepeace.errors import UsageError, UserError, need, one_line
from onepeace.index.nearest import Found, Matrix
from onepeace.index.store import Store

if TYPE_CHECKING:
    from pymilvus import MilvusClient

log = logging.getLogger(__name__)

PLACE = re.compile(r"milvus://(?:(?P<file>[^:?#]+\.db)|(?P<host>[^/:@\s]+|\[[0-9a-fA-F:]+\])(?::(?P<port>\d+))?/?)")
PORT = 19530
LAST, REMOVED = "onepeace.last", "onepeace.removed"
"""Properties of a collection: it has all vectors up to this id, of the state after so many removals."""
TIMEOUT = 30.0
"""Seconds without an answer."""
BATCH = 2048
"""Vectors that are sent at once."""
CANDIDATES, FEWEST, MOST = 10, 1000, 16_384
"""Vectors that Milvus is asked for, of each modality: so many for each that is wanted, at least, and at most, which is
the most that it gives."""
FEW = 4096
"""Vectors that a filter leaves up to which they are compared here."""


def open_store(address: str, store: Store, matrix: Matrix) -> "Collection":
    """Collection of an index.

    Raises:
        UsageError: no address of Milvus; UserError: pymilvus is not installed.
    """
    place = PLACE.fullmatch(address)
    if place is None:
        raise UsageError(f"{address}: give milvus://HOST[:PORT], or milvus://FILE.db for a file of Milvus Lite")
    need("pymilvus", "milvus")
    if place["file"]:
        need("milvus_lite", "milvus")
        return Collection(address, os.path.join(store.folder.absolute(), place["file"]), store, matrix)
    return Collection(address, f"http://{place['host']}:{place['port'] or PORT}", store, matrix)


class Collection:
    """Vectors of one index in Milvus.

    Args:
        address: as it was given.
        uri: of a server, or path of a file of Milvus Lite.
    """

    def __init__(self, address: str, uri: str, store: Store, matrix: Matrix) -> None:
        self._address, self._uri, self._store, self._matrix = address, uri, store, matrix
        self._name = f"onepeace_{store.meta['id']}"
        self._client: MilvusClient | None = None
        self._last, self._removed = 0, -1
        self._is_checked, self._is_asked = False, True

    def nearest(self, query: np.ndarray, count: int, allowed: np.ndarray | None = None) -> dict[str, Found]:
        """See `Matrix.nearest`; if Milvus does not answer, the vectors are compared here, which is said once."""
        candidates = allowed
        if self._is_asked and (allowed is None or np.count_nonzero(allowed) > FEW):
            try:
                candidates = self._candidates(query, count, allowed)
            except UserError as error:
                self._is_asked = False
                log.warning("%s; the vectors are compared here", error)
        return self._matrix.nearest(query, count, candidates)

    def send(self) -> None:
        """Make the collection what the index is.

        Raises:
            UserError: Milvus does not answer.
        """
        ids, removed = self._matrix.id, int(self._store.meta["removed"])
        with self._answering() as client:
            if not client.has_collection(self._name):
                self._create(client)
            self._look(client)
            news = ids[ids > self._last]
            if self._removed != removed or self._count(client) != len(ids) - len(news):
                there = self._ids_there(client)
                for some in _batches(np.setdiff1d(there, ids)):
                    client.delete(self._name, filter=f"id in {some.tolist()}")
                news = np.setdiff1d(ids, there)
            for some in _batches(news):
                records = self._matrix.records[np.searchsorted(ids, some)]
                columns = (records["id"].tolist(), records["modality"].tolist(), records["vector"])
                rows = [dict(zip(("id", "modality", "vector"), row, strict=True)) for row in zip(*columns, strict=True)]
                client.upsert(self._name, rows, timeout=TIMEOUT)
            client.flush(self._name)
            known = {LAST: str(ids[-1] if len(ids) else 0), REMOVED: str(removed)}
            client.alter_collection_properties(self._name, known)

    def close(self) -> None:
        """End the connection."""
        client, self._client = self._client, None
        if client is not None:
            client.close()
            if self._uri.endswith(".db"):  # the file's server, in this process, holds its lock
                from milvus_lite.server_manager import server_manager_instance

                server_manager_instance.release_server(self._uri)

    def _candidates(self, query: np.ndarray, count: int, allowed: np.ndarray | None) -> np.ndarray | None:
        """(n,) bool over the matrix, the nearest of each modality among them; all that are allowed where Milvus, which
        knows nothing of other filters, gives too few of these."""
        everything = np.ones(len(self._matrix), np.bool_) if allowed is None else allowed
        with self._answering() as client:
            self._check(client)
            candidates = everything & (self._matrix.id > self._last)
            limit = min(max(CANDIDATES * count, FEWEST), MOST)
            for code in range(len(self._store.kinds)):
                own = everything & (self._matrix.modality == code) & (self._matrix.id <= self._last)
                options = {"limit": limit, "filter": f"modality == {code}", "timeout": TIMEOUT}
                (hits,) = client.search(self._name, data=[query], consistency_level="Strong", **options)
                places = np.searchsorted(self._matrix.id, [hit["id"] for hit in hits])
                places = places[places < len(own)]  # one that was removed may lead to another one, which harms nobody
                found = np.zeros_like(own)
                found[places] = own[places]
                if found.sum() < min(count, int(own.sum())):
                    return allowed
                candidates |= found
        return candidates

    def _check(self, client: "MilvusClient") -> None:
        """UserError for a collection that lacks vectors."""
        if self._is_checked:
            return
        if not client.has_collection(self._name):
            raise UserError(f"{self._address}: nothing of this index is there; run onepeace index update")
        self._look(client)
        missing = np.count_nonzero(self._matrix.id <= self._last) - self._count(client)
        if missing > 0:
            raise UserError(f"{self._address}: {missing} vectors are missing there; run onepeace index update")
        self._is_checked = True

    def _look(self, client: "MilvusClient") -> None:
        client.load_collection(self._name)
        known = dict(client.describe_collection(self._name).get("properties") or {})
        self._last, self._removed = int(known.get(LAST, 0)), int(known.get(REMOVED, -1))

    def _create(self, client: "MilvusClient") -> None:
        from pymilvus import DataType

        schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("modality", DataType.INT8)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=self._store.embed_dim)
        index = client.prepare_index_params()
        # Milvus Lite takes by itself a graph in which filters find a tenth of what there is.
        index.add_index("vector", index_type="FLAT" if self._uri.endswith(".db") else "AUTOINDEX", metric_type="IP")
        client.create_collection(self._name, schema=schema, index_params=index)

    def _count(self, client: "MilvusClient") -> int:
        options = {"filter": "", "output_fields": ["count(*)"], "consistency_level": "Strong"}
        return int(client.query(self._name, **options)[0]["count(*)"])

    def _ids_there(self, client: "MilvusClient") -> np.ndarray:
        """(n,) int64, rising."""
        found: list[int] = []
        for first in range(0, int(max([self._last, *self._matrix.id[-1:]])) + 1, MOST):
            options: dict[str, Any] = {"output_fields": ["id"], "limit": MOST, "consistency_level": "Strong"}
            rows = client.query(self._name, filter=f"id >= {first} and id < {first + MOST}", **options)
            found += [row["id"] for row in rows]
        return np.array(sorted(found), np.int64)

    @contextmanager
    def _answering(self) -> "Iterator[MilvusClient]":
        """Connected client; an error of Milvus becomes one line."""
        from pymilvus import MilvusClient
        from pymilvus.exceptions import MilvusException

        for name in ("pymilvus", "milvus_lite", "grpc._server"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            self._client = self._client or MilvusClient(self._uri, timeout=TIMEOUT)
            yield self._client
        except (MilvusException, OSError) as error:
            reason = one_line(getattr(error, "message", "") or error)
            raise UserError(f"{self._address}: Milvus does not answer ({reason})") from error


def _batches(ids: np.ndarray) -> Iterator[np.ndarray]:
    for first in range(0, len(ids), BATCH):
        yield ids[first : first + BATCH]
