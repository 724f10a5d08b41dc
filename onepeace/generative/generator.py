"""Generator: a generative model for captions, answers, boxes, and any other `Task` (tasks.py).

Every method applies a task to items. A reader (reader.py) encodes an item for the decoder: OFA with the prompt of the
task, other models by their features. pipeline.py runs the model and searches for answers (search.py) or scores choices
(scoring.py), and the answers of tasks.py say what was found.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from onepeace.config import Config
from onepeace.device import choose_device
from onepeace.embed.embedder import Embedder, load
from onepeace.embed.items import check_many, composed
from onepeace.errors import UserError, expect
from onepeace.generative.config import OFAConfig
from onepeace.generative.model import OFA
from onepeace.generative.pipeline import Generated, Pipeline
from onepeace.generative.reader import FeatureReader, PromptReader, Reader
from onepeace.generative.tasks import Answer, Task, read_tasks
from onepeace.generative.vocabulary import Vocabulary
from onepeace.hub import weights
from onepeace.hub.architectures import architecture, can_write, writing_head
from onepeace.hub.folder import TASKS, TOKENIZER
from onepeace.hub.resolve import fetch_model
from onepeace.model import Encoder, Trained
from onepeace.processors.processor import Processor
from onepeace.processors.registry import modality_of
from onepeace.processors.tokenizer import read_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def load_generator(
    name: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "auto",
) -> "Generator":
    """Load a generative model by name.

    Args:
        name: as for `onepeace.load`; the model is OFA, or has a caption head (tiny-captions).
        device, dtype: as for `onepeace.load`.

    Raises:
        UserError: as for `onepeace.load`; a model that does not write text; a wrong field in tasks.yaml.
    """
    opened = fetch_model(name)
    config = opened.config
    if not can_write(config):
        raise UserError(
            "cannot write text; name a model that can: tiny-captions, or one of OFA, such as ofa-base", where=name
        )
    tokenizer = read_tokenizer(opened.folder / TOKENIZER)
    tasks = read_tasks(opened.folder / TASKS)
    if architecture(config.architecture).generates:
        module = weights.load(opened, choose_device(device), dtype)
        return generator_of(config, module, {}, tokenizer, tasks)
    modalities = list(config.model.heads[writing_head(config)]["on"])
    if "text" in config.model.adapters:
        modalities.append("text")
    embedder = load(opened, device=device, dtype=dtype, modalities=modalities)
    return generator_of(config, embedder.encoder, embedder.processors, tokenizer, tasks)


def generator_of(
    config: Config,
    module: Trained,
    processors: Mapping[str, Processor],
    tokenizer: "Tokenizer",
    tasks: Mapping[str, Task],
) -> "Generator":
    """Create a `Generator` from a module in memory, whose configuration satisfies `can_write`.

    Args:
        processors: processors by modality for a caption head; OFA creates its own.
    """
    if architecture(config.architecture).generates:
        vocabulary = Vocabulary.of(expect(config.model, OFAConfig), tokenizer)
        prompt_reader = PromptReader(expect(module, OFA), config.processors.get("image", {}))
        return Generator(prompt_reader, vocabulary, tasks)
    head = writing_head(config)
    vocabulary = Vocabulary(tokenizer, config.model.heads[head]["vocab_size"])
    embedder = Embedder(expect(module, Encoder), processors)
    return Generator(FeatureReader(embedder, head), vocabulary, tasks)


class Generator:
    """A generative model with its vocabulary and its tasks.

    Methods take any iterable of pictures (paths, http(s) addresses, bytes, PIL images, arrays, tensors) and return a
    list of answers in the same order; a single text applies to every picture. The first item that fails raises a
    `UserError` that names it; `stream` reports it and continues. `batch_size`, the number of items in one pass, affects
    speed and memory, not the answers.
    """

    def __init__(self, reader: Reader, vocabulary: Vocabulary, tasks: Mapping[str, Task]) -> None:
        num_ids = reader.decoder.token_embed.num_embeddings
        if len(vocabulary) != num_ids:
            raise UserError(f"the vocabulary has {len(vocabulary)} ids, and the model {num_ids}")
        self.reader = reader
        self.module = reader.module.eval()
        self.vocabulary = vocabulary
        self.tasks = dict(tasks)
        """Tasks by name; change an entry to change what a method does."""

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.module.parameters()).dtype

    def caption(self, images: Iterable[object], *, batch_size: int = 8) -> list[Answer]:
        """Describe each picture with a `Text`, and each sound too, if the model supports sounds.

        Args:
            images: pictures and sounds as for `Embedder.encode`; {"audio": array} where the modality is not obvious.
        """
        processors = self.reader.processors(self.task("caption"))
        items = (_by_modality(item, processors) for item in check_many(images, "images"))
        return self.ask("caption", items, batch_size=batch_size)

    def answer(
        self,
        images: Iterable[object],
        questions: str | Iterable[str],
        candidates: Sequence[str] | None = None,
        *,
        batch_size: int = 8,
    ) -> list[Answer]:
        """Answer a question about each picture with a `Text`, or with a `Choice` if the task has choices (models
        fine-tuned for VQA) or candidates are given, all of which are scored."""
        task = self.task("answer")
        if candidates is not None:
            task = replace(task, answer="choice", choices=list(check_many(candidates, "candidates")))
        return self.ask(task, _with_texts(images, "questions", questions), batch_size=batch_size)

    def ground(
        self,
        images: Iterable[object],
        phrases: str | Iterable[str],
        *,
        batch_size: int = 8,
    ) -> list[Answer]:
        """Locate a phrase in each picture with a `Box`. A box is always returned, even if the object is not in the
        picture; its confidence may then be low."""
        return self.ask("ground", _with_texts(images, "phrases", phrases), batch_size=batch_size)

    def ask(
        self,
        task: str | Task,
        items: Iterable[Mapping[str, object]],
        *,
        batch_size: int = 8,
    ) -> list[Answer]:
        """Apply any task to items: `ask("entail", [{"image": "cat.jpg", "text": "a cat sleeps"}])`.

        Args:
            task, items: see `stream`. The tasks of OFA are described in tasks.yaml; for a custom prompt use
                `Task("{prompt}")`, with `image=None` if it reads no picture.
        """
        return [generated.answer for generated in self.stream(task, items, batch_size=batch_size)]

    def task(self, name: str) -> Task:
        """A task by name. UserError if there is none."""
        if name not in self.tasks:
            raise UserError(f"this model has no task {name!r}; it has {', '.join(self.tasks)}")
        return self.tasks[name]

    def stream(
        self,
        task: str | Task,
        items: Iterable[Mapping[str, object]],
        *,
        batch_size: int = 8,
    ) -> Iterator[Generated]:
        """Apply a task to items in bounded memory; yields results in order, with errors as values.

        Args:
            task: a name in `tasks`, or a custom task.
            items: fields of the task's prompt by name, {"text": ...}, and "image" if the task reads one; "box" is
                [x0, y0, x1, y1] in pixels of the picture.

        Raises:
            UserError: an unknown or unsupported task; an item that is not a mapping; not enough memory for a batch.
                Other errors of an item are returned in its result.
        """
        if not isinstance(batch_size, int) or batch_size < 1:
            raise UserError(f"batch_size is {batch_size!r}; it must be a whole number from 1")
        if isinstance(task, str):
            task = self.task(task)
        return Pipeline(self.reader, self.vocabulary, task).stream(items, batch_size)


def _by_modality(item: object, processors: Mapping[str, Processor]) -> Mapping[str, object]:
    """An item as a mapping: as it is, or under the first modality whose processor reads it.

    If none does, the first processor will say why.
    """
    values = composed(item)
    if values is not None:
        return values
    return {modality_of(item, processors) or next(iter(processors)): item}


def _with_texts(images: Iterable[object], name: str, texts: str | Iterable[str]) -> list[dict[str, object]]:
    """Items from pictures and texts, called `name` in messages; UserError if their numbers differ."""
    pictures = list(check_many(images, "images"))
    texts = [texts] * len(pictures) if isinstance(texts, str) else list(check_many(texts, name))
    if len(texts) != len(pictures):
        raise UserError(f"{len(texts)} {name} for {len(pictures)} images; give as many of each")
    return [{"image": picture, "text": text} for picture, text in zip(pictures, texts, strict=True)]
