"""What users call of a generative model: captions, answers, boxes, statements judged, and tasks of their own.

Every method puts a task (tasks.py) to items; pipeline.py takes them through the model, searched (search.py) or scored
(scoring.py), and answers.py reads what was written.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import replace
from itertools import pairwise, repeat, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from onepeace.config import Config
from onepeace.config.ofa import OFAConfig
from onepeace.device import choose_device, choose_dtype
from onepeace.embed.assembly import Failure
from onepeace.embed.embedder import Embedder, load
from onepeace.embed.items import check_many, composed
from onepeace.errors import UserError, expect
from onepeace.generative.answers import Answer
from onepeace.generative.model import OFA
from onepeace.generative.pipeline import Generated, Pipeline
from onepeace.generative.reader import FeatureReader, PromptReader, Reader
from onepeace.generative.search import SearchOptions
from onepeace.generative.tasks import FILE, Task, read_tasks
from onepeace.generative.vocabulary import Vocabulary
from onepeace.hub import weights
from onepeace.hub.architectures import architecture, build_module
from onepeace.hub.folder import TOKENIZER, read_config
from onepeace.hub.resolve import resolve
from onepeace.model import Encoder, Trained
from onepeace.processors.processor import Processor
from onepeace.processors.tokenizer import read_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

OnError = Literal["raise", "skip"]
Answers: TypeAlias = list[Answer] | tuple[list[Answer], list[Failure]]

FIELDS = {
    "images": "image", "boxes": "box", "questions": "text", "phrases": "text", "texts": "text", "premises": "premise",
    "prompts": "prompt",
}  # fmt: skip
"""By argument of a method the field of an item that it fills."""


def load_generator(
    name: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "auto",
    tasks: str | os.PathLike[str] | None = None,
) -> "Generator":
    """A generative model by name, ready to answer.

    Args:
        name: a model folder, or what else `onepeace.load` takes: OFA, or a model with a caption head (tiny-captions).
        device, dtype: as for `onepeace.load`.
        tasks: a YAML file of tasks, over those of the model's folder and the built-in ones; see `read_tasks`.

    Raises:
        UserError: as `onepeace.load`; a model that cannot write; a wrong field in a file of tasks.
    """
    folder = resolve(name)
    config = read_config(folder)
    if not writes(config):
        raise UserError(f"{name}: writes nothing; name a model that does, as tiny-captions")
    tokenizer = read_tokenizer(folder / TOKENIZER)
    files = [folder / FILE] if (folder / FILE).is_file() else []
    rows = read_tasks(*files, *([] if tasks is None else [Path(tasks)]))
    if not architecture(config.architecture).generates:
        head = config.model.heads[_caption_head(config)]
        embedder = load(name, device=device, dtype=dtype, modalities=head["on"])
        return generator_of(config, embedder.module, embedder.processors, tokenizer, rows)
    chosen = choose_device(device)
    with torch.device("meta"):
        num_parameters = sum(parameter.numel() for parameter in build_module(config).parameters())
    module = weights.load(folder, chosen, choose_dtype(dtype, chosen, num_parameters))
    return generator_of(config, module, {}, tokenizer, rows)


def generator_of(
    config: Config,
    module: Trained,
    processors: Mapping[str, Processor],
    tokenizer: "Tokenizer",
    tasks: Mapping[str, Task] | None = None,
) -> "Generator":
    """A module that is in memory already, ready to answer; of a configuration that `writes`.

    Args:
        processors: by modality, those that a caption head needs; OFA makes its own.
        tasks: by name; None = the built-in ones.
    """
    if architecture(config.architecture).generates:
        vocabulary = Vocabulary.of(expect(config.model, OFAConfig), tokenizer)
        return Generator(PromptReader(expect(module, OFA), config.processors.get("image", {})), vocabulary, tasks)
    head = _caption_head(config)
    vocabulary = Vocabulary(tokenizer, config.model.heads[head]["vocab_size"])
    return Generator(FeatureReader(Embedder(expect(module, Encoder), processors), head), vocabulary, tasks)


def writes(config: Config) -> bool:
    """Whether models of this configuration do."""
    return architecture(config.architecture).generates or bool(_caption_head(config))


def _caption_head(config: Config) -> str:
    """Name of the model's caption head; "" if it has none."""
    return next((name for name, head in config.model.heads.items() if head["kind"] == "caption"), "")


class Generator:
    """A generative model with its vocabulary and its tasks.

    Methods take any iterable of pictures (paths, http(s) addresses, bytes, PIL images, arrays, tensors) and give a list
    of answers in its order; a text in place of a list goes with every picture. Options that several methods have:

        batch_size: items in one pass; changes speed and memory, not the answers.
        on_error: "raise" stops at the first item that fails, with a `UserError` that names it. "skip" leaves such items
            out and gives (answers, failures).
    """

    def __init__(self, reader: Reader, vocabulary: Vocabulary, tasks: Mapping[str, Task] | None = None) -> None:
        rows = reader.decoder.token_embed.num_embeddings
        if len(vocabulary) != rows:
            raise UserError(f"the vocabulary has {len(vocabulary)} ids, and the model {rows}")
        self.reader, self.module, self.vocabulary = reader, reader.module.eval(), vocabulary
        self.tasks = dict(read_tasks() if tasks is None else tasks)
        """By name; change an entry to change what a method does."""
        self._pipeline = Pipeline(reader, vocabulary)

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.module.parameters()).dtype

    def caption(
        self,
        images: Iterable[object],
        *,
        search: SearchOptions | None = None,
        batch_size: int = 8,
        on_error: OnError = "raise",
    ) -> Answers:
        """A `Text` for each picture, that says what is on it; for each sound too, if the model hears.

        Args:
            images: pictures and sounds as `Embedder.encode` takes them, {"audio": array} where a value does not tell.
            search: in place of the task's.
        """
        task = self.task("caption", search)
        processors = self.reader.processors(task)

        def row(item: object) -> Mapping[str, object]:
            if composed(item) is not None:
                return expect(item, dict)
            known = (key for key, processor in processors.items() if processor.matches(item))
            return {next(known, next(iter(processors))): item}

        return self._collect(task, map(row, check_many(images, "images")), batch_size, on_error)

    def answer(
        self,
        images: Iterable[object],
        questions: str | Iterable[str],
        candidates: Sequence[str] | None = None,
        *,
        search: SearchOptions | None = None,
        batch_size: int = 8,
        on_error: OnError = "raise",
    ) -> Answers:
        """A `Text` for each picture and its question, or a `Choice` where the model's task has choices (fine-tuned for
        VQA); with candidates a `Choice` of them.

        Args:
            candidates: all of them are scored.
            search: in place of the task's; not with candidates.
        """
        task = self.task("answer", search)
        if candidates is not None:
            if search is not None:
                raise UserError("candidates are scored, and nothing is searched for; leave out search, or candidates")
            task = replace(task, answer="choice", choices=list(check_many(candidates, "candidates")))
        return self._collect(task, _rows(images=images, questions=questions), batch_size, on_error)

    def ground(
        self,
        images: Iterable[object],
        phrases: str | Iterable[str],
        *,
        batch_size: int = 8,
        on_error: OnError = "raise",
    ) -> Answers:
        """A `Box` for each picture and phrase: where on it that is. There is always one, whether the thing is there or
        not; the confidence may tell."""
        return self._collect("ground", _rows(images=images, phrases=phrases), batch_size, on_error)

    def describe(
        self,
        images: Iterable[object],
        boxes: Iterable[Sequence[float]],
        *,
        batch_size: int = 8,
        on_error: OnError = "raise",
    ) -> Answers:
        """A `Text` for each picture and box [x0, y0, x1, y1] in its pixels: what is there."""
        boxes = boxes.tolist() if isinstance(boxes, (np.ndarray, Tensor)) else boxes
        return self._collect("describe", _rows(images=images, boxes=boxes), batch_size, on_error)

    def entails(
        self,
        images: Iterable[object],
        texts: str | Iterable[str],
        premises: str | Iterable[str] | None = None,
        *,
        batch_size: int = 8,
        on_error: OnError = "raise",
    ) -> Answers:
        """A `Choice` for each picture and statement: "entailment", "contradiction" or "neutral" (SNLI-VE).

        `premises`: what is known of the pictures beside them, as fine-tuned models expect it: a caption of each.
        """
        if premises is None:
            return self._collect("entail", _rows(images=images, texts=texts), batch_size, on_error)
        rows = _rows(images=images, texts=texts, premises=premises)
        return self._collect("entail_premise", rows, batch_size, on_error)

    def classify(
        self,
        images: Iterable[object],
        labels: Sequence[str] | None = None,
        *,
        batch_size: int = 8,
        on_error: OnError = "raise",
    ) -> Answers:
        """A `Choice` of labels for each picture; without labels, of those that the model's folder stores."""
        task = self.task("classify")
        if labels is not None:
            task = replace(task, choices=list(check_many(labels, "labels")))
        return self._collect(task, _rows(images=images), batch_size, on_error)

    def infill(
        self,
        texts: Iterable[str],
        *,
        search: SearchOptions | None = None,
        batch_size: int = 8,
        on_error: OnError = "raise",
    ) -> Answers:
        """A `Text` for each text in which `<mask>` stands for missing words: the whole text."""
        return self._collect("infill", _rows(texts=check_many(texts, "texts")), batch_size, on_error, search)

    def draw(
        self,
        texts: Iterable[str],
        decode: Callable[[Tensor], Any] | None = None,
        *,
        search: SearchOptions | None = None,
        batch_size: int = 1,
    ) -> list[list[Answer]]:
        """Pictures of each text as `Codes`, the best first by score; rank them by a model of pictures and texts.

        Args:
            decode: makes a picture of codes (side, side): a VQGAN's decoder, which is not part of this library.
            search: in place of the task's, which draws 24 samples.
        """
        found = []
        rows = _rows(texts=check_many(texts, "texts"))
        for one in self.stream(self.task("draw", search), rows, batch_size=batch_size):
            one.answer  # noqa: B018  raises what was wrong
            pictures: list[Any] = list(one.answers)
            found.append([replace(each, picture=decode(each.codes)) for each in pictures] if decode else pictures)
        return found

    def run(
        self,
        prompt: str | Iterable[str],
        image: object = None,
        *,
        task: Task | None = None,
        batch_size: int = 8,
        on_error: OnError = "raise",
    ) -> Answer | Answers:
        """The answer to a prompt of one's own, with a picture or without; to a list of prompts a list of answers.

        Args:
            prompt: as the model reads it; `<mask>`, `<bin_7>` and `<code_3>` are symbols of the vocabulary.
            image: a picture; to a list of prompts one for each, or None where there is none.
            task: how it is answered; its prompt is not used. By default a text of up to 16 tokens.
        """
        task = replace(task or Task("{prompt}"), prompt="{prompt}")
        single = isinstance(prompt, str)
        on_error = "raise" if single and on_error == "skip" else on_error
        prompts = [prompt] if single else list(check_many(prompt, "prompts"))
        images = [image] if single else repeat(None, len(prompts)) if image is None else check_many(image, "images")
        blind, seeing = replace(task, image=None), replace(task, image=task.image or {})
        rows = _rows(images=images, prompts=prompts)
        pairs = ((blind if row["image"] is None else seeing, row) for row in rows)
        found = _collected(self._pipeline.stream(pairs, batch_size), on_error)
        return found[0] if single else found  # type: ignore[return-value]

    def task(self, name: str, search: SearchOptions | None = None) -> Task:
        """A task by name, with a search of one's own if one is given. UserError if there is none."""
        if name not in self.tasks:
            raise UserError(f"this model has no task {name!r}; it has {', '.join(self.tasks)}")
        return self.tasks[name] if search is None else replace(self.tasks[name], search=search)

    def stream(
        self, task: str | Task, items: Iterable[Mapping[str, object]], *, batch_size: int = 8
    ) -> Iterator[Generated]:
        """Puts a task to items, in bounded memory; results come in order, failures as values.

        Args:
            task: a name in `tasks`, or a task of one's own.
            items: the fields of the task's prompt by name, {"text": ...}, and "image" if it reads one; "candidates" in
                place of the task's choices; {box} is [x0, y0, x1, y1] in pixels of the picture.

        Raises:
            UserError: no such task, or one that this model cannot do; no memory for a batch. What is wrong with an
                item is in its result.
        """
        chosen = self.task(task) if isinstance(task, str) else task
        return self._pipeline.stream(((chosen, item) for item in items), batch_size)

    def _collect(
        self,
        task: str | Task,
        items: Iterable[Mapping[str, object]],
        batch_size: int,
        on_error: OnError,
        search: SearchOptions | None = None,
    ) -> Answers:
        chosen = self.task(task, search) if isinstance(task, str) else task
        return _collected(self.stream(chosen, items, batch_size=batch_size), on_error)


def _rows(**columns: Iterable[object]) -> Iterator[dict[str, object]]:
    """Items from arguments of a method, see FIELDS; a text in place of a list of texts goes with every item.

    UserError if there are more of one than of another: at once where they have lengths, else where the shorter ends.
    """
    same = {name: it for name, it in columns.items() if isinstance(it, str) and name not in ("images", "boxes")}
    many = {name: check_many(column, name) for name, column in columns.items() if name not in same}
    sizes = [(len(column), name) for name, column in many.items() if isinstance(column, Sized)]
    for (size, name), (other_size, other) in pairwise(sizes):
        if size != other_size:
            raise UserError(f"{other_size} {other} for {size} {name}; give as many of each")
    return _zipped(many, {FIELDS[name]: text for name, text in same.items()})


def _zipped(many: Mapping[str, Iterable[object]], same: dict[str, object]) -> Iterator[dict[str, object]]:
    missing = object()
    for count, values in enumerate(zip_longest(*many.values(), fillvalue=missing)):
        if ended := [name for name, value in zip(many, values, strict=True) if value is missing]:
            others = " and ".join(name for name in many if name not in ended)
            raise UserError(f"{count} {ended[0]} for more {others}; give as many of each")
        yield {FIELDS[name]: value for name, value in zip(many, values, strict=True)} | same


def _collected(results: Iterable[Generated], on_error: OnError) -> Answers:
    if on_error not in ("raise", "skip"):
        raise UserError(f"on_error is {on_error!r}; it can be 'raise', 'skip'")
    answers: list[Answer] = []
    failures: list[Failure] = []
    for one in results:
        if on_error == "skip" and not one.answers:
            failures.append(Failure(one.index, one.name, str(one.reason)))
        else:
            answers.append(one.answer)
    return (answers, failures) if on_error == "skip" else answers
