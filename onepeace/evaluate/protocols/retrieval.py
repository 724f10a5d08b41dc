"""Retrieval: items of one modality and texts search for each other. Re-ranking is here too, as nothing else uses it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onepeace.errors import UserError
from onepeace.evaluate.metrics import Figure, best_ranks, chance_recall, recall_at
from onepeace.evaluate.protocols.protocol import EvaluationProtocol, check_at, encode

BLOCK = 1024
"""Queries scored at once: bounds the memory of a large test set."""

Rescore = Callable[[NDArray], NDArray]
"""Scores (n, M) of any n of the queries against all candidates -> the scores to rank by, same shape."""


@dataclass(frozen=True, kw_only=True)
class Retrieval(EvaluationProtocol):
    """Recall at k in both directions: a query is a hit when one of its candidates is among the first k."""

    at: tuple[int, ...] = (1, 5, 10)
    """The k of the recalls."""
    texts: Literal["captions", "names"] = "captions"
    """What a text is. "captions": each caption is a query of its own and belongs to its item alone, even when another
    item has the same caption (Flickr8k, COCO). "names": the first caption of an item is its name; each distinct name is
    one query, and every item of that name is right (emoji: one name, several drawings)."""
    rerank: tuple[str, ...] = ()
    """Methods of RERANKERS, each with figures of its own beside the plain ones."""
    rerank_scale: float = 100.0
    """Factor on the similarities in a re-ranking's softmax; to be fixed, not tuned on the set."""

    def __post_init__(self) -> None:
        check_at(self.at)
        if unknown := [method for method in self.rerank if method not in RERANKERS]:
            raise UserError(f"rerank has {unknown[0]!r}; known: {', '.join(RERANKERS)}")
        if not self.rerank_scale > 0:
            raise UserError(f"rerank_scale is {self.rerank_scale}; it should be above 0")

    def run(self, embedder: Any, root: Path) -> list[Figure]:
        samples = self.read(root, "text")
        if self.texts == "names":
            names = [sample.captions[0] for sample in samples]
            texts = list(dict.fromkeys(names))
            text_ids = list(range(len(texts)))
            numbers = dict(zip(texts, text_ids, strict=True))
            item_ids = [numbers[name] for name in names]
        else:
            texts = [caption for sample in samples for caption in sample.captions]
            text_ids = [i for i, sample in enumerate(samples) for _ in sample.captions]
            item_ids = list(range(len(samples)))
        items = self.encode(embedder, samples)
        captions = encode(embedder, "text", texts)
        return [
            *self.recalls(f"text to {self.modality}", captions, items, text_ids, item_ids),
            *self.recalls(f"{self.modality} to text", items, captions, item_ids, text_ids),
        ]

    def recalls(
        self, name: str, queries: NDArray, candidates: NDArray, query_ids: ArrayLike, candidate_ids: ArrayLike
    ) -> list[Figure]:
        """The recalls of one direction, plain and by each re-ranking.

        Args:
            queries, candidates: vectors (N, E) and (M, E).
            query_ids, candidate_ids: (N,) and (M,); a candidate is correct when the ids are equal.
        """
        query_ids, candidate_ids = np.asarray(query_ids), np.asarray(candidate_ids)
        rescores: dict[str, Rescore] = {"": lambda scores: scores}
        for method in self.rerank:
            rescores[f" ({method.replace('_', ' ')})"] = RERANKERS[method](queries, candidates, self.rerank_scale)
        figures = []
        for suffix, rescore in rescores.items():
            blocks = [slice(i, i + BLOCK) for i in range(0, len(queries), BLOCK)]
            ranks = [best_ranks(rescore(queries[b] @ candidates.T), query_ids[b], candidate_ids) for b in blocks]
            figures += [
                Figure(f"{name} R@{k}{suffix}", value, chance_recall(query_ids, candidate_ids, k), len(queries))
                for k, value in recall_at(np.concatenate(ranks), self.at).items()
            ]
        return figures


def dual_softmax(queries: NDArray, candidates: NDArray, scale: float) -> Rescore:
    """Multiply each similarity by its candidate's softmax over the queries (CAMoE, arXiv 2109.04290).

    A candidate that is near to many queries divides its weight among them, so that a hub no longer tops every list.
    The figures are not those of a search: each query is ranked with the help of all other queries, which someone who
    asks a single question does not have. As published, a negative similarity stays negative and a smaller weight
    raises it.

    Args:
        queries, candidates: vectors (N, E) and (M, E).
        scale: factor on the similarities in the softmax, the inverse of a temperature.
    """
    double = np.float64  # in float32 the small weights would be 0, and equal
    blocks = [candidates[i : i + BLOCK] for i in range(0, len(candidates), BLOCK)]
    sums = np.concatenate([np.logaddexp.reduce(scale * (queries @ b.T).astype(double), axis=0) for b in blocks])
    return lambda scores: scores * np.exp(scale * scores.astype(double) - sums)


RERANKERS: dict[str, Callable[[NDArray, NDArray, float], Rescore]] = {"dual_softmax": dual_softmax}
"""Ways to rank again what a search has found, given every query of the set."""
