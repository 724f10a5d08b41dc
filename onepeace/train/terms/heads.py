"""Terms that compare the outputs of a task head with targets of the samples: the base class, and terms with one output
row per item: a class, several classes, scored answers, a choice, a box."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from onepeace import losses
from onepeace.config.reader import Share
from onepeace.data.batch import Batch
from onepeace.device import upload
from onepeace.errors import UserError
from onepeace.model import Trained
from onepeace.train.passes import Passes
from onepeace.train.term import Term, TermContext, TermOptions, check_places, check_targets


@dataclass(frozen=True, kw_only=True)
class SupervisedOptions(TermOptions):
    """Options of a term that trains a head."""

    head: str = "classifier"
    """Head of the model, an entry of model.heads."""


S = TypeVar("S", bound=SupervisedOptions)


class Supervised(Term[S], Generic[S]):
    """Base class: the modalities are encoded together in one pass, and a head of the model reads the result.

    The head's ``labels`` name its classes. Subclasses define ``loss``, the mean over the items of the batch.
    """

    Options = SupervisedOptions
    target: ClassVar[str]
    """Name of the target."""
    task: ClassVar[str]
    """Task in the head's configuration (onepeace/embed/predict.py)."""
    num_outputs: ClassVar[int | None] = None
    """Number of outputs of a head without classes."""
    follows_pixels: ClassVar[bool] = False
    """Whether the target is a position in the picture, which rules out crops and flips."""
    scores_candidates: ClassVar[bool] = False
    """Whether an item has a row of outputs for each of its candidates, however many the head reads."""

    def __init__(self, options: S, model: Trained, prepared: Any = None):
        super().__init__(options, model)
        self.labels: Sequence[str] = model.config.heads[options.head].get("labels", ())
        self.number = {label: i for i, label in enumerate(self.labels)}

    @classmethod
    def check(cls, options: S, context: TermContext) -> None:
        head = check_head(options, context.config, "task", cls.task)
        for source in context.sources:
            if head["on"] not in (options.on or source.modalities):
                raise UserError(f"its head reads {head['on']}, which is not among the modalities", where=options.where)
        check_targets(options, [cls.target], context.sources)
        if cls.follows_pixels:
            check_places(options, cls.target, context.data, context.config)

    def outputs(self, passes: Passes) -> Any:
        """Outputs of the head for a part of the batch, a row per item, or per candidate.

        Raises:
            UserError: an item has another number of inputs than the head reads.
        """
        batch = passes.batch
        inputs = passes.model.config.heads[self.options.head].get("inputs", 1)
        if batch.rows != inputs and not self.scores_candidates:
            raise UserError(
                f"its head reads {inputs} for each item, and items of {batch.source} have {batch.rows} pictures, "
                f"sounds or candidates; set inputs of model.heads.{self.options.head}, or name other sources",
                where=self.options.where,
            )
        return passes.head(self.options.head, self.options.on or tuple(passes.keys))

    def number_of(self, label: Any, key: str) -> int:
        """Class number of a label; UserError that names the sample if the head has no such class."""
        if label not in self.number:
            raise UserError(f"{label!r} is not among the {len(self.labels)} labels of the head", where=key)
        return self.number[label]


def check_head(options: SupervisedOptions, config: Any, field: str, value: str) -> Mapping[str, Any]:
    """Options of the term's head; UserError if there is none, or if a field of it has another value."""
    heads = config.model.heads
    if options.head not in heads:
        raise UserError(f"{options.where} needs model.heads.{options.head}; known: {', '.join(heads) or 'none'}")
    actual = heads[options.head].get(field)
    if actual != value:
        raise UserError(f"{options.where} needs model.heads.{options.head}.{field}: {value}; it is {actual}")
    return heads[options.head]


def multi_hot(values: Sequence[Mapping[str, float]], number: Mapping[str, int]) -> Tensor:
    """Scores (B, C) of classes by name; other names, such as rare answers in VQA, are ignored."""
    scores = torch.zeros(len(values), len(number))
    for row, named in enumerate(values):
        for name, score in named.items():
            if name in number:
                scores[row, number[name]] = float(score)
    return scores


@dataclass(frozen=True, kw_only=True)
class ClassificationOptions(SupervisedOptions):
    label_smoothing: Share = 0.0


class Classification(Supervised[ClassificationOptions]):
    """One of several classes (ImageNet, VGGSound, ESC-50, NLVR2): cross entropy with the target "label"."""

    Options = ClassificationOptions
    target = "label"
    task = "label"

    def loss(self, outputs: Tensor, batch: Batch, model: Trained) -> dict[str, Tensor]:
        labels = zip(batch.targets[self.target], batch.keys, strict=True)
        numbers = torch.tensor([self.number_of(label, key) for label, key in labels])
        target = upload(numbers, outputs.device)
        return {self.options.name: losses.classification(outputs, target, self.options.label_smoothing)}


class MultiLabel(Supervised[SupervisedOptions]):
    """Any number of classes (FSD50K): binary cross entropy of each; the target "labels" is a list of class names."""

    target = "labels"
    task = "labels"

    def loss(self, outputs: Tensor, batch: Batch, model: Trained) -> dict[str, Tensor]:
        score_by_label = []
        for labels, key in zip(batch.targets[self.target], batch.keys, strict=True):
            for label in labels:
                self.number_of(label, key)
            score_by_label.append(dict.fromkeys(labels, 1.0))
        scores = multi_hot(score_by_label, self.number)
        return {self.options.name: losses.multilabel(outputs, upload(scores, outputs.device))}


class Answers(Supervised[SupervisedOptions]):
    """Answers with soft scores (VQAv2): binary cross entropy of each; the target "answers" has scores by answer;
    answers that are not classes of the head are ignored."""

    target = "answers"
    task = "answer"

    def loss(self, outputs: Tensor, batch: Batch, model: Trained) -> dict[str, Tensor]:
        scores = multi_hot(batch.targets[self.target], self.number)
        return {self.options.name: losses.multilabel(outputs, upload(scores, outputs.device))}


class Choice(Supervised[SupervisedOptions]):
    """One of several candidate answers, each scored on its own (AVQA): hinge loss; the target "choice" is the index of
    the right candidate.

    ``candidates`` of the source is the template for a question and a candidate.
    """

    target = "choice"
    task = "choice"
    num_outputs = 1
    scores_candidates = True

    @classmethod
    def check(cls, options: SupervisedOptions, context: TermContext) -> None:
        super().check(options, context)
        for source in context.sources:
            if source.candidates is None:
                raise UserError(
                    f"{options.where} needs candidates of {source.shards}, a sentence with {{text}} and {{candidate}}"
                )

    def loss(self, outputs: Tensor, batch: Batch, model: Trained) -> dict[str, Tensor]:
        scores = outputs.view(-1, batch.rows)
        for choice, key in zip(batch.targets[self.target], batch.keys, strict=True):
            if not 0 <= choice < batch.rows:
                raise UserError(f"choice {choice} is not the number of one of {batch.rows} candidates", where=key)
        choices = upload(torch.tensor(batch.targets[self.target]), scores.device)
        return {self.options.name: losses.hinge(scores, choices)}


class Box(Supervised[SupervisedOptions]):
    """Region of a picture that a text refers to (RefCOCO): L1 and generalised IoU; the target "box" is
    [x0, y0, x1, y1], relative to the picture."""

    target = "box"
    task = "box"
    num_outputs = 4
    follows_pixels = True

    def loss(self, outputs: Tensor, batch: Batch, model: Trained) -> dict[str, Tensor]:
        boxes = torch.tensor(batch.targets[self.target], dtype=torch.float32)
        return {self.options.name: losses.box(outputs, upload(boxes, outputs.device))}
