"""Retrieval in both directions between texts and items of one other modality. Next: zero_shot.py.

The embedder comes as an argument: anything with encode_text and encode_<modality>, each of which takes a list and
returns (n, E) unit vectors in its order.
"""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onepeace.evaluate.metrics import Figure, as_array, best_ranks, chance_recall, recall_at
from onepeace.evaluate.rerank import RERANKERS, Rescore

BLOCK = 1024
"""Queries scored at once: bounds the memory of a large test set."""


def retrieval(
    embedder: Any,
    items: Sequence[Any],
    texts: Sequence[str],
    *,
    item_ids: Sequence[Hashable],
    text_ids: Sequence[Hashable],
    modality: str = "image",
    at: Sequence[int] = (1, 5, 10),
    rerank: Sequence[str] = (),
    rerank_scale: float = 100.0,
) -> list[Figure]:
    """Recall at each k of `at`, text to item and item to text.

    A text and an item belong together when their ids are equal; a query is a hit when any candidate that belongs to it
    is among the first k. Each method of RERANKERS named in `rerank` adds its own figures, made with `rerank_scale`.
    """
    item_vectors = encode(embedder, modality, items)
    text_vectors = encode(embedder, "text", texts)
    texts_of, items_of = _numbers(text_ids, item_ids)
    figures = []
    for name, queries, candidates, query_ids, candidate_ids in (
        (f"text to {modality}", text_vectors, item_vectors, texts_of, items_of),
        (f"{modality} to text", item_vectors, text_vectors, items_of, texts_of),
    ):
        rescores: dict[str, Rescore] = {"": lambda scores: scores}
        for method in rerank:
            rescore = RERANKERS[method](queries, candidates, rerank_scale, BLOCK)
            rescores[f" ({method.replace('_', ' ')})"] = rescore
        for suffix, rescore in rescores.items():
            ranks = _ranks(queries, candidates, query_ids, candidate_ids, rescore)
            figures += [
                Figure(f"{name} R@{k}{suffix}", value, chance_recall(query_ids, candidate_ids, k), len(queries))
                for k, value in recall_at(ranks, at).items()
            ]
    return figures


def encode(embedder: Any, modality: str, items: Sequence[Any]) -> NDArray:
    """The embedder's vectors (n, E) of one modality as a numpy array; an output of another shape is a ValueError."""
    vectors = as_array(getattr(embedder, f"encode_{modality}")(list(items)))
    if vectors.ndim != 2 or len(vectors) != len(items):
        raise ValueError(f"encode_{modality} returned {vectors.shape} for {len(items)} items; expected (items, width)")
    return vectors


def _ranks(
    queries: NDArray, candidates: NDArray, query_ids: NDArray, candidate_ids: NDArray, rescore: Rescore
) -> NDArray[np.int64]:
    return np.concatenate(
        [
            best_ranks(rescore(queries[i : i + BLOCK] @ candidates.T), query_ids[i : i + BLOCK], candidate_ids)
            for i in range(0, len(queries), BLOCK)
        ]
    )


def _numbers(*ids: Sequence[Hashable]) -> list[NDArray[np.int64]]:
    """The ids as integers, equal where they are equal."""
    number: dict[Hashable, int] = {}
    return [np.array([number.setdefault(i, len(number)) for i in group], dtype=np.int64) for group in ids]
