"""Generator: a generative model for captions, answers, boxes, and any task that is described as in tasks.py.

Every method applies a task to items: pipeline.py runs the model and searches for answers (search.py) or scores choices
(scoring.py), and answers.py converts the output.
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
    name: str | os.PathLike[str], *, device: str | torch.device | None = None, dtype: str | torch.dtype = "auto"
) -> "Generator":
    """Load a generative model by name.

    Args:
        name: as for `onepeace.load`; the model is OFA, or has a caption head (tiny-captions).
        device, dtype: as for `onepeace.load`.

    Raises:
        UserError: as for `onepeace.load`; a model that does not write text; a wrong field in tasks.yaml.
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
    """Create a `Generator` from a module in memory, whose configuration satisfies `writes`.

    Args:
        processors: processors by modality for a caption head; OFA creates its own.
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

    Methods take any iterable of pictures (paths, http(s) addresses, bytes, PIL images, arrays, tensors) and return a
    list of answers in the same order; a single text applies to every picture. The first item that fails raises a
    `UserError` that names it (`stream` continues). `batch_size`, the number of items in one pass, affects speed and
    memory, not the answers.
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
        """Describe each picture with a `Text`, and each sound too, if the model supports sounds.

        Args:
            images: pictures and sounds as for `Embedder.encode`; {"audio": array} where the modality is not obvious.
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
        """Answer a question about each picture with a `Text`, or with a `Choice` if the task has choices (models
        fine-tuned for VQA) or candidates are given, all of which are scored."""
        task = self.task("answer")
        if candidates is not None:
            task = replace(task, answer="choice", choices=list(check_many(candidates, "candidates")))
        return self.ask(task, _rows(images, "questions", questions), batch_size=batch_size)

    def ground(self, images: Iterable[object], phrases: str | Iterable[str], *, batch_size: int = 8) -> list[Answer]:
        """Locate a phrase in each picture with a `Box`. A box is always returned, even if the object is not in the
        picture; its confidence may then be low."""
        return self.ask("ground", _rows(images, "phrases", phrases), batch_size=batch_size)

    def ask(self, task: str | Task, items: Iterable[Mapping[str, object]], *, batch_size: int = 8) -> list[Answer]:
        """Apply any task to items: `ask("entail", [{"image": "cat.jpg", "text": "a cat sleeps"}])`.

        Args:
            task, items: see `stream`. The tasks of OFA are described in tasks.yaml; for a custom prompt use
                `Task("{prompt}")`, with `image=None` if it reads no picture.
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
        chosen = self.task(task) if isinstance(task, str) else task
        return Pipeline(self.reader, self.vocabulary, chosen).stream(items, batch_size)


def _rows(images: Iterable[object], name: str, texts: str | Iterable[str]) -> list[dict[str, object]]:
    """Items from pictures and texts, called `name` in messages; UserError if their numbers differ."""
    pictures = list(check_many(images, "images"))
    words = [texts] * len(pictures) if isinstance(texts, str) else list(check_many(texts, name))
    if len(words) != len(pictures):
        raise UserError(f"{len(words)} {name} for {len(pictures)} images; give as many of each")
    return [{"image": image, "text": text} for image, text in zip(pictures, words, strict=True)]
