"""Inverted lists over the vectors of a large index, which name the vectors that may be nearest to a query.

FAISS (extra `index`) finds centroids and the nearest one of each vector, when they are written (Johnson et al., arXiv
1702.08734). A query is compared with the centroids, and then with 8-bit codes of the vectors in the nearest lists; for
this numpy is enough, as loading FAISS takes longer than many searches. The lists are mapped files (array_files.py):

    centroids  (l, E) float32
    ends       (l,) int64: end of each list in the following arrays
    ids        (n,) int64: ids of the vectors, list after list
    codes      (n, E) uint8: their numbers in steps of `steps`
    steps      (E,) float32

Vectors may be newer than the lists, and some in the lists may be gone.
"""

import logging
from typing import Any, Protocol

import numpy as np

from onepeace.index.array_files import ArrayFiles, ArrayWriter, Types, open_arrays
from onepeace.index.matrix_files import key_of
from onepeace.index.store import Store
from onepeace.threads import one_blas_thread

log = logging.getLogger(__name__)

LISTS = "lists"
"""Name of the files."""
PROBED = 48
"""Lists that a query is compared with."""
TRAINED = 200_000
"""Vectors that the centroids are found with."""
NOT_LISTED = 0.02
"""Share of the vectors that may be newer than the lists."""
STALE = 0.1
"""Share of the vectors in the lists that may be gone."""
READ = 1 << 13
"""Vectors put into lists at once."""
MIDDLE = 128
"""Code of the number 0."""


class Vectors(Protocol):
    """What lists are made of (see `Matrix`)."""

    store: Store

    @property
    def id(self) -> np.ndarray: ...

    def vectors_of(self, rows: Any) -> np.ndarray: ...


def types_of(store: Store) -> Types:
    vector = (store.embed_dim,)
    return {
        "centroids": np.dtype(("<f4", vector)),
        "ends": np.dtype("<i8"),
        "ids": np.dtype("<i8"),
        "codes": np.dtype(("u1", vector)),
        "steps": np.dtype("<f4"),
    }


class Lists:
    """The lists of an index.

    Attributes:
        last: id of the newest vector in them.
    """

    def __init__(self, mapped: ArrayFiles) -> None:
        self.mapped = mapped
        self.last = int(mapped.header.state["last"])
        self.centroids = mapped.arrays["centroids"]
        self.ends = mapped.arrays["ends"]
        self.ids = mapped.arrays["ids"]
        self.codes = mapped.arrays["codes"]
        self.steps = mapped.arrays["steps"]

    @classmethod
    def open(cls, store: Store) -> "Lists | None":
        """The lists of an index, if there are any."""
        mapped = open_arrays(store.folder, LISTS, types_of(store), key_of(store))
        return None if mapped is None else cls(mapped)

    def near(self, query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids (k,) of the vectors in the lists nearest to a unit vector (E,), and estimates (k,) of their cosines."""
        with one_blas_thread():  # several wait for each other longer than they compute
            distances = -(self.centroids @ query)
            probed = np.argpartition(distances, min(PROBED, len(distances)) - 1)[:PROBED]
            parts = [self._part(number) for number in np.sort(probed)]
            weights = (self.steps * query).astype(np.float32)
            estimates = [self.codes[part].astype(np.float32) @ weights for part in parts]
        ids = np.concatenate([self.ids[part] for part in parts])
        return ids, np.concatenate(estimates) - MIDDLE * weights.sum()

    def _part(self, number: int) -> slice:
        start = 0
        if number:
            start = int(self.ends[number - 1])
        return slice(start, int(self.ends[number]))

    def numbers(self) -> np.ndarray:
        """(n,) number of the list of each of `ids`."""
        sizes = np.diff(self.ends, prepend=0)
        return np.repeat(np.arange(len(self.ends)), sizes)


def keep_lists(matrix: Vectors) -> None:
    """Write the lists of a matrix unless they are good enough: with newer vectors added, or new ones if many are gone.

    Raises:
        OSError: the disk is full or not writable.
    """
    lists = Lists.open(matrix.store)
    first_new = 0
    if lists is not None:
        first_new = int(np.searchsorted(matrix.id, lists.last, "right"))
    if (
        lists is not None
        and len(matrix.id) - first_new <= NOT_LISTED * len(matrix.id)
        and not _is_stale(lists, first_new)
    ):
        return
    try:
        import faiss
    except ImportError:
        log.info("%s: faiss is not installed, so every vector is compared (extra index)", matrix.store.folder)
        return
    number = 4 * int(len(matrix.id) ** 0.5)
    if lists is None or len(lists.centroids) < number / 2 or _is_stale(lists, first_new):
        _write_anew(matrix, number, faiss)
    else:
        _write_more(matrix, lists, first_new, faiss)


def _is_stale(lists: Lists, listed: int) -> bool:
    """Whether many of the vectors in the lists are gone.

    Args:
        listed: number of those that are left.
    """
    return len(lists.ids) - listed > STALE * len(lists.ids)


def _write_anew(matrix: Vectors, number: int, faiss: Any) -> None:
    count = len(matrix.id)
    random = np.random.default_rng(0)
    chosen = random.choice(count, min(TRAINED, count), replace=False)
    sample = np.ascontiguousarray(matrix.vectors_of(np.sort(chosen)))
    index = faiss.index_factory(matrix.store.embed_dim, f"IVF{number},Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(sample)
    centroids = index.quantizer.reconstruct_n(0, number)
    steps = np.maximum(np.abs(sample).max(axis=0), 1e-12) / (MIDDLE - 1)
    numbers, ids, codes = _listed(matrix, centroids, steps, 0, faiss)
    _write(matrix, centroids, steps.astype(np.float32), numbers, ids, codes)


def _write_more(matrix: Vectors, lists: Lists, first_new: int, faiss: Any) -> None:
    """Add the rows from ``first_new`` on, and drop those that are gone."""
    numbers, ids, codes = _listed(matrix, lists.centroids, lists.steps, first_new, faiss)
    is_left = np.isin(lists.ids, matrix.id, assume_unique=True)
    _write(
        matrix,
        lists.centroids,
        lists.steps,
        np.concatenate([lists.numbers()[is_left], numbers]),
        np.concatenate([lists.ids[is_left], ids]),
        np.concatenate([lists.codes[is_left], codes]),
    )


def _listed(
    matrix: Vectors, centroids: np.ndarray, steps: np.ndarray, first: int, faiss: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers of the lists, ids and codes of the rows from ``first`` on."""
    quantizer = faiss.IndexFlatIP(matrix.store.embed_dim)
    quantizer.add(np.ascontiguousarray(centroids))
    count = len(matrix.id) - first
    numbers = np.empty(count, np.int64)
    codes = np.empty((count, matrix.store.embed_dim), np.uint8)
    for start in range(0, count, READ):
        block = slice(start, min(start + READ, count))
        rows = slice(first + block.start, first + block.stop)
        vectors = np.ascontiguousarray(matrix.vectors_of(rows))
        numbers[block] = quantizer.search(vectors, 1)[1][:, 0]
        codes[block] = np.clip(np.rint(vectors / steps) + MIDDLE, 0, 255)
    return numbers, matrix.id[first:], codes


def _write(
    matrix: Vectors,
    centroids: np.ndarray,
    steps: np.ndarray,
    numbers: np.ndarray,
    ids: np.ndarray,
    codes: np.ndarray,
) -> None:
    """Write the files.

    Args:
        numbers: (n,) number of the list of each vector.
    """
    order = np.argsort(numbers, kind="stable")
    with ArrayWriter(matrix.store.folder, LISTS, types_of(matrix.store)) as writer:
        writer.add("centroids", centroids)
        sizes = np.bincount(numbers, minlength=len(centroids))
        writer.add("ends", np.cumsum(sizes))
        writer.add("steps", steps)
        writer.add("ids", ids[order])
        for start in range(0, len(order), READ):
            writer.add("codes", codes[order[start : start + READ]])
        writer.commit({**key_of(matrix.store), "last": int(ids.max())})
