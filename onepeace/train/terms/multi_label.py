"""Any number of classes: several labels per item (FSD50K), or scores of answers (VQAv2)."""

from torch import Tensor

from onepeace import losses
from onepeace.data.batch import Batch
from onepeace.model import Trained
from onepeace.train.supervised import Supervised, SupervisedOptions, multi_hot


class MultiLabel(Supervised[SupervisedOptions]):
    """Binary cross entropy of each class; the target "labels" is a list of class names."""

    target = "labels"
    task = "labels"

    def head_loss(self, outputs: Tensor, batch: Batch, model: Trained) -> Tensor:
        for labels, key in zip(self.values(batch), batch.keys, strict=True):
            for label in labels:
                self.number_of(label, key)
        scores = multi_hot([dict.fromkeys(labels, 1.0) for labels in self.values(batch)], self.number)
        return losses.multilabel(outputs, scores.to(outputs.device))


class Answers(Supervised[SupervisedOptions]):
    """Binary cross entropy with soft scores; the target "answers" gives the score of each answer. Answers
    that are no class of the head are left out, as rare answers of VQAv2 are."""

    target = "answers"
    task = "answer"

    def head_loss(self, outputs: Tensor, batch: Batch, model: Trained) -> Tensor:
        return losses.multilabel(outputs, multi_hot(self.values(batch), self.number).to(outputs.device))
