"""`onepeace bench search`: the search structures beside numpy and the libraries alone, with and without filters.

Vectors are made up, but lie as embeddings do: there are fifty for each of many topics on average, few for most and many
for some (Zipf), around the topic's own vector, and the deviation along dimension i falls as 1 / sqrt(i), so that a few
dozen dimensions hold most of it. Queries are drawn like vectors. A neighbour of the tenth rank has a cosine of about
0.77 then, and a pair drawn by chance one of 0.02 +- 0.22; captions embedded by the bundled model have 0.83, and
0.07 +- 0.21.

The baseline is one matrix product with numpy and the best ten of it. A library alone is built as its manual says, and
searches as hard as it has to for a recall of 0.99 on the very queries that are timed. Ours choose how hard on queries
of their own. Before anything is timed, the hits of all are compared with the baseline's.
"""

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from onepeace.bench.comparison import short, take_turns
from onepeace.errors import need
from onepeace.index.approximate import AT, recall
from onepeace.index.exact import LARGEST, Neighbours, Scored
from onepeace.index.nearest import NEAREST, build

log = logging.getLogger(__name__)

BASELINE = "numpy"
TOPIC = 50
"""Vectors of a topic on average."""
SPREAD = 0.7
"""Deviation of a topic's vectors from its own, in deviations of the topics' from each other."""
QUERIES = 200
RECALL = 0.99
"""That the libraries alone have to reach."""
CLOSE = 1e-5
"""Between the score of a hit and its inner product."""

Search = Callable[[NDArray[np.float32], NDArray[np.bool_] | None], NDArray[np.int64]]
"""Queries (q, E), the mask of allowed rows (n,) -> the best ten rows of each (q, 10), -1 for none."""


def clustered(rows: int, dim: int, seed: int = 0) -> Iterator[NDArray[np.float32]]:
    """Unit vectors: (rows, dim), then (QUERIES, dim) as often as asked for, all of the same topics."""
    random = np.random.default_rng(seed)
    deviation = np.sqrt(1 / np.arange(1, dim + 1, dtype=np.float32))
    topics = random.standard_normal((max(1, rows // TOPIC), dim), dtype=np.float32) * deviation
    often = 1 / np.arange(1, len(topics) + 1)
    for count in itertools.chain([rows], itertools.repeat(QUERIES)):
        vectors = np.empty((count, dim), np.float32)
        for start in range(0, count, 1 << 16):
            part = vectors[start : start + (1 << 16)]
            random.standard_normal(out=part, dtype=np.float32)
            part *= SPREAD * deviation
            part += topics[random.choice(len(topics), len(part), p=often / often.sum())]
            part /= np.linalg.norm(part, axis=1, keepdims=True)
        yield vectors


def numpy_alone(vectors: NDArray[np.float32]) -> Search:
    """A product with all vectors, a partition for the best ten, and only these sorted."""

    def search(queries: NDArray[np.float32], mask: NDArray[np.bool_] | None) -> NDArray[np.int64]:
        scores = queries @ vectors.T
        if mask is not None:
            scores = np.where(mask, scores, -np.inf)
        best = np.argpartition(scores, -AT, axis=1)[:, -AT:]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1)
        return np.take_along_axis(best, order, axis=1)

    return search


def faiss_alone(factory: str, effort: str | None = None) -> Callable[..., Search]:
    """An index of FAISS's factory, in which "{lists}" stands for 4 times the square root of the vectors."""

    def made(vectors: NDArray[np.float32], reached: Callable[[Search], bool]) -> Search:
        faiss = need("faiss", "index")
        lists = max(1, round(4 * len(vectors) ** 0.5))
        index = faiss.index_factory(vectors.shape[1], factory.format(lists=lists), faiss.METRIC_INNER_PRODUCT)
        index.train(vectors)
        index.add(vectors)
        options: dict[str, Any] = {}
        kind = {"efSearch": faiss.SearchParametersHNSW, "nprobe": faiss.SearchParametersIVF}
        parameters = kind[effort] if effort else faiss.SearchParameters

        def search(queries: NDArray[np.float32], mask: NDArray[np.bool_] | None) -> NDArray[np.int64]:
            selector = None if mask is None else faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))
            return index.search(queries, AT, params=parameters(sel=selector, **options))[1]

        if effort:
            for power in range(3, 12):
                options[effort] = 1 << power
                if reached(search):
                    break
        return search

    return made


def usearch_alone(vectors: NDArray[np.float32], reached: Callable[[Search], bool]) -> Search:
    """An index of usearch with its own choices but for bfloat16, with which it stays below the recall asked for.

    It takes no filter.
    """
    index = need("usearch.index", "index").Index(ndim=vectors.shape[1], metric="ip", dtype="f32")
    index.add(np.arange(len(vectors)), vectors)

    def search(queries: NDArray[np.float32], mask: NDArray[np.bool_] | None) -> NDArray[np.int64]:
        return index.search(queries, AT).keys.reshape(len(queries), -1).astype(np.int64)

    for power in range(4, 12):
        index.expansion_search = 1 << power
        if reached(search):
            break
    return search


ALONE: dict[str, Callable[..., Search]] = {
    "faiss-flat-alone": faiss_alone("Flat"),
    "faiss-ivf-alone": faiss_alone("IVF{lists},Flat", "nprobe"),
    "faiss-hnsw-alone": faiss_alone("HNSW32", "efSearch"),
    "usearch-alone": usearch_alone,
}
EXACT = ("exact", "faiss-flat-alone")
UNFILTERED = ("usearch-alone",)


def bench_search(
    sizes: Sequence[int], dim: int, names: Sequence[str], shares: Sequence[float], seconds: float
) -> Iterator[dict[str, Any]]:
    """A row for each number of vectors, share of allowed ones (1 is no filter) and structure.

    Args:
        names: of `nearest.NEAREST` and `ALONE`.
        seconds: for everything of one size together.
    """
    if any("faiss" in name for name in names):
        need("faiss", "index").omp_set_num_threads(torch.get_num_threads())
    for size in sizes:
        made = clustered(size, dim)
        vectors, queries = next(made), next(made)
        samples = np.concatenate(list(itertools.islice(made, 3)))
        searches: dict[str, Search] = {BASELINE: numpy_alone(vectors)}
        built = {BASELINE: 0.0}
        truth = _scored(vectors, queries, searches[BASELINE](queries, None))

        def reached(search: Search, vectors: Any = vectors, queries: Any = queries, truth: Any = truth) -> bool:
            return recall(_scored(vectors, queries, search(queries, None)), truth) >= RECALL

        for name in names:
            log.info("%s, %d vectors ...", name, size)
            start = time.perf_counter()
            searches[name] = _ours(name, vectors, samples) if name in NEAREST else ALONE[name](vectors, reached)
            built[name] = time.perf_counter() - start
        masks = {share: None if share == 1 else np.random.default_rng(1).random(size) < share for share in shares}
        calls: dict[str, _Calls] = {}
        recalls: dict[str, float] = {}
        for share, mask in masks.items():
            taking = {name: search for name, search in searches.items() if mask is None or name not in UNFILTERED}
            recalls |= {_key(name, share): value for name, value in _recalls(vectors, queries, mask, taking).items()}
            calls |= {_key(name, share): _Calls(search, queries, mask) for name, search in taking.items()}
        take_turns(calls, seconds, torch.device("cpu"))
        medians = {key: call.latency()["p50"] for key, call in calls.items()}
        for share in shares:
            for name in searches:
                if (key := _key(name, share)) in calls:
                    unfiltered = medians.get(_key(name, 1))
                    yield {
                        "vectors": size,
                        "dim": dim,
                        "allowed": share,
                        "structure": name,
                        "seconds_to_build": built[name],
                        "recall_at_10": recalls[key],
                        **calls[key].latency(),
                        "time_over_numpy": medians[key] / medians[_key(BASELINE, share)],
                        "time_over_unfiltered": medians[key] / unfiltered if unfiltered else None,
                    }


def _key(name: str, share: float) -> str:
    return f"{name} {share:g}"


def _ours(name: str, vectors: NDArray[np.float32], samples: NDArray[np.float32]) -> Search:
    scored = Scored(vectors)
    structure = build(scored, name, samples)
    return lambda queries, mask: structure.search(queries, AT, mask).rows


class _Calls:
    """A search with the next query, each time it is called; keeps how long each call took."""

    def __init__(self, search: Search, queries: NDArray[np.float32], mask: NDArray[np.bool_] | None) -> None:
        self.search = search
        self.mask = mask
        self.queries = itertools.cycle(queries[:, None])
        self.times: list[tuple[float, float]] = []

    def __call__(self) -> None:
        query = next(self.queries)
        start = time.perf_counter(), time.process_time()
        self.search(query, self.mask)
        self.times.append((time.perf_counter() - start[0], time.process_time() - start[1]))

    def latency(self) -> dict[str, float]:
        """Of all calls but the first, in seconds; "cpu" is the time on the processor, without waiting for it."""
        elapsed, cpu = zip(*self.times[1:], strict=True)
        p50, p99 = (float(value) for value in np.percentile(elapsed, [50, 99]))
        return {"calls": len(elapsed), "p50": p50, "p99": p99, "cpu_p50": float(np.median(cpu))}


def _recalls(
    vectors: NDArray[np.float32],
    queries: NDArray[np.float32],
    mask: NDArray[np.bool_] | None,
    searches: Mapping[str, Search],
) -> dict[str, float]:
    """RuntimeError when a hit is not allowed, or an exact search does not find what the baseline finds."""
    found = {name: _scored(vectors, queries, search(queries, mask)) for name, search in searches.items()}
    recalls = {name: recall(hits, found[BASELINE]) for name, hits in found.items()}
    for name, hits in found.items():
        if mask is not None and not mask[hits.rows[hits.rows >= 0]].all():
            raise RuntimeError(f"{name} found vectors that are not allowed")
        if name in EXACT and recalls[name] < 1:
            raise RuntimeError(f"{name} found {recalls[name]} of what the product finds, not all")
    return recalls


def _scored(vectors: NDArray[np.float32], queries: NDArray[np.float32], rows: NDArray[np.int64]) -> Neighbours:
    """Hits with their inner products; those as close to the last of a query as rounding count as equal to it."""
    scores = np.einsum("qe,qke->qk", queries, vectors[rows]).astype(np.float32)
    scores = np.where(rows >= 0, np.round(scores / CLOSE) * np.float32(CLOSE), -LARGEST)
    return Neighbours(rows, scores)


def columns(row: Mapping[str, Any]) -> dict[str, str]:
    """A row for people."""
    filtered = row["time_over_unfiltered"]
    return {
        "vectors": str(row["vectors"]),
        "allowed": "all" if row["allowed"] == 1 else f"{row['allowed']:.0%}",
        "structure": row["structure"],
        "s to build": short(row["seconds_to_build"]),
        "ms, median": short(1e3 * row["p50"]),
        "ms, 99 %": short(1e3 * row["p99"]),
        "ms of CPU": short(1e3 * row["cpu_p50"]),
        "recall@10": f"{row['recall_at_10']:.3f}",
        "time / numpy": short(row["time_over_numpy"]),
        "time / unfiltered": short(filtered) if filtered else "",
    }
