"""Generator: a model that writes, with captions, answers, boxes, and any task that is written down (tasks.py).

Every method puts a task (tasks.py) to items; pipeline.py takes them through the model, searched (search.py) or scored
(scoring.py), and answers.py reads what was written.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from onepeace.config import Config
from onepeace.config.ofa import OFAConfig
from onepeace.device import choose_device, choose_dtype
from onepeace.embed.embedder import Embedder, load
from onepeace.embed.items import check_many, composed
from onepeace.errors import UserError, expect
from onepeace.generative.answers import Answer
from onepeace.generative.model import OFA
from onepeace.generative.pipeline import Generated, Pipeline
from onepeace.generative.reader import FeatureReader, PromptReader, Reader
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


def load_generator(
    name: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "auto",
) -> "Generator":
    """A generative model by name, ready to answer.

    Args:
        name: a model folder, or what else `onepeace.load` takes: OFA, or a model with a caption head (tiny-captions).
        device, dtype: as for `onepeace.load`.

    Raises:
        UserError: as `onepeace.load`; a model that cannot write; a wrong field in a file of tasks.
    """
    folder = resolve(name)
    config = read_config(folder)
    if not writes(config):
        raise UserError(f"{name}: writes nothing; name a model that does, as tiny-captions")
    tokenizer = read_tokenizer(folder / TOKENIZER)
    rows = read_tasks(folder / FILE)
    if not architecture(config.architecture).generates:
        head = config.model.heads[_caption_head(config)]
        wanted = [*head["on"], *({"text"} & {*config.model.adapters})]
        embedder = load(name, device=device, dtype=dtype, modalities=wanted)
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
    tasks: Mapping[str, Task],
) -> "Generator":
    """A `Generator` for a module in memory, whose configuration satisfies `writes`.

    Args:
        processors: by modality, those that a caption head needs; OFA makes its own.
    """
    if architecture(config.architecture).generates:
        vocabulary = Vocabulary.of(expect(config.model, OFAConfig), tokenizer)
        return Generator(PromptReader(expect(module, OFA), config.processors.get("image", {})), vocabulary, tasks)
    head = _caption_head(config)
    vocabulary = Vocabulary(tokenizer, config.model.heads[head]["vocab_size"])
    return Generator(FeatureReader(Embedder(expect(module, Encoder), processors), head), vocabulary, tasks)


def writes(config: Config) -> bool:
    """Whether models of this configuration write text."""
    return architecture(config.architecture).generates or bool(_caption_head(config))


def _caption_head(config: Config) -> str:
    """Name of the model's caption head; "" if it has none."""
    return next((name for name, head in config.model.heads.items() if head["kind"] == "caption"), "")


class Generator:
    """A generative model with its vocabulary and its tasks.

    Methods take any iterable of pictures (paths, http(s) addresses, bytes, PIL images, arrays, tensors) and give a list
    of answers in its order; a text in place of a list goes with every picture. The first item that fails stops them
    with a `UserError` that names it (`stream` goes on). `batch_size`, the items in one pass, changes speed and memory,
    not the answers.
    """

    def __init__(self, reader: Reader, vocabulary: Vocabulary, tasks: Mapping[str, Task]) -> None:
        rows = reader.decoder.token_embed.num_embeddings
        if len(vocabulary) != rows:
            raise UserError(f"the vocabulary has {len(vocabulary)} ids, and the model {rows}")
        self.reader, self.module, self.vocabulary = reader, reader.module.eval(), vocabulary
        self.tasks = dict(tasks)
        """Tasks by name; change an entry to change what a method does."""

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.module.parameters()).dtype

    def caption(self, images: Iterable[object], *, batch_size: int = 8) -> list[Answer]:
        """A `Text` for each picture, that says what is on it; for each sound too, if the model hears.

        Args:
            images: pictures and sounds as `Embedder.encode` takes them, {"audio": array} where a value does not tell.
        """
        processors = self.reader.processors(self.task("caption"))

        def row(item: object) -> Mapping[str, object]:
            if (values := composed(item)) is not None:
                return values
            known = (key for key, processor in processors.items() if processor.matches(item))
            return {next(known, next(iter(processors))): item}

        return self.ask("caption", map(row, check_many(images, "images")), batch_size=batch_size)

    def answer(
        self,
        images: Iterable[object],
        questions: str | Iterable[str],
        candidates: Sequence[str] | None = None,
        *,
        batch_size: int = 8,
    ) -> list[Answer]:
        """A `Text` for each picture and its question, or a `Choice` where the model's task has choices (fine-tuned for
        VQA); with candidates a `Choice` of them, all of which are scored."""
        task = self.task("answer")
        if candidates is not None:
            task = replace(task, answer="choice", choices=list(check_many(candidates, "candidates")))
        return self.ask(task, _rows(images, "questions", questions), batch_size=batch_size)

    def ground(self, images: Iterable[object], phrases: str | Iterable[str], *, batch_size: int = 8) -> list[Answer]:
        """A `Box` for each picture and phrase: where on it that is. There is always one, whether the thing is there or
        not; the confidence may tell."""
        return self.ask("ground", _rows(images, "phrases", phrases), batch_size=batch_size)

    def ask(self, task: str | Task, items: Iterable[Mapping[str, object]], *, batch_size: int = 8) -> list[Answer]:
        """The answer of each item to any task: `ask("entail", [{"image": "cat.jpg", "text": "a cat sleeps"}])`.

        Args:
            task, items: see `stream`. The tasks of OFA are described in tasks.yaml; a prompt of your own is
                `Task("{prompt}")`, and `image=None` in it reads no picture.
        """
        return [one.answer for one in self.stream(task, items, batch_size=batch_size)]

    def task(self, name: str) -> Task:
        """A task by name. UserError if there is none."""
        if name not in self.tasks:
            raise UserError(f"this model has no task {name!r}; it has {', '.join(self.tasks)}")
        return self.tasks[name]

    def stream(
        self, task: str | Task, items: Iterable[Mapping[str, object]], *, batch_size: int = 8
    ) -> Iterator[Generated]:
        """Puts a task to items, in bounded memory; results come in order, failures as values.

        Args:
            task: a name in `tasks`, or a task of one's own.
            items: the fields of the task's prompt by name, {"text": ...}, and "image" if it reads one; {box} is
                [x0, y0, x1, y1] in pixels of the picture.

        Raises:
            UserError: no such task, or one that this model cannot do; an item that is no mapping; no memory for a
                batch. Other errors of an item are in its result.
        """
        if not isinstance(batch_size, int) or batch_size < 1:
            raise UserError(f"batch_size is {batch_size!r}; it must be a whole number from 1")
        chosen = self.task(task) if isinstance(task, str) else task
        return Pipeline(self.reader, self.vocabulary, chosen).stream(items, batch_size)


def _rows(images: Iterable[object], name: str, texts: str | Iterable[str]) -> list[dict[str, object]]:
    """Items of pictures and texts, which a message calls `name`; UserError if there are more of one than the other."""
    pictures = list(check_many(images, "images"))
    words = [texts] * len(pictures) if isinstance(texts, str) else list(check_many(texts, name))
    if len(words) != len(pictures):
        raise UserError(f"{len(words)} {name} for {len(pictures)} images; give as many of each")
    return [{"image": image, "text": text} for image, text in zip(pictures, words, strict=True)]
