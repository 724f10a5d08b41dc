"""What all approximate structures share: they name candidates, and everything else is exact.

A structure knows the rows that were there when it was built. A search asks it for candidates among them, adds the best
of the rows that came later, scores all of these exactly and keeps the best. It falls back on comparing every allowed
row where that is cheaper, and for a query the structure named too few candidates for. So a hit is never a row that is
not allowed, its score is exact, and there are k of them whenever k rows are allowed; only whether they are the very
best is uncertain, and how uncertain is set when the structure is built: by trying on sample queries how hard it has to
search until `TARGET` of the exact hits are found.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onepeace.index.exact import Neighbours, Scored, best_of, nothing, scan

if TYPE_CHECKING:
    from typing_extensions import Self

TARGET = 0.995
"""Recall at `AT` on the sample queries; other queries fall a little below."""
AT = 10
SAMPLES = 500
"""Queries the effort is chosen by: with 200, the recall of others may be 0.01 lower."""
CHUNK = 1 << 15
"""Rows that are given to a library at once."""


class Approximate(ABC):
    """A structure over the first `covered` rows of `scored`."""

    name: ClassVar[str]
    """In `nearest.NEAREST`."""

    def __init__(self, scored: Scored, native: Any, covered: int, effort: int) -> None:
        self.scored = scored
        self.native = native
        """The library's index; its numbers are rows."""
        self.covered = covered
        self.effort = effort
        """How hard to search; what it counts is the structure's own business."""

    @classmethod
    def build(cls, scored: Scored, samples: ArrayLike | None = None) -> "Self":
        """A structure over all rows, of which there has to be one.

        Args:
            samples: (m, E) queries to choose the effort by. Without them, sums of two rows: on real vectors they need
                about the effort that queries of another modality need, more than rows themselves would.

        Raises:
            UserError: the library is not installed.
        """
        built = cls(scored, cls._made(scored), scored.rows, cls._efforts(scored.rows)[0])
        built._choose_effort(sums_of_rows(scored) if samples is None else scored.check(samples, AT))
        return built

    def facts(self) -> dict[str, Any]:
        """What `load` needs beside the file, as JSON allows."""
        return {"covered": self.covered, "effort": self.effort, "vectors": self._kind(self.scored)}

    @classmethod
    def load(cls, path: Path, scored: Scored, facts: dict[str, Any]) -> "Self":
        """The structure of a file that is known to be whole, mapped into memory.

        Args:
            scored: the rows it was built over, unchanged, and those that came later.

        Raises:
            ValueError: it was built over vectors of another width, or with other scores.
        """
        if facts["vectors"] != cls._kind(scored):
            raise ValueError(f"it was built over {facts['vectors']}, not {cls._kind(scored)}")
        return cls(scored, cls._read(path), facts["covered"], facts["effort"])

    @classmethod
    @abstractmethod
    def library(cls) -> str:
        """What reads the files, with its version: those of another version are not opened."""

    @abstractmethod
    def save(self, path: Path) -> None:
        """Writes the library's file. OSError when the disk is full or not writable."""

    def search(self, queries: ArrayLike, k: int, allowed: ArrayLike | None = None) -> Neighbours:
        """The k best of the allowed rows for each query, nearly; arguments, result and errors as in `Exact.search`."""
        checked = self.scored.check(queries, k)
        mask = self.scored.mask(allowed)
        within = self.covered if mask is None else int(np.count_nonzero(mask[: self.covered]))
        if k == 0 or not len(checked) or within <= self._work(k, within / self.covered):
            return scan(self.scored, checked, k, mask)
        share = within / self.covered
        candidates = self._candidates(checked, k, mask if share < 1 else None, share)
        short = (candidates >= 0).sum(axis=1) < min(k, within)
        if self.covered < self.scored.rows:
            later = scan(self.scored, checked, k, mask, self.covered).rows
            candidates = np.concatenate([candidates, later], axis=1)
        found = nothing(len(checked), k)
        for i, query in enumerate(checked):
            rows = candidates[i][candidates[i] >= 0]
            found.rows[i], found.scores[i] = best_of(rows, self.scored.rescored(query, rows), k)
        if short.any():
            found.rows[short], found.scores[short] = scan(self.scored, checked[short], k, mask)
        return found

    @staticmethod
    def _kind(scored: Scored) -> str:
        return f"{scored.vectors.shape[1]} dimensions {'without' if scored.factor is None else 'with'} z-norm"

    def _choose_effort(self, samples: NDArray[np.float32]) -> None:
        truth = scan(self.scored, samples, AT, self.scored.alive)
        for effort in self._efforts(self.covered):
            self.effort = effort
            if recall(self.search(samples, AT), truth) >= TARGET:
                break

    @classmethod
    @abstractmethod
    def _made(cls, scored: Scored) -> Any:
        """The library's index over all rows."""

    @classmethod
    @abstractmethod
    def _read(cls, path: Path) -> Any:
        """The library's index in a file, mapped."""

    @classmethod
    @abstractmethod
    def _efforts(cls, rows: int) -> list[int]:
        """What `effort` may be for so many rows, ascending."""

    @abstractmethod
    def _work(self, k: int, share: float) -> float:
        """Rows that are compared exactly in the time of a query for k of a share of the rows."""

    @abstractmethod
    def _candidates(
        self, queries: NDArray[np.float32], k: int, mask: NDArray[np.bool_] | None, share: float
    ) -> NDArray[np.int64]:
        """(q, m) rows below `covered`, of those in the mask, none twice for a query; -1 for none."""


def recall(found: Neighbours, truth: Neighbours) -> float:
    """The share of the exact hits that were found, 0..1; another row of the same score is as good. 1 without hits."""
    exact = truth.rows >= 0
    if not exact.any():
        return 1.0
    worst = np.where(exact, truth.scores, np.inf).min(axis=1)
    hits = ((found.rows >= 0) & (found.scores >= worst[:, None])).sum(axis=1)
    return float(np.minimum(hits, exact.sum(axis=1)).sum() / exact.sum())


def sums_of_rows(scored: Scored, seed: int = 0) -> NDArray[np.float32]:
    """(SAMPLES, E): unit sums of two rows that are alive, drawn by chance, the same ones for a seed."""
    rows = np.arange(scored.rows) if scored.alive is None else np.flatnonzero(scored.alive)
    if not rows.size:
        return np.empty((0, scored.vectors.shape[1]), np.float32)
    chosen = np.random.default_rng(seed).choice(rows, (2, SAMPLES))
    sums = scored.vectors[chosen[0]] + scored.vectors[chosen[1]]
    return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-6)
