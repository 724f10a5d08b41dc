"""Retrieval of items of one modality by texts, and of texts by items."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from onepeace.config.reader import Count
from onepeace.data.sample import Sample
from onepeace.evaluate.protocols.protocol import EvaluationProtocol, Items, encode
from onepeace.evaluate.ranking import Ranking, groups_of, names_of, search
from onepeace.index.groups import connected


@dataclass(frozen=True, kw_only=True)
class Retrieval(EvaluationProtocol):
    """Recall at k in both directions: a query is a hit if one of its right candidates is among the first k.

    This equals the recall of CLIP_benchmark and the hit rate of mteb, except for equal scores, which here count against
    the model.
    """

    at: tuple[Count, ...] = (1, 5, 10)
    """The k of the recalls."""
    texts: Literal["captions", "names", "distinct"] = "captions"
    """Texts of the search. "captions": each caption is a separate query and belongs only to its item, even if another
    item has the same caption (Flickr8k, COCO). "names": the first caption of an item is its name; each distinct
    name is one query, and every item of that name is right (emoji: one name, several drawings). "distinct": each
    distinct caption is one query, and every item that has it is right."""
    other: str = "text"
    """Modality of the texts; another one for files of it in the same samples."""

    @property
    def sides(self) -> tuple[Items, ...]:
        return (self,) if self.other == "text" else (self, self.of(self.other))

    def run(self, embedder: Any, root: Path) -> list[Ranking]:
        samples = self.read(root, self.other)
        texts, items_of_text = self._texts(samples)
        texts_of_item: list[list[int]] = [[] for _ in samples]
        for text, items in enumerate(items_of_text):
            for item in items:
                texts_of_item[item].append(text)
        item_vectors = self.encode(embedder, samples)
        text_vectors = encode(embedder, self.other, texts)
        groups = groups_of(samples)
        names = names_of(samples)
        names_of_texts = []
        for text, items in zip(texts, items_of_text, strict=True):
            names_of_texts.append(text if isinstance(text, str) else names[items[0]])
        return [
            search(
                text_vectors,
                item_vectors,
                items_of_text,
                metric=f"{self.other} to {self.modality} R@{{k}}",
                at=self.at,
                groups=_groups_of_texts(items_of_text, groups),
                names=names_of_texts,
            ),
            search(
                item_vectors,
                text_vectors,
                texts_of_item,
                metric=f"{self.modality} to {self.other} R@{{k}}",
                at=self.at,
                groups=groups,
                names=names,
            ),
        ]

    def _texts(self, samples: Sequence[Sample]) -> tuple[list[Any], list[list[int]]]:
        """The texts, and the numbers of the items that are right for each."""
        pairs: list[tuple[Any, int]] = []
        for number, sample in enumerate(samples):
            texts = sample.captions if self.other == "text" else [sample.read(self.other)]
            pairs += [(text, number) for text in (texts[:1] if self.texts == "names" else texts)]
        if self.texts == "captions":
            return [text for text, _ in pairs], [[number] for _, number in pairs]
        items_of_text: dict[Any, list[int]] = {}
        for text, number in dict.fromkeys(pairs):
            items_of_text.setdefault(text, []).append(number)
        return list(items_of_text), list(items_of_text.values())


def _groups_of_texts(items_of_text: Sequence[Sequence[int]], groups: Sequence[int]) -> list[int]:
    """The group of each text, given those of the items; groups with a text in common are one."""
    distinct, group_of_item = np.unique(groups, return_inverse=True)
    groups_of_text = [group_of_item[list(items)].tolist() for items in items_of_text]
    pairs = [(first, group) for first, *others in groups_of_text for group in others]
    joined = {}
    for number, members in enumerate(connected(len(distinct), pairs)):
        joined.update(dict.fromkeys(members, number))
    return [joined[first] for first, *_ in groups_of_text]
