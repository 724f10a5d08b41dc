"""The best vectors of an index for a query, by a ranking. What is costly to compute is kept in the index's folder.

Raw cosines, and the Z-norm of a query whose parts are of one modality, are inner products with vectors that do not
depend on the query: a search structure (nearest.py) finds the best of these. Other queries and rankings look at every
vector.
"""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onepeace.index import derived, nearest
from onepeace.index.approximate import SAMPLES, sums_of_rows
from onepeace.index.calibration import FILE as CALIBRATION
from onepeace.index.calibration import MODALITIES, Calibration
from onepeace.index.derived import Made, Origin
from onepeace.index.exact import Scored
from onepeace.index.ranking import (
    CHUNK,
    RANKINGS,
    Pool,
    QueryVector,
    fold,
    match,
    means,
    prior_of,
    statistics_of,
    znorm,
)
from onepeace.index.store import Rows

DERIVED = "derived"
"""Folder of what can be made again."""
RAW = "raw"
"""The structure that knows nothing but vectors; others are called by the modality of the queries they serve."""


@dataclass(frozen=True)
class Scores:
    """Of some vectors of an index."""

    places: NDArray[np.int64]
    """(m,) in `Rows`, the best first."""
    cosine: NDArray
    """(m,)"""
    z: NDArray
    """(m,) what they are ordered by."""
    match: NDArray | None
    """(m,) probabilities; None without a calibration."""


Best = Callable[[int], Scores]
"""Gives so many best vectors; fewer when no more are allowed."""


class Candidates:
    """The vectors of one state of an index, to be ranked.

    Args:
        folder: of the index.
        meta: its table of that name.
        rows: all vectors that count.
        calibration: the one in the folder; None: there is nothing to rank by but cosines.
    """

    def __init__(self, folder: Path, meta: dict[str, str], rows: Rows, calibration: Calibration | None) -> None:
        self.rows, self.calibration = rows, calibration
        self._folder = folder / DERIVED
        self._total = len(rows.vectors)
        # Rows are never written again, and a compaction, after which they have other numbers, begins another file.
        numbering = zlib.crc32(f"{meta['created']} {meta['vectors']}".encode())
        self._origin = Origin(0, self._total - 1, numbering, "", "")
        if calibration is not None:
            self._calibrated = replace(self._origin, calibration=f"{derived.crc32(folder / CALIBRATION):08x}")
            self._prior = prior_of(len(np.unique(rows.file)))
        self._statistics: dict[str, NDArray[np.float32]] = {}
        self._nearest: dict[tuple[str, str], nearest.Nearest] = {}

    def best(self, query: QueryVector, rank: str, allowed: NDArray[np.bool_] | None = None, name: str = "auto") -> Best:
        """What gives the best vectors.

        Args:
            rank: a key of RANKINGS.
            allowed: (n,) over `rows`; None = all.
            name: of the structure, in `nearest.NEAREST`, or "auto"; it plays no part where none can be used.
        """
        key = RAW if rank == RAW else self._served(query) if rank == "znorm" else None
        if key is None:
            return self._best_of_all(query, rank, allowed)
        vector = query.vector if key == RAW else fold(query)
        structure = self.nearest(key, name)
        mask = None if allowed is None else self._by_row(allowed, fill=False)

        def best(wanted: int) -> Scores:
            found = structure.search(vector[None], wanted, mask).rows[0]
            return self.ranked(query, rank, np.searchsorted(self.rows.row, found[found >= 0]), wanted)

        return best

    def ranked(self, query: QueryVector, rank: str, places: NDArray[np.int64], wanted: int) -> Scores:
        """The so many best of some vectors, (m,) places in `rows`, as a structure or another store has found them."""
        cosine = self.rows.vectors[self.rows.row[places]] @ query.vector
        z = RANKINGS[rank](query, cosine, self._pool(query, rank, places))
        few = np.lexsort((places, -z))[:wanted]
        return self._scores(query, places[few], cosine[few], z[few])

    def nearest(self, key: str, name: str = "auto") -> nearest.Nearest:
        """The structure that serves raw cosines, or queries of a modality: the one that is kept, or exact search."""
        if (key, name) not in self._nearest:
            self._nearest[key, name] = nearest.find(self._folder, self._scored(key), self._origin_of(key), name, key)
        return self._nearest[key, name]

    def keep(self, name: str = "auto") -> None:
        """Compute what is not kept yet, or no more up to date, and write it into the folder; nothing of few vectors.

        Args:
            name: of the structure; "auto" for none where exact search is fast.

        Raises:
            UserError: an unknown name, or its library is not installed.
        """
        if name == "auto" and self._total <= nearest.LATER:
            return
        for key in self.keys:
            if self.calibration is not None:
                self._statistics[key] = self._kept_statistics(key, self.calibration, write=True)
            if self._total:
                samples = self.samples(key, seed=0)
                nearest.keep(self._folder, self._scored(key), self._origin_of(key), name, key, samples)

    @property
    def keys(self) -> tuple[str, ...]:
        """Of the structures that are kept: those of the default ranking."""
        return (RAW,) if self.calibration is None else tuple(self.calibration.banks)

    def samples(self, key: str, seed: int) -> NDArray[np.float32]:
        """(m, E): queries as a structure will get them, as far as that is known without any."""
        if key == RAW or self.calibration is None:
            return sums_of_rows(self._scored(RAW), seed)
        return self.calibration.banks[key].draw(SAMPLES, np.random.default_rng(seed))

    def _origin_of(self, key: str) -> Origin:
        return self._origin if key == RAW else self._calibrated

    def _served(self, query: QueryVector) -> str | None:
        """The modality of all parts of a query, if there is a structure for it."""
        modalities = {modality for modality, _ in query.weights}
        return modalities.pop() if len(modalities) == 1 and sum(weight for _, weight in query.weights) > 0 else None

    def _best_of_all(self, query: QueryVector, rank: str, allowed: NDArray[np.bool_] | None) -> Best:
        """The best by a ranking that sees the cosines of all that are allowed."""
        places = np.arange(len(self.rows.row)) if allowed is None else np.flatnonzero(allowed)
        cosine = (self.rows.vectors @ query.vector)[self.rows.row[places]]
        z = RANKINGS[rank](query, cosine, self._pool(query, rank, places))

        def best(wanted: int) -> Scores:
            few = min(wanted, len(z))
            some = np.argpartition(-z, few - 1)[:few] if 0 < few < len(z) else np.arange(len(z))
            return self._scores(query, places[some], cosine[some], z[some])

        return best

    def _scores(self, query: QueryVector, places: NDArray[np.int64], cosine: NDArray, z: NDArray) -> Scores:
        order = np.lexsort((places, -z))
        places, cosine, z = places[order], cosine[order], z[order]
        if self.calibration is None:
            return Scores(places, cosine, z, None)
        pool = self._pool(query, "znorm", places)
        return Scores(places, cosine, z, match(query, znorm(query, cosine, pool), pool, self._prior))

    def _pool(self, query: QueryVector, rank: str, places: NDArray[np.int64]) -> Pool:
        """What rankings know of some vectors beside themselves."""
        codes = self.rows.modality[places]
        if self.calibration is None:
            return Pool(codes)
        known = np.full((len(places), len(MODALITIES), 2), np.nan, np.float32)
        needed = {modality for modality, _ in query.weights} if rank != "centred" else self.calibration.banks.keys()
        for modality in needed & self.calibration.banks.keys():
            known[:, MODALITIES.index(modality)] = self._of_queries(modality, self.calibration)[self.rows.row[places]]
        return Pool(codes, self.calibration, known)

    def _scored(self, key: str) -> Scored:
        alive = None if len(self.rows.row) == self._total else self._by_row(True, fill=False)
        if key == RAW or self.calibration is None:
            return Scored(self.rows.vectors, alive=alive)
        known = np.full((len(self.rows.row), len(MODALITIES), 2), np.nan, np.float32)
        known[:, MODALITIES.index(key)] = self._of_queries(key, self.calibration)[self.rows.row]
        mean = means(key, Pool(self.rows.modality, self.calibration, known)).astype(np.float32)
        factor = known[:, MODALITIES.index(key), 1]
        return Scored(self.rows.vectors, self._by_row(mean, fill=0), self._by_row(factor, fill=1), alive)

    def _by_row(self, values: Any, fill: Any) -> NDArray[Any]:
        """Values (n,) over `rows` as (rows in the file,)."""
        values = np.asarray(values)
        if values.shape and len(values) == self._total:
            return values
        result = np.full(self._total, fill, values.dtype)
        result[self.rows.row] = values
        return result

    def _of_queries(self, modality: str, calibration: Calibration) -> NDArray[np.float32]:
        """(rows in the file, 2): m.x and 1 / sigma for queries of a modality; NaN for rows that do not count."""
        if modality not in self._statistics:
            self._statistics[modality] = self._kept_statistics(modality, calibration, write=False)
        return self._statistics[modality]

    def _kept_statistics(self, modality: str, calibration: Calibration, write: bool) -> NDArray[np.float32]:
        name = f"statistics-{modality}"

        def load(path: Path, facts: dict[str, Any]) -> NDArray[np.float32]:
            return self._continued(modality, calibration, np.load(path, allow_pickle=False))

        def make() -> Made:
            values = self._continued(modality, calibration, np.empty((0, 2), np.float32))
            return Made(values, {}, lambda path: _save(path, values))

        if not write:
            found = derived.read(self._folder, name, self._calibrated, load)
            return make().value if found is None else found
        return derived.keep(self._folder, name, self._calibrated, load, make, behind=nearest.LATER)

    def _continued(self, modality: str, calibration: Calibration, known: NDArray[np.float32]) -> NDArray[np.float32]:
        """The statistics of all rows, of which those of the first are known."""
        values = np.full((self._total, 2), np.nan, np.float32)
        values[: len(known)] = known
        later = slice(int(np.searchsorted(self.rows.row, len(known))), None)
        for rows, codes in _chunks(self.rows.row[later], self.rows.modality[later]):
            values[rows] = statistics_of(modality, self.rows.vectors[rows], codes, calibration)
        return values


def _chunks(rows: NDArray[np.int64], codes: NDArray[np.int8]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int8]]]:
    for start in range(0, len(rows), CHUNK):
        yield rows[start : start + CHUNK], codes[start : start + CHUNK]


def _save(path: Path, values: NDArray[np.float32]) -> None:
    with path.open("wb") as file:
        np.save(file, values)
