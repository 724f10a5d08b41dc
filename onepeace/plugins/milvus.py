"""Copy of an index's vectors in Milvus: ``onepeace index build --store milvus://HOST[:PORT]``, or milvus://FILE.db for
a Milvus Lite file; a relative path starts from the index folder.

SQLite stays the source of truth. The collection stores the vectors by id (ids are never reused) and, as a property
written last, the state of the index it corresponds to. After a crash the next writing command completes it; until then
vectors are compared in this process. Milvus only proposes candidates, so hits are the same as without it.
"""

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from onepeace.errors import UsageError, UserError, need, one_line
from onepeace.index.database import Store
from onepeace.index.vectors import Matrix, vectors_state

log = logging.getLogger(__name__)

STATE = "onepeace.state"
"""Collection property: the state of the index whose vectors it holds."""
TIMEOUT = 30.0
"""Seconds to wait for an answer."""
BATCH = 2048
"""Vectors per upsert."""
MAX_RESULTS = 16_384
"""Milvus's limit of results per query."""


class Collection:
    """Milvus collection with the vectors of one index; the hook `open_store`.

    Raises:
        UsageError: not a Milvus address. UserError: pymilvus is not installed.
    """

    def __init__(self, address: str, store: Store, matrix: Matrix) -> None:
        server = address.removeprefix("milvus://")
        if server in ("", address):
            raise UsageError("give milvus://HOST[:PORT], or milvus://FILE.db for a file of Milvus Lite", where=address)
        need("pymilvus", "milvus")
        self._is_lite = server.endswith(".db")
        if self._is_lite:
            need("milvus_lite", "milvus")
            self._uri = os.path.join(store.folder.absolute(), server)
        else:
            self._uri = f"http://{server}"
        self._address = address
        self._embed_dim = store.embed_dim
        self._state = vectors_state(store)
        self._matrix = matrix
        self._name = f"onepeace_{store.meta['id']}"
        self._client: Any = None
        self._connecting = threading.Lock()
        self._is_checked = False
        self._is_silent = False

    def candidates(self, query: np.ndarray, count: int, code: int) -> np.ndarray | None:
        """Ids of the nearest vectors of a modality; None, after one warning, if Milvus does not answer."""
        if self._is_silent:
            return None
        try:
            with self._answering() as client:
                if not self._is_checked:
                    self._check(client)
                (hits,) = client.search(
                    self._name,
                    data=[query],
                    limit=min(count, MAX_RESULTS),
                    filter=f"modality == {code}",
                    consistency_level="Strong",
                    timeout=TIMEOUT,
                )
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
        with self._answering() as client:
            if not client.has_collection(self._name):
                self._create(client)
            client.load_collection(self._name)
            stored = self._stored_ids(client)
            self._delete(client, np.setdiff1d(stored, self._matrix.id))
            self._upsert(client, np.setdiff1d(self._matrix.id, stored))
            client.flush(self._name)
            client.alter_collection_properties(self._name, {STATE: self._state})

    def _create(self, client: Any) -> None:
        from pymilvus import DataType

        schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("modality", DataType.INT8)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=self._embed_dim)
        index = client.prepare_index_params()
        # By default Milvus Lite builds a graph, where a filtered search finds a tenth of the matches.
        index_type = "FLAT" if self._is_lite else "AUTOINDEX"
        index.add_index("vector", index_type=index_type, metric_type="IP")
        client.create_collection(self._name, schema=schema, index_params=index)

    def _stored_ids(self, client: Any) -> np.ndarray:
        """Ids of all vectors in the collection."""
        pages = client.query_iterator(self._name, MAX_RESULTS, output_fields=["id"], consistency_level="Strong")
        ids: list[int] = []
        for page in iter(pages.next, []):
            ids.extend(row["id"] for row in page)
        return np.array(ids, np.int64)

    def _delete(self, client: Any, ids: np.ndarray) -> None:
        for first in range(0, len(ids), BATCH):
            client.delete(self._name, ids=ids[first : first + BATCH].tolist())

    def _upsert(self, client: Any, ids: np.ndarray) -> None:
        """Write the vectors with these ids, which are ascending as those of the matrix."""
        for first in range(0, len(ids), BATCH):
            rows = np.searchsorted(self._matrix.id, ids[first : first + BATCH])
            modalities = self._matrix.modality[rows].tolist()
            vectors = self._matrix.vectors[rows]
            entries = [
                {"id": id_, "modality": modality, "vector": vector}
                for id_, modality, vector in zip(self._matrix.id[rows].tolist(), modalities, vectors, strict=True)
            ]
            client.upsert(self._name, entries, timeout=TIMEOUT)

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
            properties = client.describe_collection(self._name).get("properties") or {}
            (row,) = client.query(self._name, output_fields=["count(*)"], consistency_level="Strong")
            is_complete = row["count(*)"] == len(self._matrix)
            self._is_checked = is_complete and properties.get(STATE) == self._state
        if not self._is_checked:
            raise UserError("the collection is out of date; run onepeace index update", where=self._address)

    @contextmanager
    def _answering(self) -> Iterator[Any]:
        """Yield a connected client; an error of Milvus becomes a one-line UserError."""
        from pymilvus import MilvusClient
        from pymilvus.exceptions import MilvusException

        for name in ("pymilvus", "milvus_lite", "grpc._server"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            with self._connecting:
                self._client = self._client or MilvusClient(self._uri, timeout=TIMEOUT)
            yield self._client
        except (MilvusException, OSError, ValueError) as error:
            reason = one_line(getattr(error, "message", "") or error)
            raise UserError(f"Milvus does not answer ({reason})", where=self._address) from error


open_store = Collection
