"""From an item of a task to the input of a model: the sample is decoded, and the prompt becomes ids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from numbers import Real
from typing import Any, NamedTuple, TypeGuard

import numpy as np
from torch import Tensor

from onepeace.errors import UserError
from onepeace.files.source import describe
from onepeace.generative.tasks import Task
from onepeace.generative.vocabulary import Size, Vocabulary
from onepeace.processors import ImageProcessor
from onepeace.processors.processor import Processor
from onepeace.processors.tokenizer import BOS, EOS


class PictureSizes(NamedTuple):
    """Sizes of a picture, for its boxes."""

    size: Size = (1, 1)
    """Size of the original picture."""
    resized: Size = (1, 1)
    """Size of the picture that the model reads."""


class DecodedItem(NamedTuple):
    """A decoded item, ready for a batch."""

    ids: list[int]
    """Ids with bos and eos."""
    modality: str | None
    """The modality of the sample; None without a sample."""
    sample: Tensor | None
    prefix: list[int]
    """Tokens that the decoder starts with."""
    picture: PictureSizes
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
        picture = PictureSizes()
        if modality is not None:
            processor = self.processors[modality]
            sample = processor.decode(values[modality])
            if isinstance(processor, ImageProcessor) and self.task.has_boxes:
                size = processor.size_in_pixels(values["image"])
                picture = PictureSizes(size, resized=(processor.width, processor.height))
        source, prefix = self._prompt(values, picture)
        is_silent = False
        if modality == "audio" and sample is not None:
            is_silent = bool(sample.min() == sample.max())
        return DecodedItem(
            ids=[BOS, *source, EOS],
            modality=modality,
            sample=sample,
            prefix=prefix,
            picture=picture,
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

    def _prompt(self, values: dict[str, Any], picture: PictureSizes) -> tuple[list[int], list[int]]:
        """Ids for the encoder, without bos and eos, and those that the decoder starts with."""
        if "box" in self.task.fields:
            values = {**values, "box": self._words_of_box(values.get("box"), picture)}
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

    def _words_of_box(self, box: object, picture: PictureSizes) -> str:
        """The names of the bins of a box in pixels of a picture."""
        if isinstance(box, np.ndarray | Tensor):
            box = box.tolist()
        if not _is_box(box):
            raise UserError(f"a box is [x0, y0, x1, y1] in pixels, x0 <= x1 and y0 <= y1, not {box!r}")
        return self.vocabulary.decode(self.vocabulary.bins_of(box, picture.size, picture.resized))


def _is_box(box: object) -> "TypeGuard[Sequence[float]]":
    if not isinstance(box, Sequence) or len(box) != 4:
        return False
    if not all(isinstance(corner, Real) and isfinite(corner) for corner in box):
        return False
    x0, y0, x1, y1 = box
    return x0 <= x1 and y0 <= y1
