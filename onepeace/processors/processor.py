"""Interface of the processors; `onepeace.processors.PROCESSORS` lists them."""

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from onepeace.config.reader import nearest
from onepeace.errors import UserError, one_line

if TYPE_CHECKING:
    from typing_extensions import Self


class Processor:
    """Converts a path or value to one checked tensor, and tensors to a batch for the model.

    A subclass takes its settings as keyword arguments, is safe to call from several threads, and raises a `UserError`
    that names the file for anything it cannot decode.
    """

    key: ClassVar[str]
    suffixes: ClassVar[frozenset[str]] = frozenset()
    """File endings of this modality, lower case, with the dot."""
    guessed: ClassVar[bool] = True
    """Whether this modality may be guessed for files and values without a given one."""
    cast_inputs: ClassVar[frozenset[str]] = frozenset()
    """Inputs of the model, by their name in a batch, that are cast to the model's precision. Ids and lengths stay
    integers, and a waveform stays float32 up to its spectrogram."""
    max_seconds: float | None = None
    """Length of the part of an item that `decode` reads; None = all of it."""
    num_views: int = 1
    """Number of samples that `views` returns for an item."""

    @classmethod
    def from_config(cls, settings: Mapping[str, object], folder: Path | None = None) -> "Self":
        """Processor with the `processors` settings of a model; further files are read from its `folder`."""
        setting_names = cls._names()
        for name in settings:
            if name not in setting_names:
                raise UserError(f"processors.{cls.key}.{name} is not a setting; {nearest(name, setting_names)}")
        try:
            return cls(**cls._own_files(folder), **settings)
        except TypeError as error:  # such as a number given as a text
            raise UserError(f"processors.{cls.key}: {one_line(error)}") from error

    @property
    def settings(self) -> dict[str, Any]:
        """The settings with which `from_config` creates an equal processor: attributes named like the arguments."""
        return {name: getattr(self, name) for name in self._names()}

    @classmethod
    def _names(cls) -> list[str]:
        return [name for name in inspect.signature(cls).parameters if name != "tokenizer"]

    @classmethod
    def _own_files(cls, folder: Path | None) -> dict[str, object]:
        return {}

    @classmethod
    def matches(cls, item: object) -> bool:
        """Whether a value looks like this modality, by its type or first bytes; paths are also told by `suffixes`."""
        return False

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

        None = the processor's default. An item without duration is one window from 0 to 0.
        """
        yield 0.0, 0.0, self.decode(item)

    def token_positions(self, item: object) -> tuple[Tensor, str] | None:
        """Extent of each token of an item (L, 2), and its unit; None if the model's adapter provides them."""
        return None

    def collate(self, samples: list[Tensor]) -> dict[str, Tensor]:
        """Decoded items as one batch: the model's input of this modality."""
        raise NotImplementedError

    def example(self, share: float, generator: torch.Generator) -> Tensor:
        """A random item as from `decode`: to trace the model, and to plan.

        Args:
            share: its length, from 0 (short) to 1 (the longest that `decode` returns).
        """
        raise UserError(f"no example of {self.key}; define {type(self).__name__}.example")

    @property
    def rules(self) -> str | None:
        """What `decode` and `collate` do, in words for programs that do it themselves; None if it is not described."""
        return None

    def collate_with_lengths(self, samples: list[Tensor]) -> dict[str, Tensor]:
        """`collate` with the lengths of the items also where they are equal, as exported branches need them; pictures,
        which have none, are collated without."""
        sizes = [self.size(sample) for sample in samples]
        lengths = {"lengths": torch.tensor(sizes)} if all(sizes) else {}
        return self.collate(samples) | lengths

    def num_tokens(self, item: object) -> int:
        """Number of tokens of one text, by which a server limits the work of a request."""
        return len(self.decode(item))

    def size(self, sample: Tensor) -> int:
        """Length of a decoded item, for batching by size; 0 if all items have the same size."""
        return len(sample)


def lengths_if_padded(samples: list[Tensor]) -> dict[str, Tensor]:
    """{"lengths": (B,) int64} if the lengths of the samples differ; a batch without it is computed without masks."""
    lengths = [len(sample) for sample in samples]
    return {"lengths": torch.tensor(lengths)} if len(set(lengths)) > 1 else {}
