"""Decoding of one item into the parts that the model reads."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice

from torch import Tensor

from onepeace.embed.base import LoadedModel
from onepeace.embed.items import parts_of
from onepeace.embed.options import Options
from onepeace.embed.parts import CompositeItem, Part
from onepeace.errors import UserError
from onepeace.files.source import NamedBytes, describe, is_open_file, read_bytes

WINDOWS_AHEAD = 16
"""Windows of a sound decoded ahead."""

Piece = tuple[float, float, Tensor]
"""Start second, end second and decoded values; 0 and 0 for an item without a duration."""


class ItemReader:
    """Decodes items for an embedder, by the options of a call."""

    def __init__(self, embedder: LoadedModel, options: Options) -> None:
        self.embedder = embedder
        self.options = options

    def __call__(self, item: object) -> list[Part]:
        """The decoded parts of one item."""
        if isinstance(item, CompositeItem):
            return item.parts(self.pieces)
        # The rest of a long sound is decoded when its turn comes, so that hours of it are never in memory.
        return [Part(modality, _ahead(self.pieces(modality, value))) for modality, value in self._values(item)]

    def pieces(self, modality: str, value: object) -> Iterator[Piece]:
        """The windows of a sound, or the whole value as one piece."""
        processor = self.embedder.processor(modality, projected=True)
        value = _content(value)
        if self.options.long == "truncate":
            yield 0.0, 0.0, processor.decode(value)
        else:
            yield from processor.windows(value, self.options.window, self.options.hop)

    def _values(self, item: object) -> list[tuple[str, object]]:
        """The modality and value of each part."""
        if isinstance(item, list):
            raise UserError("it is a list inside the list of items; give one flat list")
        item = _content(item)
        processors = self.embedder.processors
        modality = self.options.modality
        if modality is None:
            return parts_of(item, processors)
        if isinstance(item, Mapping) and item.keys() & processors.keys():
            raise UserError(f"it is a dictionary by modality; give it to `encode`, or its {modality} alone")
        return [(modality, item)]


def _content(value: object) -> object:
    """The bytes of a file that the caller opened; any other value as it is."""
    return NamedBytes(read_bytes(value), describe(value)) if is_open_file(value) else value


def _ahead(pieces: Iterator[Piece]) -> Iterable[Piece]:
    """The same pieces, of which the first are decoded now."""
    first = list(islice(pieces, WINDOWS_AHEAD))
    return chain(first, pieces)
