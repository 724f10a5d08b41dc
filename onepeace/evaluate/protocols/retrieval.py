"""Retrieval of items of one modality by texts, and of texts by items."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onepeace.evaluate.metrics import Figure, best_ranks, chance_recall, hits
from onepeace.evaluate.protocols.protocol import BLOCK, EvaluationProtocol, check_at, encode


@dataclass(frozen=True, kw_only=True)
class Retrieval(EvaluationProtocol):
    """Recall at k in both directions: a query is a hit if one of its right candidates is among the first k.

    This equals the recall of CLIP_benchmark and the hit rate of mteb, except for equal scores, which here count against
    the model.
    """

    at: tuple[int, ...] = (1, 5, 10)
    """The k of the recalls."""
    texts: Literal["captions", "names"] = "captions"
    """Texts of the search. "captions": each caption is a separate query and belongs only to its item, even if another
    item has the same caption (Flickr8k, COCO). "names": the first caption of an item is its name; each distinct
    name is one query, and every item of that name is right (emoji: one name, several drawings)."""

    def __post_init__(self) -> None:
        check_at(self.at)

    def run(self, embedder: Any, root: Path) -> list[Figure]:
        samples = self.read(root, "text")
        if self.texts == "names":
            texts = list(dict.fromkeys(sample.captions[0] for sample in samples))
            text_ids = list(range(len(texts)))
            number = dict(zip(texts, text_ids, strict=True))
            item_ids = [number[sample.captions[0]] for sample in samples]
        else:
            texts = [caption for sample in samples for caption in sample.captions]
            text_ids = [i for i, sample in enumerate(samples) for _ in sample.captions]
            item_ids = list(range(len(samples)))
        items, vectors = self.encode(embedder, samples), encode(embedder, "text", texts)
        return [
            *recalls(f"text to {self.modality}", vectors, items, text_ids, item_ids, self.at),
            *recalls(f"{self.modality} to text", items, vectors, item_ids, text_ids, self.at),
        ]


def recalls(
    name: str,
    queries: NDArray,
    candidates: NDArray,
    query_ids: ArrayLike,
    candidate_ids: ArrayLike,
    at: tuple[int, ...],
) -> list[Figure]:
    """The recall in one direction for each k of ``at``.

    Args:
        queries, candidates: vectors (N, E) and (M, E).
        query_ids, candidate_ids: (N,) and (M,); a candidate is correct when the ids are equal.
    """
    query_ids, candidate_ids = np.asarray(query_ids), np.asarray(candidate_ids)
    blocks = [slice(start, start + BLOCK) for start in range(0, len(queries), BLOCK)]
    ranks = np.concatenate([best_ranks(queries[b] @ candidates.T, query_ids[b], candidate_ids) for b in blocks])
    return [Figure.mean_of(f"{name} R@{k}", hits(ranks, k), chance_recall(query_ids, candidate_ids, k)) for k in at]
