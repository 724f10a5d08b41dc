"""Copy of an index's vectors in Milvus: ``onepeace index build --store milvus://HOST[:PORT]``, or milvus://FILE.db for
a Milvus Lite file; a relative path starts from the index folder.

SQLite stays the source of truth. The collection stores the vectors by id (ids are never reused) and, as a property
written last, the state of the index it corresponds to. After a crash the next writing command completes it; until then
vectors are compared in this process. Milvus only proposes candidates, so hits are the same as without it.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from onepeace.errors import UsageError, UserError, need, one_line
from onepeace.index.nearest import Matrix, vectors_state
from onepeace.index.store import Store

log = logging.getLogger(__name__)

STATE = "onepeace.state"
"""Collection property: the state of the index whose vectors it holds."""
TIMEOUT = 30.0
"""Seconds to wait for an answer."""
BATCH, MOST = 2048, 16_384
"""Vectors per upsert, and Milvus's limit of results per query."""


class Collection:
    """Milvus collection with the vectors of one index; the hook `open_store`.

    Raises:
        UsageError: not a Milvus address. UserError: pymilvus is not installed.
    """

    def __init__(self, address: str, store: Store, matrix: Matrix) -> None:
        place = address.removeprefix("milvus://")
        if place in ("", address):
            raise UsageError(f"{address}: give milvus://HOST[:PORT], or milvus://FILE.db for a file of Milvus Lite")
        need("pymilvus", "milvus")
        self._is_lite = place.endswith(".db")
        if self._is_lite:
            need("milvus_lite", "milvus")
        self._uri = os.path.join(store.folder.absolute(), place) if self._is_lite else f"http://{place}"
        self._address, self._store, self._matrix = address, store, matrix
        self._name = f"onepeace_{store.meta['id']}"
        self._client: Any = None
        self._is_checked = self._is_silent = False

    def candidates(self, query: np.ndarray, count: int, code: int) -> np.ndarray | None:
        """Ids of the nearest vectors of a modality; None, after one warning, if Milvus does not answer."""
        if self._is_silent:
            return None
        options = {"limit": min(count, MOST), "filter": f"modality == {code}", "timeout": TIMEOUT}
        try:
            with self._answering() as client:
                if not self._is_checked:
                    self._check(client)
                (hits,) = client.search(self._name, data=[query], consistency_level="Strong", **options)
                return np.array([hit["id"] for hit in hits], np.int64)
        except UserError as error:
            self._is_silent = True
            log.warning("%s; the vectors are compared here", error)
            return None

    def send(self) -> None:
        """Bring the collection up to date with the index.

        Raises:
            UserError: Milvus does not answer.
        """
        from pymilvus import DataType

        with self._answering() as client:
            if not client.has_collection(self._name):
                schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
                schema.add_field("id", DataType.INT64, is_primary=True)
                schema.add_field("modality", DataType.INT8)
                schema.add_field("vector", DataType.FLOAT_VECTOR, dim=self._store.embed_dim)
                index = client.prepare_index_params()
                # By default Milvus Lite builds a graph, where a filtered search finds a tenth of the matches.
                index.add_index("vector", index_type="FLAT" if self._is_lite else "AUTOINDEX", metric_type="IP")
                client.create_collection(self._name, schema=schema, index_params=index)
            client.load_collection(self._name)
            found = client.query_iterator(self._name, MOST, output_fields=["id"], consistency_level="Strong")
            there = [row["id"] for rows in iter(found.next, []) for row in rows]
            ids, records = self._matrix.id, self._matrix.records
            gone, new = np.setdiff1d(there, ids), np.setdiff1d(ids, there)
            for first in range(0, len(gone), BATCH):
                client.delete(self._name, ids=gone[first : first + BATCH].tolist())
            for first in range(0, len(new), BATCH):
                some = records[np.searchsorted(ids, new[first : first + BATCH])]
                rows = [{"id": int(r["id"]), "modality": int(r["modality"]), "vector": r["vector"]} for r in some]
                client.upsert(self._name, rows, timeout=TIMEOUT)
            client.flush(self._name)
            client.alter_collection_properties(self._name, {STATE: vectors_state(self._store)})

    def close(self) -> None:
        """Close the connection."""
        if self._client is not None:
            self._client.close()
            if self._is_lite:  # its server runs in this process and holds the file's lock
                from milvus_lite.server_manager import server_manager_instance

                server_manager_instance.release_server(self._uri)

    def _check(self, client: Any) -> None:
        """Raise UserError if the collection is not up to date with the index."""
        if client.has_collection(self._name):
            client.load_collection(self._name)
            state = (client.describe_collection(self._name).get("properties") or {}).get(STATE)
            count = client.query(self._name, output_fields=["count(*)"], consistency_level="Strong")[0]["count(*)"]
            self._is_checked = (state, count) == (vectors_state(self._store), len(self._matrix))
        if not self._is_checked:
            raise UserError(f"{self._address}: the collection is out of date; run onepeace index update")

    @contextmanager
    def _answering(self) -> Iterator[Any]:
        """Yield a connected client; an error of Milvus becomes a one-line UserError."""
        from pymilvus import MilvusClient
        from pymilvus.exceptions import MilvusException

        for name in ("pymilvus", "milvus_lite", "grpc._server"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            self._client = self._client or MilvusClient(self._uri, timeout=TIMEOUT)
            yield self._client
        except (MilvusException, OSError, ValueError) as error:
            reason = one_line(getattr(error, "message", "") or error)
            raise UserError(f"{self._address}: Milvus does not answer ({reason})") from error


open_store = Collection
