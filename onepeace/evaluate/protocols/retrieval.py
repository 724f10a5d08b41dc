"""Retrieval of items of one modality by texts, and of texts by items."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from numpy.typing import ArrayLike, NDArray

from onepeace.data.sample import Sample
from onepeace.evaluate.metrics import Figure, chance_recall, hits
from onepeace.evaluate.protocols.protocol import EvaluationProtocol, check_at, encode, ranks_of


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
            texts, text_ids, item_ids = _names(samples)
        else:
            texts, text_ids, item_ids = _captions(samples)
        items = self.encode(embedder, samples)
        vectors = encode(embedder, "text", texts)
        return [
            *recalls(f"text to {self.modality}", vectors, items, text_ids, item_ids, self.at),
            *recalls(f"{self.modality} to text", items, vectors, item_ids, text_ids, self.at),
        ]


def _names(samples: Sequence[Sample]) -> tuple[list[str], list[int], list[int]]:
    """The distinct names, their ids, and the id of each sample's name."""
    name_ids: dict[str, int] = {}
    item_ids = []
    for sample in samples:
        name = sample.captions[0]
        item_ids.append(name_ids.setdefault(name, len(name_ids)))
    return list(name_ids), list(name_ids.values()), item_ids


def _captions(samples: Sequence[Sample]) -> tuple[list[str], list[int], list[int]]:
    """All captions, the id of each caption's sample, and the ids of the samples."""
    texts = []
    text_ids = []
    for number, sample in enumerate(samples):
        for caption in sample.captions:
            texts.append(caption)
            text_ids.append(number)
    return texts, text_ids, list(range(len(samples)))


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
    ranks = ranks_of(queries, candidates, query_ids, candidate_ids)
    figures = []
    for k in at:
        chance = chance_recall(query_ids, candidate_ids, k)
        figures.append(Figure.mean_of(f"{name} R@{k}", hits(ranks, k), chance))
    return figures
