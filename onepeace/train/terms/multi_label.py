"""Any number of classes: several labels per item (FSD50K), or scores of answers (VQAv2)."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from onepeace import losses
from onepeace.data.batch import Batch
from onepeace.model import OnePeace
from onepeace.train.terms.supervised import Supervised, multi_hot


class MultiLabel(Supervised):
    """``multi_label/audio``: binary cross entropy of each class; the target "labels" is a list of class names."""

    target = "labels"
    task = "labels"

    @classmethod
    def labels_in(cls, value: Any) -> Iterable[str]:
        return value

    @classmethod
    def example_value(cls, labels: Sequence[str]) -> list[str]:
        return []

    def head_loss(self, outputs: Tensor, batch: Batch, model: OnePeace) -> Tensor:
        for labels, key in zip(self.values(batch), batch.keys, strict=True):
            for label in labels:
                self.number_of(label, key)
        scores = multi_hot([dict.fromkeys(labels, 1.0) for labels in self.values(batch)], self.number)
        return losses.multilabel(outputs, scores.to(outputs.device))


class Answers(Supervised):
    """``answers/image+text``: the same with soft scores; the target "answers" gives the score of each answer. Answers
    that are no class of the head are left out, as rare answers of VQAv2 are."""

    target = "answers"
    task = "answer"

    @classmethod
    def labels_in(cls, value: Any) -> Iterable[str]:
        return value

    @classmethod
    def example_value(cls, labels: Sequence[str]) -> dict[str, float]:
        return {}

    def head_loss(self, outputs: Tensor, batch: Batch, model: OnePeace) -> Tensor:
        return losses.multilabel(outputs, multi_hot(self.values(batch), self.number).to(outputs.device))
