"""Inverted lists of many vectors of one modality (Johnson et al., arXiv 1702.08734), in FAISS's own file.

Lists of several would be of little use: a text is nearer to all texts than to any picture. They propose candidates,
which are compared exactly (vectors.py), and are mapped, so that none is read when an index is opened. They have the ids
of vectors: after an update they are used on, and what they do not have yet is compared too.
"""

import hashlib
import os
import secrets
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from onepeace.errors import one_line
from onepeace.files.atomic import sync
from onepeace.files.sums import sha256_of
from onepeace.threads import one_blas_thread

LISTS = 1024
PROBED = 32
"""Lists, and those that a query is compared with."""
TRAINED = 100_000
"""Vectors that the centroids of the lists are found with."""
ADDED = 1 << 13
"""Vectors added at once."""


class ListsFile(NamedTuple):
    """A file of lists, as the database of its index knows it."""

    name: str
    last: int
    """The largest id in it."""
    size: int
    head: str
    """Digest of what it has before the vectors in it: FAISS reads beyond the end of a file that is cut off, or whose
    head is damaged; damage elsewhere costs candidates, so it is left to `index check` and `index update` to see."""
    digest: str
    """Digest of all of it."""

    @classmethod
    def of(cls, path: Path, last: int, embed_dim: int) -> "ListsFile":
        """A file that is there; OSError if it cannot be read."""
        return cls(path.name, last, os.path.getsize(path), _digest_of_head(path, embed_dim), sha256_of(path))

    def is_intact(self, folder: Path, embed_dim: int, *, whole: bool = False) -> bool:
        """Whether the size and the head of the file are what was written, or the ``whole`` of it."""
        path = folder / self.name
        try:
            if os.path.getsize(path) != self.size or _digest_of_head(path, embed_dim) != self.head:
                return False
            return not whole or sha256_of(path) == self.digest
        except FileNotFoundError:
            return False


def _digest_of_head(path: Path, embed_dim: int) -> str:
    with open(path, "rb") as file:
        return hashlib.sha256(file.read(LISTS * (4 * embed_dim + 8) + (1 << 12))).hexdigest()


@cache
def faiss() -> Any:
    """The module faiss; None if it is not installed (extra `index`)."""
    try:
        return import_module("faiss")
    except ImportError:
        return None


class Lists:
    """Lists that are open for reading, of an intact file."""

    def __init__(self, folder: Path, file: ListsFile) -> None:
        flags = faiss().IO_FLAG_MMAP | faiss().IO_FLAG_READ_ONLY
        self._lists = faiss().read_index(os.fspath(folder / file.name), flags)
        # to start 32 threads takes 1 ms a query
        faiss().downcast_InvertedLists(self._lists.invlists).prefetch_nthread = 0
        self._last = file.last

    def __len__(self) -> int:
        return int(self._lists.ntotal)

    def num_rows(self, ids: np.ndarray) -> int:
        """Number of ascending ids that may be in the lists, which are the first ones."""
        return int(np.searchsorted(ids, self._last, "right"))

    def select(self, ids: np.ndarray, wanted: np.ndarray) -> "Selection":
        """Rows of which candidates may be asked.

        Args:
            ids: (n,) int64, ascending.
            wanted: (n,) bool.
        """
        listed = self.num_rows(ids)
        is_wanted = np.zeros(self._last + 1, bool)
        is_wanted[ids[:listed]] = wanted[:listed]
        bits = np.packbits(is_wanted, bitorder="little")
        return Selection(ids, faiss().IDSelectorBitmap(bits), listed + np.flatnonzero(wanted[listed:]))

    def propose(self, query: np.ndarray, count: int, selection: "Selection") -> np.ndarray:
        """Rows that may be near a query, and those that are not in the lists; none at all if the lists near the query
        hold too few of the selected rows, as the nearest may then be in others.

        Args:
            query: (E,) float32, a unit vector.
            count: number of rows asked of the lists.
        """
        parameters = faiss().SearchParametersIVF(sel=selection.selector, nprobe=PROBED)
        with one_blas_thread():
            _, (found,) = self._lists.search(query[None], count, params=parameters)
        if (found < 0).any():
            return np.empty(0, np.int64)
        return np.concatenate([np.searchsorted(selection.ids, found), selection.unlisted])


class Selection(NamedTuple):
    """Rows that are looked for in lists; making it takes 3 ms for a million."""

    ids: np.ndarray
    """(n,) int64, of all rows."""
    selector: Any
    """FAISS's selector of ids."""
    unlisted: np.ndarray
    """Selected rows that are not in the lists."""


def write_lists(folder: Path, ids: np.ndarray, vectors: Any, rows: np.ndarray) -> ListsFile:
    """Write lists of some of the vectors (n, E), whose ids (n,) ascend, to a new file.

    Args:
        rows: (k,) int64, ascending.

    Raises:
        OSError: the disk is full or not writable.
    """
    embed_dim = vectors.shape[1]
    path = folder / f"lists-{secrets.token_hex(8)}.faiss"
    chosen = np.random.default_rng(0).choice(rows, min(TRAINED, len(rows)), replace=False)
    byte = faiss().ScalarQuantizer.QT_8bit
    centroids = faiss().IndexFlatIP(embed_dim)
    lists = faiss().IndexIVFScalarQuantizer(centroids, embed_dim, LISTS, byte, faiss().METRIC_INNER_PRODUCT)
    lists.train(vectors[np.sort(chosen)])
    for start in range(0, len(rows), ADDED):
        block = rows[start : start + ADDED]
        lists.add_with_ids(vectors[block], ids[block])
    try:
        faiss().write_index(lists, os.fspath(path))
    except RuntimeError as error:
        raise OSError(one_line(error)) from error
    sync(path)
    return ListsFile.of(path, int(ids[rows[-1]]), embed_dim)
