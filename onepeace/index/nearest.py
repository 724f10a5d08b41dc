"""Search structures by name, which one is taken, and how it is kept beside the index.

structure = keep(folder, Scored(vectors), Origin(0, len(vectors) - 1, generation, "", ""))
rows, scores = structure.search(queries, 10, allowed=mask)
"""

import logging
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onepeace.errors import UsageError
from onepeace.index import derived
from onepeace.index.approximate import AT, Approximate, recall
from onepeace.index.derived import Made, Origin
from onepeace.index.exact import Exact, Neighbours, Scored, scan
from onepeace.index.graphs import FaissGraph, UsearchGraph
from onepeace.index.lists import FaissLists

log = logging.getLogger(__name__)

EXACT_UP_TO = 50_000
"""Rows up to which all are compared, which takes up to 3 ms in 256 dimensions and costs no building."""
LATER = 10_000
LATER_SHARE = 1 / 40
"""Later rows than these, or this share of all, make a structure stale: they are compared one by one."""


class Nearest(Protocol):
    """Finds the best rows for queries."""

    name: ClassVar[str]
    """In `NEAREST`."""
    scored: Scored
    """What it searches."""

    def search(self, queries: ArrayLike, k: int, allowed: ArrayLike | None = None) -> Neighbours:
        """As `Exact.search` says."""


APPROXIMATE: dict[str, type[Approximate]] = {kind.name: kind for kind in (UsearchGraph, FaissGraph, FaissLists)}
NEAREST: dict[str, type[Exact] | type[Approximate]] = {Exact.name: Exact, **APPROXIMATE}
MODULES = {"faiss-ivf": "faiss", "usearch": "usearch", "faiss-hnsw": "faiss"}
"""Structures in the order they are tried, with the module each needs. FAISS's lists are built many times faster than a
graph, and filters cost them least."""


def check(name: str) -> None:
    """Look whether a structure can be used, before the work that it is for.

    Raises:
        UserError: an unknown name, or its library is not installed.
    """
    choose(0, name)
    if name in APPROXIMATE:
        APPROXIMATE[name].library()


def choose(rows: int, name: str = "auto") -> str:
    """The structure for so many rows: the one that is named, or the best there is for "auto".

    Raises:
        UsageError: no structure has that name.
    """
    if name != "auto" and name not in NEAREST:
        raise UsageError(f"no search structure is called {name!r}; known: auto, {', '.join(NEAREST)}")
    if name != "auto" or rows <= EXACT_UP_TO:
        return ("exact" if name == "auto" else name) if rows else "exact"
    for known, module in MODULES.items():
        if find_spec(module):
            return known
    log.info('%d vectors are compared one by one; faster: pip install "onepeace[index]"', rows)
    return "exact"


def build(scored: Scored, name: str = "auto", samples: ArrayLike | None = None) -> Nearest:
    """A structure over all rows, in memory.

    Args:
        name: in `NEAREST`, or "auto".
        samples: see `Approximate.build`.

    Raises:
        UserError: an unknown name, or its library is not installed.
    """
    chosen = choose(scored.rows, name)
    return APPROXIMATE[chosen].build(scored, samples) if chosen in APPROXIMATE else Exact(scored)


def find(folder: Path, scored: Scored, origin: Origin, name: str = "auto", key: str = "") -> Nearest:
    """The structure that is kept in a folder, or exact search when none can be used; nothing is built or written.

    Args:
        origin: of all rows of `scored`; its library is filled in here.
        name: in `NEAREST`; "auto" for any that is there, above `EXACT_UP_TO` rows.
        key: tells structures of the same name apart, such as those of the query modalities, which have other scores.

    Raises:
        UserError: an unknown name, or its library is not installed.
    """
    names = [choose(scored.rows, name)]
    if name == "auto" and names != [Exact.name]:
        names = [known for known, module in MODULES.items() if find_spec(module)]
    for chosen in names:
        if chosen in APPROXIMATE:
            made_of, load = _kept(chosen, scored, origin)
            found = derived.read(folder, _file(chosen, key), made_of, load)
            if found is not None:
                return found
    return Exact(scored)


def keep(
    folder: Path,
    scored: Scored,
    origin: Origin,
    name: str = "auto",
    key: str = "",
    samples: ArrayLike | None = None,
) -> Nearest:
    """The structure that is kept in a folder, built again and written there when it is stale or damaged.

    Arguments as in `find` and `build`.

    Raises:
        UserError: an unknown name, or its library is not installed.
    """
    chosen = choose(scored.rows, name)
    if chosen not in APPROXIMATE:
        return Exact(scored)
    made_of, load = _kept(chosen, scored, origin)

    def make() -> Made:
        log.info("building %s over %d vectors ...", chosen, scored.rows)
        built = APPROXIMATE[chosen].build(scored, samples)
        return Made(built, built.facts(), built.save)

    behind = max(LATER, int(LATER_SHARE * scored.rows))
    return derived.keep(folder, _file(chosen, key), made_of, load, make, behind=behind)


def measure_recall(structure: Nearest, queries: ArrayLike, k: int = AT) -> float:
    """Share of the k exact hits of queries (q, E) that a structure finds, 0..1."""
    scored = structure.scored
    checked: NDArray[np.float32] = scored.check(queries, k)
    return recall(structure.search(checked, k), scan(scored, checked, k, scored.alive))


def _kept(name: str, scored: Scored, origin: Origin) -> tuple[Origin, Any]:
    kind = APPROXIMATE[name]
    return replace(origin, library=kind.library()), lambda path, facts: kind.load(path, scored, facts)


def _file(name: str, key: str) -> str:
    return f"{name}-{key}" if key else name
