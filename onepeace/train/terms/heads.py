"""Terms of task heads with one row of outputs for each item: a class, several, scored answers, a choice, a box."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from onepeace import losses
from onepeace.data.batch import Batch
from onepeace.errors import UserError
from onepeace.model import Trained
from onepeace.train.supervised import Supervised, SupervisedOptions, multi_hot

if TYPE_CHECKING:
    from onepeace.config import Config
    from onepeace.train.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class ClassificationOptions(SupervisedOptions):
    label_smoothing: float = 0.0


class Classification(Supervised[ClassificationOptions]):
    """One class of several (ImageNet, VGGSound, ESC-50, NLVR2): cross entropy of the target "label"."""

    Options = ClassificationOptions
    target = "label"
    task = "label"

    def head_loss(self, outputs: Tensor, batch: Batch, model: Trained) -> Tensor:
        numbers = [self.number_of(label, key) for label, key in zip(self.values(batch), batch.keys, strict=True)]
        return losses.classification(
            outputs, torch.tensor(numbers, device=outputs.device), self.options.label_smoothing
        )


class MultiLabel(Supervised[SupervisedOptions]):
    """Any number of classes (FSD50K): binary cross entropy of each; the target "labels" is a list of class names."""

    target = "labels"
    task = "labels"

    def head_loss(self, outputs: Tensor, batch: Batch, model: Trained) -> Tensor:
        for labels, key in zip(self.values(batch), batch.keys, strict=True):
            for label in labels:
                self.number_of(label, key)
        scores = multi_hot([dict.fromkeys(labels, 1.0) for labels in self.values(batch)], self.number)
        return losses.multilabel(outputs, scores.to(outputs.device))


class Answers(Supervised[SupervisedOptions]):
    """Answers with soft scores (VQAv2): binary cross entropy of each; the target "answers" gives the score of each
    answer. Those that are no class of the head are left out, as rare answers of VQAv2 are."""

    target = "answers"
    task = "answer"

    def head_loss(self, outputs: Tensor, batch: Batch, model: Trained) -> Tensor:
        return losses.multilabel(outputs, multi_hot(self.values(batch), self.number).to(outputs.device))


class Choice(Supervised[SupervisedOptions]):
    """One of several candidate answers, each scored on its own (AVQA): hinge loss; the target "choice" is the number of
    the right one of a sample's candidates.

    The source says by ``candidates`` how a question and a candidate become one text.
    """

    target = "choice"
    task = "choice"
    num_outputs = 1

    @classmethod
    def check(cls, options: SupervisedOptions, recipe: "Recipe", config: "Config") -> None:
        super().check(options, recipe, config)
        if bare := [source for source in recipe.feeding(options) if source.candidates is None]:
            raise UserError(
                f"{options.where} needs candidates of {bare[0].shards}, a sentence with {{text}} and {{candidate}}"
            )

    def head_loss(self, outputs: Tensor, batch: Batch, model: Trained) -> Tensor:
        scores = outputs.view(-1, batch.rows)
        for choice, key in zip(self.values(batch), batch.keys, strict=True):
            if not 0 <= choice < batch.rows:
                raise UserError(f"{key}: choice {choice} is not the number of one of {batch.rows} candidates")
        return losses.hinge(scores, torch.tensor(self.values(batch), device=scores.device))


class Box(Supervised[SupervisedOptions]):
    """A region of a picture that words speak of (RefCOCO): L1 and generalised IoU; the target "box" is
    [x0, y0, x1, y1], relative to the picture."""

    target = "box"
    task = "box"
    num_outputs = 4
    follows_pixels = True

    def head_loss(self, outputs: Tensor, batch: Batch, model: Trained) -> Tensor:
        return losses.box(outputs, torch.tensor(self.values(batch), dtype=torch.float32, device=outputs.device))
