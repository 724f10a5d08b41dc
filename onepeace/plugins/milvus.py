"""The vectors of an index in Milvus too: ``onepeace index build --store milvus://HOST[:PORT]``, or milvus://FILE.db for
a file of Milvus Lite, in the folder of the index if its path is relative.

`open_store` is the hook of `onepeace.index.nearest`. SQLite stays the truth. A collection has the vectors by their ids,
which are never used twice, and the state of the index that it was brought to as a property, written last: so whatever a
crash leaves undone is done by the next command that writes, and until then vectors are compared here. Milvus names
candidates, which are then compared with the vectors here: hits are the same as without it.
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
STATE = "onepeace.state"
"""Property of a collection: the last id and the number of removals of the index that it has the vectors of."""
TIMEOUT = 30.0
"""Seconds without an answer."""
BATCH = 2048
"""Vectors that are sent at once."""
CANDIDATES, FEWEST, MOST = 10, 1000, 16_384
"""Vectors that Milvus is asked for, of each modality: for each that is wanted, at least, at most (its own limit)."""


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
    """Vectors of one index in Milvus; ``uri`` is of a server, or the path of a file of Milvus Lite."""

    def __init__(self, address: str, uri: str, store: Store, matrix: Matrix) -> None:
        self._address, self._uri, self._store, self._matrix = address, uri, store, matrix
        self._name = f"onepeace_{store.meta['id']}"
        self._client: MilvusClient | None = None
        self._last = int(matrix.id[-1]) if len(matrix) else 0
        self._state = f"{self._last}-{store.meta['removed']}"
        self._is_checked, self._is_asked = False, True

    def nearest(self, query: np.ndarray, count: int, allowed: np.ndarray | None = None) -> dict[str, Found]:
        """See `Matrix.nearest`; if Milvus does not answer, the vectors are compared here, which is said once."""
        if self._is_asked:
            try:
                allowed = self._candidates(query, count, allowed)
            except UserError as error:
                self._is_asked = False
                log.warning("%s; the vectors are compared here", error)
        return self._matrix.nearest(query, count, allowed)

    def send(self) -> None:
        """Make the collection what the index is.

        Raises:
            UserError: Milvus does not answer.
        """
        with self._answering() as client:
            if not client.has_collection(self._name):
                self._create(client)
            client.load_collection(self._name)
            ids, there = self._matrix.id, self._ids_there(client)
            client.delete(self._name, filter=f"id > {self._last}")
            for some in _batches(np.setdiff1d(there, ids)):
                client.delete(self._name, filter=f"id in {some.tolist()}")
            for some in _batches(np.setdiff1d(ids, there)):
                records = self._matrix.records[np.searchsorted(ids, some)]
                rows = [{"id": int(r["id"]), "modality": int(r["modality"]), "vector": r["vector"]} for r in records]
                client.upsert(self._name, rows, timeout=TIMEOUT)
            client.flush(self._name)
            client.alter_collection_properties(self._name, {STATE: self._state})

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
        candidates = np.zeros(len(self._matrix), np.bool_)
        limit = min(max(CANDIDATES * count, FEWEST), MOST)
        with self._answering() as client:
            self._check(client)
            for code in range(len(self._store.kinds)):
                own = (self._matrix.modality == code) & (True if allowed is None else allowed)
                options = {"limit": limit, "filter": f"modality == {code}", "timeout": TIMEOUT}
                (hits,) = client.search(self._name, data=[query], consistency_level="Strong", **options)
                places = np.searchsorted(self._matrix.id, [hit["id"] for hit in hits])
                places = places[places < len(own)]  # another process may have added some since
                found = np.zeros_like(own)
                found[places] = own[places]
                if found.sum() < min(count, int(own.sum())):
                    return allowed
                candidates |= found
        return candidates

    def _check(self, client: "MilvusClient") -> None:
        """UserError for a collection that is not what the index is."""
        if self._is_checked:
            return
        if client.has_collection(self._name):
            client.load_collection(self._name)
            state = (client.describe_collection(self._name).get("properties") or {}).get(STATE)
            self._is_checked = state == self._state and self._count(client) == len(self._matrix)
        if not self._is_checked:
            raise UserError(f"{self._address}: not all of this index is there; run onepeace index update")

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
        rows = client.query(self._name, filter="", output_fields=["count(*)"], consistency_level="Strong")
        return int(rows[0]["count(*)"])

    def _ids_there(self, client: "MilvusClient") -> np.ndarray:
        """(n,) int64 up to the last id of the index."""
        found: list[int] = []
        options: dict[str, Any] = {"output_fields": ["id"], "limit": MOST, "consistency_level": "Strong"}
        for first in range(0, self._last + 1, MOST):
            rows = client.query(self._name, filter=f"id >= {first} and id < {first + MOST}", **options)
            found += [row["id"] for row in rows]
        return np.array(found, np.int64)

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
