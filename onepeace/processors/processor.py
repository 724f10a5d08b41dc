"""Interface of the processors; `onepeace.processors.PROCESSORS` lists them."""

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from onepeace.config.reader import nearest
from onepeace.errors import UserError


class Processor:
    """Turns what a user has (a path, a value) into one checked tensor, and tensors into a batch of the model.

    A subclass takes its settings as keyword arguments, is safe to call from several threads, and raises `UserError`
    that names the file for anything it cannot decode.
    """

    key: ClassVar[str]
    suffixes: ClassVar[frozenset[str]] = frozenset()
    """File endings of this modality, lower case, with the dot."""
    guessed: ClassVar[bool] = True
    """Whether files and values are taken for this modality when nobody says what they are."""
    cast_inputs: ClassVar[frozenset[str]] = frozenset()
    """Inputs of the model, by their name in a batch, that are cast to the model's precision. Ids and lengths stay
    integers, and a waveform stays float32 up to its spectrogram."""
    num_views: int = 1
    """Number of samples that `views` makes of an item."""

    @classmethod
    def from_config(cls, settings: Mapping[str, object], folder: Path | None = None) -> "Processor":
        """Processor with the `processors` settings of a model; `folder` is the model's, for files that belong to it."""
        known = cls._names()
        for name in settings:
            if name not in known:
                raise UserError(f"processors.{cls.key}.{name} is not a setting; {nearest(name, known)}")
        return cls(**cls._own_files(folder), **settings)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of `from_config` that make another one like it: attributes, called as the arguments."""
        return {name: getattr(self, name) for name in self._names()}

    @classmethod
    def _names(cls) -> list[str]:
        return [name for name in inspect.signature(cls).parameters if name != "tokenizer"]

    @classmethod
    def _own_files(cls, folder: Path | None) -> dict[str, object]:
        return {}

    @classmethod
    def matches(cls, item: object) -> bool:
        """Whether `item` looks like this modality, by type, file ending or first bytes; nothing is decoded."""
        raise NotImplementedError

    def decode(self, item: object) -> Tensor:
        """One item as the tensor the model reads, without a batch dimension."""
        raise NotImplementedError

    def views(self, item: object) -> list[Tensor]:
        """The samples of one item whose outputs a task head averages, `num_views` of them."""
        return [self.decode(item)]

    def windows(
        self, item: object, window: float | None = None, hop: float | None = None
    ) -> Iterator[tuple[float, float, Tensor]]:
        """(start, end, sample) of the windows of `window` seconds that begin every `hop` seconds of one item.

        None is a length of the processor's own. What has no duration is one window from 0 to 0.
        """
        yield 0.0, 0.0, self.decode(item)

    def token_positions(self, item: object) -> tuple[Tensor, str] | None:
        """Extent of each token of an item (L, 2), and its unit; None where the model's adapter knows it."""
        return None

    def collate(self, samples: list[Tensor]) -> dict[str, Tensor]:
        """Decoded items as one batch: the model's input of this modality."""
        raise NotImplementedError

    def size(self, sample: Tensor) -> int:
        """Length of a decoded item, to batch like with like; 0 where all items are equally large."""
        return len(sample)


def lengths_if_padded(samples: list[Tensor]) -> dict[str, Tensor]:
    """{"lengths": (B,) int64} if the samples are not all equally long: a batch without it is computed without masks."""
    lengths = [len(sample) for sample in samples]
    return {"lengths": torch.tensor(lengths)} if len(set(lengths)) > 1 else {}
