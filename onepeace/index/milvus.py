"""The vectors of an index in Milvus: a server's, or a file of Milvus Lite. SQLite and the vector file stay the truth.

A collection has the rows of one vector file, by their numbers. What it is known to have, all before a row, is one of
its properties, written when a command ends: so whatever a crash leaves undone is done by the next command, and until
then a query compares the later rows itself. Rows of files that were removed are left out of what Milvus finds.
"""

import logging
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onepeace.errors import UsageError, UserError, need, one_line
from onepeace.index.candidates import Best, Candidates, Scores
from onepeace.index.ranking import QueryVector
from onepeace.index.store import Store

if TYPE_CHECKING:
    from pymilvus import MilvusClient

log = logging.getLogger(__name__)

LOCAL, SERVER = "local", "milvus://"
STORE, COLLECTION = "store", "collection"
"""Keys of an index's table meta: where its vectors are mirrored, and the beginning of the collection's name."""
DONE = "onepeace.rows"
"""Property of a collection: it has all rows before this one."""
PORT = 19530
TIMEOUT = 30.0
"""Seconds without an answer."""
BATCH = 2048
"""Rows that are sent at once."""
CANDIDATES, FEWEST, MOST = 10, 1000, 16_384
"""Rows that Milvus is asked for, of each modality: so many for each that is wanted, at least, and at most, which is the
most that it gives."""
FEW = 4096
"""Rows that a filter leaves up to which they are compared here."""

HERE = "%s; the vectors are compared here"
"""What is logged when Milvus cannot be asked, behind the reason."""


def place_of(given: str) -> str:
    """Where vectors are mirrored, as an index keeps it: "local", milvus://HOST:PORT, or the absolute path of a file.

    Raises:
        UsageError: none of these.
    """
    if given == LOCAL:
        return LOCAL
    if match := re.fullmatch(r"milvus://([^/:@\s]+|\[[0-9a-fA-F:]+\])(?::(\d+))?/?", given):
        return f"{SERVER}{match[1]}:{match[2] or PORT}"
    if given.endswith(".db") and "://" not in given:
        return os.path.abspath(given)
    raise UsageError(f"{given}: vectors are kept in local, milvus://HOST[:PORT], or a file of Milvus Lite, NAME.db")


class Mirror:
    """The collection of an index.

    Args:
        store: of the index.
        about: STORE and COLLECTION, in place of what the index says of them.

    Raises:
        UserError: pymilvus is not installed, or Milvus does not answer.
    """

    def __init__(self, store: Store, about: Mapping[str, str] | None = None) -> None:
        self._store = store
        about = about or store.meta
        self.place, self._prefix = about[STORE], about[COLLECTION]
        self._vectors = ""
        self.rows = 0
        """All rows before this one are known to be there."""
        self._client = _connect(self.place)
        try:
            self._look()
        except BaseException:
            self.close()
            raise

    @property
    def collection(self) -> str:
        """Its name; a compaction, which gives rows other numbers, begins another one."""
        return f"{self._prefix}_{Path(self._vectors).stem.rpartition('-')[2]}"

    def close(self) -> None:
        self._client.close()
        if not self.place.startswith(SERVER):  # the file's server, in this process, holds its lock
            from milvus_lite.server_manager import server_manager_instance

            server_manager_instance.release_server(self.place)

    def append(self) -> None:
        """Send the rows that were written since.

        Raises:
            UserError: Milvus does not answer.
        """
        with _failing(self.place):
            if self._store.meta["vectors"] != self._vectors:
                self._look()
            if not self._client.has_collection(self.collection):
                self._create()
            last = self._store.next_row()
            if last > self.rows:
                self._send("row >= ?", (self.rows,))
                self.rows = last

    def synchronise(self) -> None:
        """Make the collection what the index is, and note that.

        Raises:
            UserError: Milvus does not answer.
        """
        self.append()
        with _failing(self.place):
            (count,) = self._store.connection.execute("SELECT count(*) FROM vectors").fetchone()
            if self._count() != count:
                here = self._store.rows().row
                there = self._all_rows()
                for some in _batches(np.setdiff1d(there, here)):
                    self._client.delete(self.collection, filter=f"row in {some}")
                for some in _batches(np.setdiff1d(here, there)):
                    self._send(f"row IN ({', '.join('?' * len(some))})", some)
            self._client.flush(self.collection)
            self._client.alter_collection_properties(self.collection, {DONE: str(self.rows)})
            for name in self._client.list_collections():
                if name.startswith(self._prefix) and name != self.collection:
                    self._client.drop_collection(name)

    def clear(self) -> None:
        """Forget the collection, whatever is in it; `synchronise` makes it anew.

        Raises:
            UserError: Milvus does not answer.
        """
        with _failing(self.place):
            if self._client.has_collection(self.collection):
                self._client.drop_collection(self.collection)
            self.rows = 0

    def fault(self) -> str:
        """What is wrong with it: rows that it should have by now and does not; "" if nothing is.

        Raises:
            UserError: Milvus does not answer.
        """
        with _failing(self.place):
            sql = "SELECT count(*) FROM vectors WHERE row < ?"
            (count,) = self._store.connection.execute(sql, (self.rows,)).fetchone()
            missing = count - (self._count() if self.rows else 0)
        return f"{self.place}: {missing} vectors are missing there" if missing > 0 else ""

    def best(
        self, candidates: Candidates, query: QueryVector, rank: str, allowed: NDArray[np.bool_] | None = None
    ) -> Best:
        """As `Candidates.best`, with Milvus to find the vectors that are ranked.

        It is asked for those of the largest cosines of each modality, which has nearly the order of each ranking but
        "centred". What a filter over fields of files allows is looked at here, as Milvus knows only rows and
        modalities; it is asked for more until enough are left. Filters that leave few rows, or too few of the most that
        Milvus gives, are answered from the vectors here.
        """
        if rank == "centred" or (allowed is not None and np.count_nonzero(allowed) <= FEW):
            return candidates.best(query, rank, allowed)
        rows = candidates.rows
        everything = np.ones(len(rows.row), np.bool_) if allowed is None else allowed
        later = np.flatnonzero(everything & (rows.row >= self.rows))
        there = np.bincount(rows.modality[everything & (rows.row < self.rows)])
        codes = np.flatnonzero(there).tolist()

        def best(wanted: int) -> Scores:
            limit = max(CANDIDATES * wanted, FEWEST)
            while True:
                try:
                    found = self.nearest(query.vector, codes, min(limit, MOST))
                except UserError as error:
                    log.warning(HERE, error)
                    return candidates.best(query, rank, allowed)(wanted)
                places = _places(rows.row, found)
                places = np.unique(places[everything[places]])
                # So many of each modality, as all of the best may be of one.
                if (np.bincount(rows.modality[places], minlength=len(there)) >= np.minimum(wanted, there)).all():
                    return candidates.ranked(query, rank, np.union1d(places, later), wanted)
                if limit >= MOST:
                    return candidates.best(query, rank, allowed)(wanted)
                limit *= 4

        return best

    def nearest(self, query: NDArray, codes: Sequence[int], limit: int) -> NDArray[np.int64]:
        """The rows with the largest inner products, so many of each modality.

        Args:
            query: (E,).
            codes: of the modalities.

        Raises:
            UserError: Milvus does not answer.
        """
        found = [np.empty(0, np.int64)]
        vector = np.asarray(query, np.float32)
        if not self.rows:
            return found[0]
        with _failing(self.place):
            for code in codes:
                options = {"limit": limit, "filter": f"modality == {code}", "consistency_level": "Strong"}
                (hits,) = self._client.search(self.collection, data=[vector], timeout=TIMEOUT, **options)
                found.append(np.array([hit["row"] for hit in hits], np.int64))
        return np.concatenate(found)

    def _look(self) -> None:
        """Which collection it is, and what that is known to have."""
        self._vectors = self._store.meta["vectors"]
        with _failing(self.place):
            there = self._client.has_collection(self.collection)
            if there:
                self._client.load_collection(self.collection)
            about = self._client.describe_collection(self.collection) if there else {}
            self.rows = int(dict(about.get("properties") or {}).get(DONE, 0))

    def _create(self) -> None:
        from pymilvus import DataType, MilvusClient

        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("row", DataType.INT64, is_primary=True)
        schema.add_field("file", DataType.INT64)  # for other programs; collections that were made before need it too
        schema.add_field("modality", DataType.INT8)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=self._store.embed_dim)
        index = MilvusClient.prepare_index_params()
        # What Milvus Lite takes by itself is a graph in which filters find a tenth of what there is.
        kind = "AUTOINDEX" if self.place.startswith(SERVER) else "FLAT"
        index.add_index("vector", index_type=kind, metric_type="IP")
        self._client.create_collection(self.collection, schema=schema, index_params=index)

    def _send(self, where: str, parameters: Sequence[Any]) -> None:
        sql = f"SELECT row, file, modality FROM vectors WHERE {where} ORDER BY row"  # noqa: S608 (from our own code)
        found = self._store.connection.execute(sql, parameters).fetchall()
        vectors = self._store.vector_file.read(self._store.next_row())
        for first in range(0, len(found), BATCH):
            some = [
                {"row": row, "file": file, "modality": code, "vector": np.array(vectors[row])}
                for row, file, code in found[first : first + BATCH]
            ]
            self._client.upsert(self.collection, some, timeout=TIMEOUT)

    def _count(self) -> int:
        options = {"filter": "", "output_fields": ["count(*)"], "consistency_level": "Strong"}
        return int(self._client.query(self.collection, **options)[0]["count(*)"])

    def _all_rows(self) -> NDArray[np.int64]:
        rows: list[int] = []
        for first in range(0, self._store.next_row(), MOST):
            where = f"row >= {first} and row < {first + MOST}"
            options: dict[str, Any] = {"output_fields": ["row"], "limit": MOST, "consistency_level": "Strong"}
            rows += [entity["row"] for entity in self._client.query(self.collection, filter=where, **options)]
        return np.array(sorted(rows), np.int64)


@contextmanager
def mirrored(store: Store) -> "Iterator[Mirror | None]":
    """The collection of an index that has one, brought up to date when the block ends well.

    Raises:
        UserError: Milvus does not answer.
    """
    if store.meta.get(STORE, LOCAL) == LOCAL:
        yield None
        return
    mirror = Mirror(store)
    try:
        yield mirror
        mirror.synchronise()
    finally:
        mirror.close()


def reading(store: Store) -> Mirror | None:
    """The collection of an index for queries; None if it has none, or it cannot be asked, which is logged: all vectors
    are here too."""
    if store.meta.get(STORE, LOCAL) == LOCAL:
        return None
    try:
        with ExitStack() as stack:
            mirror = Mirror(store)
            stack.callback(mirror.close)
            if fault := mirror.fault():
                raise UserError(f"{fault}: run onepeace index repair")
            stack.pop_all()
            return mirror
    except UserError as error:
        log.warning(HERE, error)
        return None


def faults(folder: Path) -> list[str]:
    """What is wrong with the collection of an index, if it has one; what the next command sends is not.

    Raises:
        UserError: Milvus does not answer.
    """
    with closing(Store(folder)) as store:
        if store.meta.get(STORE, LOCAL) == LOCAL:
            return []
        with closing(Mirror(store)) as mirror:
            return [fault for fault in [mirror.fault()] if fault]


def rebuild(folder: Path) -> None:
    """Make the collection of an index anew, if it has one; the caller holds the lock of writers.

    Raises:
        UserError: Milvus does not answer.
    """
    with closing(Store(folder, write=True)) as store, mirrored(store) as mirror:
        if mirror is not None:
            mirror.clear()


def choose_store(store: Store, given: str) -> None:
    """Where an index keeps its vectors from now on.

    Raises:
        UsageError: no such place; UserError: Milvus does not answer there, and the index is as it was.
    """
    place = place_of(given)
    if place == store.meta.get(STORE, LOCAL):
        return
    news = {STORE: place, COLLECTION: store.meta.get(COLLECTION) or f"onepeace_{secrets.token_hex(8)}"}
    if place != LOCAL:
        Mirror(store, news).close()  # before it is kept: of a wrong name every later command would fail
    with store.transaction() as connection:
        connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", news.items())


def _places(rows: NDArray[np.int64], found: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where those of the rows that still count are among them, which rise."""
    places = np.searchsorted(rows, found)
    known = places < len(rows)
    known[known] = rows[places[known]] == found[known]
    return places[known]


def _batches(rows: NDArray[np.int64]) -> Iterator[list[int]]:
    for first in range(0, len(rows), BATCH):
        yield rows[first : first + BATCH].tolist()


def _connect(place: str) -> "MilvusClient":
    need("pymilvus", "milvus")
    from pymilvus import MilvusClient

    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # of errors that are told of in one line
    for name in ("milvus_lite", "grpc._server"):  # the server of Milvus Lite is in this process
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if place.startswith(SERVER):
        with _failing(place):
            return MilvusClient(place.replace(SERVER, "http://", 1), timeout=TIMEOUT)
    need("milvus_lite", "milvus")
    if not os.path.isdir(os.path.dirname(place)):
        raise UserError(f"{place}: there is no folder {os.path.dirname(place)}")
    with _failing(place):
        return MilvusClient(place)


@contextmanager
def _failing(place: str) -> Iterator[None]:
    """Errors of Milvus become those for people."""
    from pymilvus.exceptions import MilvusException

    try:
        yield
    except MilvusException as error:
        reason = one_line(error.message or type(error).__name__)
        raise UserError(f"{place}: Milvus does not answer ({reason})") from error
