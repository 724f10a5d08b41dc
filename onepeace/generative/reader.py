"""From the items of a task to the output of an encoder.

An item is decoded, and its prompt becomes ids. OFA encodes prompts and pictures; a caption head of ONE-PEACE gets the
token features of an item.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import isfinite
from numbers import Real
from typing import Any, NamedTuple, TypeAlias, TypeGuard

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from onepeace.config import Options, merge
from onepeace.embed.embedder import Embedder
from onepeace.errors import UserError, expect
from onepeace.files.source import describe
from onepeace.generative.decoder import Caption, EncoderOutput
from onepeace.generative.model import OFA
from onepeace.generative.tasks import Task
from onepeace.generative.vocabulary import Size, Vocabulary
from onepeace.processors import ImageProcessor
from onepeace.processors.processor import Processor
from onepeace.processors.tokenizer import BOS, EOS, PAD


class DecodedItem(NamedTuple):
    """A decoded item, ready for a batch."""

    ids: list[int]
    """Ids with bos and eos."""
    modality: str | None
    """The modality of the sample; None without a sample."""
    sample: Tensor | None
    prefix: list[int]
    """Tokens that the decoder starts with."""
    size: Size
    """Size of the original picture, for its boxes."""
    resized: Size
    """Size of the picture that the model reads."""
    is_silent: bool
    """Whether the sample is digital silence."""


@dataclass(frozen=True)
class ItemDecoder:
    """Decodes the items of a task in any thread."""

    task: Task
    vocabulary: Vocabulary
    processors: Mapping[str, Processor]
    """Processors by modality; empty if the task only reads text."""
    reads_words: bool
    """Whether the model reads the prompt."""
    num_positions: int
    """Maximum number of tokens that the model reads or writes."""
    longest_answer: int
    """Number of tokens."""

    def name(self, index: int, item: Mapping[str, object]) -> str:
        """Name of an item for messages: that of its picture or sound, or else its number."""
        for modality in self.processors:
            value = item.get(modality)
            if value is not None:
                return describe(value)
        return f"item {index}"

    def decode(self, item: Mapping[str, object]) -> DecodedItem:
        """Decode the sample of an item and tokenize its prompt. UserError if the task cannot be applied to it."""
        values: dict[str, Any] = dict(item)
        modality = self._modality(values)
        sample = None
        size = (1, 1)
        resized = (1, 1)
        if modality is not None:
            processor = self.processors[modality]
            sample = processor.decode(values[modality])
            if isinstance(processor, ImageProcessor) and self.task.has_boxes:
                size = processor.size_in_pixels(values["image"])
                resized = (processor.width, processor.height)
        source, prefix = self._prompt(values, size, resized)
        is_silent = modality == "audio" and sample is not None and bool(sample.min() == sample.max())
        return DecodedItem(
            ids=[BOS, *source, EOS],
            modality=modality,
            sample=sample,
            prefix=prefix,
            size=size,
            resized=resized,
            is_silent=is_silent,
        )

    def _modality(self, values: Mapping[str, object]) -> str | None:
        """The modality of an item; None if the task only reads text."""
        if not self.processors:
            return None
        modalities = [modality for modality in self.processors if values.get(modality) is not None]
        if len(modalities) != 1:
            raise UserError(f"the task needs one of {', '.join(self.processors)}, and the item has {len(modalities)}")
        return modalities[0]

    def _prompt(self, values: dict[str, Any], size: Size, resized: Size) -> tuple[list[int], list[int]]:
        """Ids for the encoder, without bos and eos, and those that the decoder starts with."""
        if "box" in self.task.fields:
            values = {**values, "box": self._words_of_box(values.get("box"), size, resized)}
        for name in self.task.fields:
            text = values.get(name)
            if isinstance(text, str) and not text.strip():
                raise UserError(f"the text for {{{name}}} is empty")
        source: list[int] = []
        prefix: list[int] = []
        if self.reads_words:
            source, prefix = self.task.ids(self.vocabulary, values)
        num_read = len(source) + 2  # with bos and eos
        num_written = 1 + len(prefix) + self.longest_answer
        if max(num_read, num_written) > self.num_positions:
            raise UserError(
                f"its text has {len(source)} tokens and its answer up to {self.longest_answer}; "
                f"the model has {self.num_positions} places"
            )
        return source, prefix

    def _words_of_box(self, box: object, size: Size, resized: Size) -> str:
        """The names of the bins of a box in pixels of a picture."""
        if isinstance(box, np.ndarray | Tensor):
            box = box.tolist()
        if not _is_box(box):
            raise UserError(f"a box is [x0, y0, x1, y1] in pixels, x0 <= x1 and y0 <= y1, not {box!r}")
        return self.vocabulary.decode(self.vocabulary.bins_of(box, size, resized))


def _is_box(box: object) -> "TypeGuard[Sequence[float]]":
    if not isinstance(box, Sequence) or len(box) != 4:
        return False
    if not all(isinstance(corner, Real) and isfinite(corner) for corner in box):
        return False
    x0, y0, x1, y1 = box
    return x0 <= x1 and y0 <= y1


PICTURES: Options = {"size": 480, "mean": [0.5] * 3, "std": [0.5] * 3}
"""Picture settings of the released OFA models; config.yaml overrides them."""


class PromptReader:
    """Reader of OFA: a prompt, with or without a picture before it.

    Args:
        image: settings of the picture processor that all tasks share.
    """

    reads_words = True
    """Whether it reads the prompts of tasks."""

    def __init__(self, module: OFA, image: Options) -> None:
        self.module = module
        self.image = merge(PICTURES, image)
        self.decoder = module.decoder
        self.num_positions = module.config.num_positions

    def processors(self, task: Task) -> Mapping[str, Processor]:
        """Processors by modality, of which each item has exactly one; empty if the task only reads text.

        UserError for a task that the model does not support.
        """
        if task.image is None:
            return {}
        return {"image": ImageProcessor.from_config(merge(self.image, task.image))}

    def encode(self, ids: Sequence[Sequence[int]], modality: str | None, samples: Sequence[Tensor]) -> EncoderOutput:
        """Encode prompts, with bos and eos, and a decoded sample of a modality for each, if there are any."""
        weight = self.decoder.token_embed.weight
        rows = list(map(torch.tensor, ids))
        prompts = pad_sequence(rows, batch_first=True, padding_value=PAD)
        pixels = None
        if samples:
            pixels = torch.stack(list(samples)).to(weight.device, weight.dtype)
        return self.module.encode(prompts.to(weight.device), pixels)


class FeatureReader:
    """Reader of a caption head: an item of a modality of the head, and no words; methods as in `PromptReader`."""

    reads_words = False

    def __init__(self, embedder: Embedder, name: str) -> None:
        self.embedder = embedder
        self.module = embedder.encoder
        self.head = expect(self.module.heads[name], Caption)
        self.decoder = self.head.decoder
        self.num_positions = self.head.options.max_tokens
        self.modalities = self.module.config.heads[name]["on"]

    def processors(self, task: Task) -> Mapping[str, Processor]:
        if task.image is None or task.fields:
            raise UserError(f"this model describes {' and '.join(self.modalities)} files, and reads no words")
        if task.image:
            raise UserError(f"image {task.image} of the task has no effect on this model; leave it out")
        return {modality: self.embedder.processors[modality] for modality in self.modalities}

    def encode(self, ids: Sequence[Sequence[int]], modality: str | None, samples: Sequence[Tensor]) -> EncoderOutput:
        modality = expect(modality, str)
        inputs = self.embedder.inputs(modality, list(samples))
        stems = self.module.stems({modality: inputs})
        features = self.module.encode(stems)[modality]
        encoded = self.head.encoded(features)
        projections = self.module.config.projections
        is_comparable = "text" in self.embedder.modalities and "text" in projections and modality in projections
        if is_comparable:
            encoded = encoded._replace(vectors=self.module.embed(modality, features))
        return encoded

    def agreement(self, vectors: Tensor, texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """Cosine of each source (B, E) with each of its texts."""
        all_texts = list(chain.from_iterable(texts))
        text_vectors = expect(self.embedder.encode_text(all_texts, progress=False), Tensor)
        cosines = []
        texts_of_source = text_vectors.split(list(map(len, texts)))
        for source, source_texts in zip(vectors.float().cpu(), texts_of_source, strict=True):
            cosines.append((source_texts @ source).tolist())
        return cosines


Reader: TypeAlias = PromptReader | FeatureReader
