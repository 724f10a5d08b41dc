"""Retrieval: items of one modality and texts search for each other."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onepeace.evaluate.metrics import (
    Figure,
    average_precisions,
    best_ranks,
    chance_average_precision,
    chance_rank,
    chance_recall,
    hits,
    numbers_correct,
    recall_at,
)
from onepeace.evaluate.protocols.protocol import BLOCK, EvaluationProtocol, check_at, encode


@dataclass(frozen=True, kw_only=True)
class Retrieval(EvaluationProtocol):
    """Recall at k in both directions: a query is a hit when one of its candidates is among the first k.

    That is the recall of CLIP_benchmark and the hit rate of mteb, but for equal scores, which here count against the
    model.
    """

    at: tuple[int, ...] = (1, 5, 10)
    """The k of the recalls."""
    map_at: tuple[int, ...] = ()
    """The k of mean average precisions (mAP@10 is usual for sounds), as trec_eval and mteb have them."""
    median_rank: bool = False
    """Whether to measure the median rank of the best right candidate too, 1 at best."""
    texts: Literal["captions", "names"] = "captions"
    """Texts that are searched. "captions": each caption is a query of its own and belongs to its item alone, even when
    another item has the same caption (Flickr8k, COCO). "names": the first caption of an item is its name; each distinct
    name is one query, and every item of that name is right (emoji: one name, several drawings)."""
    other: str = "text"
    """Another modality in place of texts: each item belongs to what its own sample has of it."""
    one_caption: bool = False
    """Whether the first caption of each item alone takes part: as many texts as items, one right answer each."""

    def __post_init__(self) -> None:
        check_at((*self.at, *self.map_at))

    def run(self, embedder: Any, root: Path) -> list[Figure]:
        samples = self.read(root, self.other)
        if self.other != "text":
            others = encode(embedder, self.other, [sample.inputs[self.other] for sample in samples])
            items, numbers = self.encode(embedder, samples), list(range(len(samples)))
            return [
                *self.figures(f"{self.other} to {self.modality}", others, items, numbers, numbers),
                *self.figures(f"{self.modality} to {self.other}", items, others, numbers, numbers),
            ]
        if self.texts == "names":
            names = [sample.captions[0] for sample in samples]
            texts = list(dict.fromkeys(names))
            text_ids = list(range(len(texts)))
            number = dict(zip(texts, text_ids, strict=True))
            item_ids = [number[name] for name in names]
        else:
            chosen = [sample.captions[:1] if self.one_caption else sample.captions for sample in samples]
            texts = [caption for captions in chosen for caption in captions]
            text_ids = [i for i, captions in enumerate(chosen) for _ in captions]
            item_ids = list(range(len(samples)))
        items = self.encode(embedder, samples)
        vectors = encode(embedder, "text", texts)
        return [
            *self.figures(f"text to {self.modality}", vectors, items, text_ids, item_ids),
            *self.figures(f"{self.modality} to text", items, vectors, item_ids, text_ids),
        ]

    def figures(
        self, name: str, queries: NDArray, candidates: NDArray, query_ids: ArrayLike, candidate_ids: ArrayLike
    ) -> list[Figure]:
        """The figures of one direction.

        Args:
            queries, candidates: vectors (N, E) and (M, E).
            query_ids, candidate_ids: (N,) and (M,); a candidate is correct when the ids are equal.
        """
        query_ids, candidate_ids = np.asarray(query_ids), np.asarray(candidate_ids)
        ranks, precisions = self._blocks(queries, candidates, query_ids, candidate_ids)
        figures, n = [], len(queries)
        for k, value in recall_at(ranks, self.at).items():
            chance = chance_recall(query_ids, candidate_ids, k)
            figures.append(Figure(f"{name} R@{k}", value, chance, n, hits(ranks, k)))
        for k, values in precisions.items():
            chance = chance_average_precision(*numbers_correct(query_ids, candidate_ids), k)
            figures.append(Figure(f"{name} mAP@{k}", float(values.mean()), chance, n, tuple(values.tolist())))
        if self.median_rank:
            value, chance = float(np.median(ranks)), chance_rank(query_ids, candidate_ids)
            figures.append(Figure(f"{name} median rank", value, chance, n, tuple(ranks.tolist()), "median"))
        return figures

    def _blocks(
        self, queries: NDArray, candidates: NDArray, query_ids: NDArray, candidate_ids: NDArray
    ) -> tuple[NDArray, dict[int, NDArray]]:
        """The ranks (N,), and for each k of `map_at` the average precisions (N,), scored block by block."""
        ranks: list[NDArray] = []
        precisions: dict[int, list[NDArray]] = {k: [] for k in self.map_at}
        for start in range(0, len(queries), BLOCK):
            ids = query_ids[start : start + BLOCK]
            scores = queries[start : start + BLOCK] @ candidates.T
            ranks.append(best_ranks(scores, ids, candidate_ids))
            for k, found in precisions.items():
                found.append(average_precisions(scores, ids[:, None] == candidate_ids, k))
        return np.concatenate(ranks), {k: np.concatenate(found) for k, found in precisions.items()}
