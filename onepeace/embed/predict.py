"""Task heads: from items to labels, an answer, a box, a choice, or the results of heads of your own (tasks.py).

Items are decoded ahead in threads and computed in batches; results come in order, failures as values.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from onepeace.device import memory_remedy
from onepeace.embed.base import LoadedModel
from onepeace.embed.classify import ClassifiedFiles
from onepeace.embed.items import check_many, composed, name_of, reason_of
from onepeace.errors import UsageError, UserError
from onepeace.files.drawing import with_box
from onepeace.files.source import describe
from onepeace.files.walk import FoundFile
from onepeace.processors import ImageProcessor
from onepeace.threads import batch_per_worker, compute_ahead, decode_ahead

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Context:
    """Facts about an item that its result needs in addition to the head's output."""

    labels: Sequence[str] = ()
    """Class names of the head; numbers where the model has none (released checkpoints)."""
    size: tuple[int, int] = (1, 1)
    """Width and height of the picture in pixels."""
    candidates: Sequence[str] = ()
    """The answers to choose from."""
    seconds_per_token: float = 0.0
    """Seconds between two tokens of a sound."""
    num_tokens: int = 0
    """Tokens of a sound, without padding."""
    top: int = 5
    """Number of classes in the result."""


def ranked(scores: Tensor, context: Context) -> list[dict[str, Any]]:
    """The best classes with their scores."""
    best_scores, numbers = scores.topk(min(context.top, len(scores)))
    classes = []
    for score, number in zip(best_scores.tolist(), numbers.tolist(), strict=True):
        classes.append({"label": context.labels[number], "score": score})
    return classes


def label(output: Tensor, context: Context) -> dict[str, Any]:
    """Logits (1, C) of mutually exclusive classes: probabilities that sum to 1."""
    return {"labels": ranked(output[0].softmax(0), context)}


def labels(output: Tensor, context: Context) -> dict[str, Any]:
    """Logits (1, C) of independent classes: a probability for each."""
    return {"labels": ranked(output[0].sigmoid(), context)}


def answer(output: Tensor, context: Context) -> dict[str, Any]:
    """Logits (1, C) of answers to a question."""
    answers = ranked(output[0].sigmoid(), context)
    return {"answer": answers[0]["label"], "score": answers[0]["score"], "answers": answers}


def box(output: Tensor, context: Context) -> dict[str, Any]:
    """Logits (1, 4) of a box: its corners [x0, y0, x1, y1] in pixels of the picture (released code)."""
    width, height = context.size
    corners = output[0].sigmoid() * torch.tensor([width, height, width, height])
    return {"box": corners.tolist()}


def choice(output: Tensor, context: Context) -> dict[str, Any]:
    """Scores (N, 1) of N candidate answers."""
    scores = output[:, 0]
    best = int(scores.argmax())
    return {"choice": context.candidates[best], "number": best, "scores": scores.tolist()}


@dataclass(frozen=True)
class Task:
    """Meaning of a head's output for one item, and how it is shown."""

    result: Callable[[Tensor, Context], dict[str, Any]]
    """The output as JSON-serialisable values; a "mask" may be an array."""
    cell: Callable[[Mapping[str, Any]], str]
    """The result as a cell of a table."""
    column: str = "label"
    """Title of the table's column."""
    draw: "Callable[[Image.Image, Mapping[str, Any], str, Sequence[str]], Image.Image] | None" = None
    """The picture with the result drawn over it, given the text of the item and the labels of the head."""
    needs_size: bool = False
    """Whether the result needs the size of the picture in pixels (`Context.size`)."""


def labels_cell(result: Mapping[str, Any]) -> str:
    """Labels with their scores."""
    return ", ".join(f"{entry['label']} {entry['score']:.2f}" for entry in result["labels"])


def _answer_cell(result: Mapping[str, Any]) -> str:
    return f"{result['answer']} {result['score']:.2f}"


def _box_cell(result: Mapping[str, Any]) -> str:
    return ", ".join(f"{corner:.0f}" for corner in result["box"])


def _choice_cell(result: Mapping[str, Any]) -> str:
    return str(result["choice"])


def _with_box(picture: "Image.Image", result: Mapping[str, Any], text: str, labels: Sequence[str]) -> "Image.Image":
    return with_box(picture, result["box"], text)


TASKS: dict[str, Task] = {
    "label": Task(label, labels_cell),
    "labels": Task(labels, labels_cell),
    "answer": Task(answer, _answer_cell, column="answer"),
    "box": Task(box, _box_cell, column="box", draw=_with_box, needs_size=True),
    "choice": Task(choice, _choice_cell, column="answer"),
}

READS_TEXT = ("answer", "box", "choice")
"""Tasks that are about a text beside the file."""
CANDIDATE = "{text} answer: {candidate}"
"""Format that joins a question and a candidate answer into one text (released code)."""


@dataclass
class Prediction:
    """The result of one item."""

    index: int
    """Index of the item among those given."""
    name: str
    result: dict[str, Any] | None = None
    """Result of the head's task in `TASKS`; None if the item failed."""
    reason: str | None = None
    """Reason for the failure, on one line and without the item's name."""


Decoded: TypeAlias = tuple[dict[str, list[Tensor]], Context]
"""Samples of an item by modality, one for each row of the head's input, and facts about the item."""


class Predictor:
    """A task head of a model, with the preparation of its input.

    Args:
        embedder: the model with its processors.
        name: name of a head; None if the model has only one whose task is in `TASKS`.

    Raises:
        UserError: no such head.
    """

    def __init__(self, embedder: LoadedModel, name: str | None = None):
        heads = {}
        for key, head in embedder.encoder.config.heads.items():
            if head.get("task", "label") in TASKS:
                heads[key] = head
        self.name = _choose(heads, name)
        self.embedder = embedder
        self.config = heads[self.name]
        self.on = self.config["on"]
        self.task = self.config.get("task", "label")
        numbers = range(self.config.get("num_classes", 0))
        self.labels = self.config.get("labels") or [str(number) for number in numbers]
        self.num_views = embedder.processors[self.on].num_views

    def predict(self, items: Iterable[object], *, batch_size: int = 32, top: int = 5) -> Iterator[Prediction]:
        """Yield the head's results for the items, in order.

        Args:
            items: paths or values of the modality that the head reads, or dictionaries by modality {"image": ...,
                "text": ...}. A list is several pictures of one item (NLVR2); "candidates" are answers to choose from.
            batch_size: items per forward pass, or views where each item has several.
            top: number of classes in a result.

        Raises:
            UserError: ``items`` is a single item, or no memory for a batch. Errors of items are in their results.
        """
        workers = self.embedder.workers
        count = batch_per_worker(max(1, batch_size // self.num_views), workers)
        read = partial(self._read, top=top)
        with closing(decode_ahead(check_many(items), read, ahead=2 * workers * count)) as decoded:
            blocks = iter(lambda: list(islice(decoded, count)), [])
            computing = compute_ahead(blocks, self._predict_block, workers, splits_single=self.embedder.is_large)
            with closing(computing) as computed:
                for _, predictions in computed:
                    yield from predictions

    def _read(self, item: object, top: int) -> Decoded:
        """The samples of an item, and the context of its result."""
        values: dict[str, Any] = dict(composed(item) or {self.on: item})
        candidates = tuple(values.pop("candidates", ()))
        self._check_modalities(values)
        if self.task == "choice":
            values["text"] = _with_candidates(values.get("text"), candidates)
        context = Context(
            labels=self.labels,
            size=self._size_in_pixels(values),
            candidates=candidates,
            seconds_per_token=self.embedder.encoder.adapters[self.on].seconds_per_token,
            top=top,
        )
        num_inputs = len(candidates) if self.task == "choice" else self.config.get("inputs", 1)
        return self._samples(values, num_inputs * self.num_views), context

    def _check_modalities(self, values: Mapping[str, Any]) -> None:
        processors = self.embedder.processors
        for modality in values:
            if modality not in processors:
                raise UserError(f"this model has no {modality}; it has {', '.join(processors)}")
        if self.on not in values:
            raise UserError(f"the head {self.name} reads {self.on}, and the item has {', '.join(values) or 'nothing'}")

    def _size_in_pixels(self, values: Mapping[str, Any]) -> tuple[int, int]:
        """Width and height of the picture, for tasks whose results are places on it."""
        if not TASKS[self.task].needs_size:
            return (1, 1)
        for modality, value in values.items():
            processor = self.embedder.processors[modality]
            if isinstance(processor, ImageProcessor):
                return processor.size_in_pixels(value)
        raise UserError(f"the head {self.name} returns places on a picture, and the item has none")

    def _samples(self, values: Mapping[str, Any], num_rows: int) -> dict[str, list[Tensor]]:
        """`num_rows` samples of each modality; a single one is repeated."""
        samples_by_modality = {}
        for modality, value in values.items():
            processor = self.embedder.processors[modality]
            samples: list[Tensor] = []
            for single_value in value if isinstance(value, list) else [value]:
                samples += processor.views(single_value)
            if len(samples) not in (1, num_rows):
                raise UserError(
                    f"the head {self.name} reads {num_rows} of each kind, the item has {len(samples)} of {modality}"
                )
            samples_by_modality[modality] = samples * (num_rows // len(samples))
        return samples_by_modality

    @torch.inference_mode()
    def _predict_block(self, block: "list[tuple[int, object, Decoded | Exception]]") -> list[Prediction]:
        """Results of a block of items; those with the same modalities and numbers of rows are computed together."""
        predictions = []
        groups: dict[tuple[tuple[str, int], ...], list[tuple[Prediction, Decoded]]] = {}
        for index, item, decoded in block:
            prediction = Prediction(index, name_of(index, item))
            predictions.append(prediction)
            if isinstance(decoded, Exception):
                prediction.reason = reason_of(prediction.name, decoded)
                continue
            rows_by_modality = tuple((modality, len(rows)) for modality, rows in decoded[0].items())
            groups.setdefault(rows_by_modality, []).append((prediction, decoded))
        for members in groups.values():
            outputs, lengths = self._outputs([samples for _, (samples, _) in members])
            for (prediction, (_, context)), output, length in zip(members, outputs, lengths, strict=True):
                mean_of_views = output.unflatten(0, (-1, self.num_views)).mean(1)
                prediction.result = TASKS[self.task].result(mean_of_views, replace(context, num_tokens=length))
        return predictions

    def _outputs(self, items: "list[dict[str, list[Tensor]]]") -> tuple[Sequence[Tensor], list[int]]:
        """Raw outputs of the head for each item, and the number of tokens that the head reads.

        Args:
            items: samples by modality, of as many rows in each.
        """
        module = self.embedder.encoder
        with memory_remedy(f"no memory for {len(items)} items at once; lower batch_size"):
            inputs = {}
            for modality in items[0]:
                batch = list(chain.from_iterable(samples[modality] for samples in items))
                inputs[modality] = self.embedder.inputs(modality, batch)
            token_lengths = module.adapters[self.on].token_lengths(inputs[self.on])
            lengths = token_lengths[:: len(items[0][self.on])].tolist()
            outputs = module.predict(inputs, head=self.name).float().cpu()
        return outputs.chunk(len(items)), lengths


def _choose(heads: Mapping[str, Any], name: str | None) -> str:
    """The name of the head to use; UserError if there is none of that name, or none is named and there are several."""
    if not heads:
        raise UserError(
            "this model has no heads to predict with; classify by labels of your own (classify(items, labels), or "
            "--labels A,B), or load another model"
        )
    if name is None and len(heads) == 1:
        return next(iter(heads))
    if name is not None and name in heads:
        return name
    problem = "several heads" if name is None else f"no head {name!r}"
    raise UsageError(f"this model has {problem}; choose one of {', '.join(heads)} (--head)")


def _with_candidates(question: str | None, candidates: Sequence[str]) -> list[str]:
    """The question with each candidate answer."""
    if len(candidates) < 2 or question is None:
        raise UserError("a choice needs a text, the question, and two candidates or more")
    return [CANDIDATE.format(text=question, candidate=candidate) for candidate in candidates]


class HeadInput:
    """Input of a head: files, with a text about them or candidates to choose from.

    Args:
        head: the head.
        text: question, phrase or statement about each file.
        candidates: answers to choose from.

    Raises:
        UsageError: the head reads no text, or does not choose among candidates.
    """

    def __init__(self, head: Predictor, text: str | None, candidates: Sequence[str]) -> None:
        if text is not None and head.on != "text" and head.task not in READS_TEXT:
            raise UsageError(f"the head {head.name} reads no text; leave out --text")
        if candidates and head.task != "choice":
            raise UsageError(f"the head {head.name} does not choose among --labels; leave out --labels or --text")
        self.head = head
        self.text = text
        self.candidates = list(candidates)
        self.modalities = {head.on}
        """Modalities of the files that are read."""
        if text is not None and head.on == "text":  # the text may be about files of any modality
            self.modalities = set(head.embedder.processors) - {"text"}

    def as_read(self, file: FoundFile) -> FoundFile:
        """The file with the modality by which the head reads it: a video may be read as frames or as sound."""
        if file.path.suffix.lower() in self.head.embedder.processors[self.head.on].suffixes:
            return file._replace(modality=self.head.on)
        return file

    def classify(self, files: Sequence[FoundFile], *, top: int = 1, batch_size: int = 32) -> Iterator[ClassifiedFiles]:
        """Yield the results of files of these modalities; some heads read several at a time (NLVR2: two pictures).

        Raises:
            UsageError: the number of files is not a multiple of those read at a time.
        """
        size = self.head.config.get("inputs", 1)
        if len(files) % size:
            raise UsageError(
                f"the head {self.head.name} reads {size} files at a time; {len(files)} is not a multiple of it"
            )
        groups = [files[start : start + size] for start in range(0, len(files), size)]
        items = [self._item(group) for group in groups]
        for prediction in self.head.predict(items, batch_size=batch_size, top=top):
            paths = [file.path for file in groups[prediction.index]]
            if prediction.result is None:
                reason = str(prediction.reason).removeprefix(f"{describe(paths[0])}: ")
                yield ClassifiedFiles(paths, None, reason)
            else:
                yield ClassifiedFiles(paths, dict(prediction.result))

    def _item(self, group: Sequence[FoundFile]) -> dict[str, Any]:
        """The head's input for files that it reads together."""
        paths = [file.path for file in group]
        item: dict[str, Any] = {group[0].modality: paths if len(paths) > 1 else paths[0]}
        if self.text is not None:
            item["text"] = self.text
        if self.candidates:
            item["candidates"] = self.candidates
        return item
