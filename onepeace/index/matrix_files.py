"""The vectors of an index as mapped files (array_files.py), which are derived from the database and added to.

    vectors  (n, E) float32, by ascending id
    rows     (n,) `ROW`: what each vector is of
    gone     (g,) int64: numbers of the rows whose vectors were removed, in the order of removal

Ids are never used twice. So a state of the vectors is told by the largest id and the number of removals, the header has
both, and the files of a later state without further removals serve an earlier one.
"""

from collections.abc import Iterator

import numpy as np

from onepeace.index.array_files import ArrayFiles, ArrayWriter, State, Types, open_arrays
from onepeace.index.database import Damaged
from onepeace.index.store import VECTOR, Store

MATRIX = "matrix"
"""Name of the files."""
ROW = np.dtype([("id", "<i8"), ("file", "<i8"), ("start", "<f8"), ("end", "<f8"), ("modality", "<i8")])
"""What a vector is of: its id and that of its file, the seconds that it covers (NaN = the whole file), and the place of
its modality in `Store.modalities`."""
READ = 1 << 13
"""Vectors read from the database at once."""
MOST_GONE = 0.1
"""Share of the rows that may be gone before the files are written anew."""


def vectors_state(store: Store) -> str:
    """State of an index's vectors, LAST-REMOVED: the largest id and the number of removals."""
    return f"{last_id(store)}-{store.meta['removed']}"


def last_id(store: Store) -> int:
    """The largest id of a vector; 0 if there is none."""
    ((last,),) = store.select("SELECT max(id) FROM vectors")
    return last or 0


def key_of(store: Store) -> State:
    """What tells whether derived files are of this database: ids of another one mean nothing in it."""
    return {
        "index": store.meta.get("id"),
        "model": store.meta["model_hash"],
        "embed_dim": store.embed_dim,
    }


def open_matrix(store: Store) -> ArrayFiles | None:
    """The files, if they hold the reader's state of the database, perhaps with newer vectors."""
    files = _open(store)
    if files is None or not _has_removals_of(store, files):
        return None
    return files if files.header.state["last"] >= last_id(store) else None


def rows_left(store: Store, files: ArrayFiles) -> np.ndarray | None:
    """Numbers of the rows of `open_matrix` that are vectors of the reader's state, ascending; None = all."""
    is_left = files.arrays["rows"]["id"] <= last_id(store)
    is_left[files.arrays["gone"]] = False
    return None if is_left.all() else np.flatnonzero(is_left)


def keep_matrix(store: Store) -> None:
    """Bring the files to the state of the database, by adding to them if they hold an earlier one.

    Raises:
        OSError: the disk is full or not writable.
    """
    if _is_current(store):
        return
    files = _open(store)
    if files is not None and not _can_be_added_to(store, files):
        files = None
    with ArrayWriter(store.folder, MATRIX, types_of(store), files) as writer:
        last_row_id = 0
        if files is not None:
            writer.add("gone", _newly_gone(store, files))
            last_row_id = _last_row_id(files)
        for rows, vectors in read(store, last_row_id):
            writer.add("rows", rows)
            writer.add("vectors", vectors)
        state = {"last": last_id(store), "removed": store.meta["removed"]}
        writer.commit(key_of(store) | state)


def _can_be_added_to(store: Store, files: ArrayFiles) -> bool:
    """Whether the files are of an earlier state, and few of their vectors are gone."""
    state = (int(files.header.state["removed"]), files.header.state["last"])
    latest = (int(store.meta["removed"]), last_id(store))
    if state > latest:  # the database is an older copy that was put back
        return False
    num_gone = len(files.arrays["gone"]) + len(_newly_gone(store, files))
    return num_gone <= MOST_GONE * len(files.arrays["rows"])


def types_of(store: Store) -> Types:
    vector = np.dtype((VECTOR, (store.embed_dim,)))
    return {"rows": ROW, "vectors": vector, "gone": np.dtype("<i8")}


def _open(store: Store) -> ArrayFiles | None:
    """The files, if they are of this database, in whatever state."""
    files = open_arrays(store.folder, MATRIX, types_of(store), key_of(store))
    if files is None:
        return None
    gone = files.arrays["gone"]
    if len(gone) and (gone.min() < 0 or gone.max() >= len(files.arrays["rows"])):
        return None
    return files


def _has_removals_of(store: Store, files: ArrayFiles) -> bool:
    return files.header.state["removed"] == store.meta["removed"]


def _is_current(store: Store) -> bool:
    files = _open(store)
    if files is None or not _has_removals_of(store, files):
        return False
    return files.header.state["last"] == last_id(store)


def _last_row_id(files: ArrayFiles) -> int:
    rows = files.arrays["rows"]
    return int(rows["id"][-1]) if len(rows) else 0


def _newly_gone(store: Store, files: ArrayFiles) -> np.ndarray:
    """Numbers of the rows whose vectors were removed since the files were written."""
    if _has_removals_of(store, files):
        return np.empty(0, np.int64)
    ids = store.select("SELECT id FROM vectors ORDER BY id")  # from an SQL index, so vectors are not read
    ids_left = np.array(ids, np.int64).reshape(-1)
    is_left = np.isin(files.arrays["rows"]["id"], ids_left, assume_unique=True)
    is_left[files.arrays["gone"]] = True  # these are known
    return np.flatnonzero(~is_left)


def read(store: Store, after: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows (k,) of type `ROW` and vectors (k, E) in the database with an id above ``after``, in blocks, one at least.

    Raises:
        Damaged: a value has another type or length.
    """
    blob = np.dtype((np.void, store.embed_dim * VECTOR.itemsize))
    record = np.dtype([*ROW.descr, ("vector", blob)])
    sql = 'SELECT id, file, "start", "end", modality, vector FROM vectors WHERE id > ? ORDER BY id LIMIT ?'
    while True:
        values = store.select(sql, (after, READ))
        try:
            records = np.array(values, record)  # None is NaN in a float column
        except (TypeError, ValueError, OverflowError) as error:
            raise Damaged(store.folder, error) from error
        blobs = np.ascontiguousarray(records["vector"])
        vectors = blobs.view(VECTOR).reshape(-1, store.embed_dim)
        yield records[[*(ROW.names or ())]].astype(ROW), vectors
        if len(values) < READ:
            return
        after = values[-1][0]
