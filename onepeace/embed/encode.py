"""Encoding of many items: decoded ahead in threads, sorted by size block by block, computed, and put in order again.

`results_of` yields the results one by one, `collect` collects them. Memory is bounded for any number of items.
"""

import logging
import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from onepeace.device import memory_remedy, remedy_for_nan
from onepeace.embed.base import LoadedModel
from onepeace.embed.items import check_many, name_of, parts_of, reason_of
from onepeace.embed.options import Options
from onepeace.embed.parts import CompositeItem, Part
from onepeace.errors import UserError
from onepeace.files.source import NamedBytes, describe, is_open_file, read_bytes
from onepeace.threads import MIN_BATCH, Computing, decode_ahead

if TYPE_CHECKING:
    from tqdm.auto import tqdm

log = logging.getLogger(__name__)

BATCHES_PER_BLOCK, BLOCK_BYTES = 16, 1 << 26
"""Limits of a block, the samples that are sorted by size together: of small ones, such as texts, more fit into it."""
LONG_ITEMS_AHEAD = 8
"""Items decoded ahead when long sounds are cut into windows; it bounds memory."""
WINDOWS_AHEAD = 16
"""Windows of a sound decoded ahead."""

Piece = tuple[float, float, Tensor]
"""Start second, end second and decoded values; 0 and 0 for an item without a duration."""


class Windows(NamedTuple):
    """The vectors of one sound, window by window."""

    vectors: Tensor
    """(W, E) float32, unit rows."""
    starts: list[float]
    ends: list[float]
    """Seconds from the beginning of the sound at which each window starts and ends."""


@dataclass(frozen=True)
class Embedded:
    """The result of one item: a vector, or the error that prevented it."""

    index: int
    """Index of the item, from 0."""
    name: str
    vector: Tensor | None = None
    """(E,) float32 unit vector on the CPU; None if the item failed."""
    windows: Windows | None = None
    """The vectors of the windows with long="windows"; `vector` is their normalised mean."""
    error: Exception | None = None
    modality: str | None = None
    """Modality of the item, or of its first part; None if it failed."""
    is_silent: bool = False
    """Whether all audio of the item is digital silence, for which a vector is meaningless."""

    @property
    def reason(self) -> str | None:
        """Reason for the failure, on one line and without the item's name; None if the item succeeded."""
        return None if self.error is None else reason_of(self.name, self.error)


class Collected(NamedTuple):
    """The results of many items."""

    vectors: Tensor
    """(n, E), of the items that succeeded."""
    modalities: list[str]
    """Their modalities."""
    failures: list[Embedded]
    """The items that failed, unless the first of them is raised."""


def collect(embedder: LoadedModel, items: Iterable[object], options: Options) -> Collected:
    """Encode all items; see `Embedder.encode`."""
    vectors: list[Tensor] = []
    modalities: list[str] = []
    failures: list[Embedded] = []
    with closing(results_of(embedder, items, options)) as results:
        for result in _with_progress_bar(results, items, options):
            if result.vector is not None:
                if result.is_silent:
                    log.warning("%s: digital silence; its vector says nothing about a sound", result.name)
                vectors.append(result.vector)
                modalities.append(str(result.modality))
            elif options.on_error == "raise":
                raise UserError(f"{result.reason}", where=result.name) from result.error
            else:
                failures.append(result)
    rows = torch.stack(vectors) if vectors else torch.empty(0, embedder.embed_dim)
    return Collected(rows, modalities, failures)


def results_of(embedder: LoadedModel, items: Iterable[object], options: Options) -> Generator[Embedded, None, None]:
    """Yield the result of every item in order; see `Embedder.stream`."""
    if options.modality is not None:
        embedder.processor(options.modality, projected=True)
    check_many(items)
    is_cut = options.long == "windows"
    ahead = LONG_ITEMS_AHEAD if is_cut else 4 * options.batch_size
    computing = embedder.workers(partial(_vectors, embedder))
    with closing(decode_ahead(items, ItemReader(embedder, options), ahead=ahead)) as decoded, computing:
        encoding = _Encoding(computing, partial(_size_of, embedder), options.batch_size, windows=is_cut)
        for index, item, parts in decoded:
            yield from encoding.take(Item(index, name_of(index, item), embedder.dtype), parts)
        yield from encoding.finish()


def _size_of(embedder: LoadedModel, sample: "Sample") -> int:
    return embedder.processors[sample.modality].size(sample.values)


def _vectors(embedder: LoadedModel, batch: "list[Sample]") -> Tensor:
    """The vectors (B, E) of a batch."""
    modality = batch[0].modality
    remedy = f"no memory for {len(batch)} {modality} items at once; lower batch_size"
    with memory_remedy(remedy), torch.inference_mode():
        inputs = embedder.inputs(modality, [sample.values for sample in batch])
        outputs = embedder.module({modality: inputs})[modality]
        vectors = F.normalize(outputs.float().cpu(), dim=1)
    return vectors.clone()  # outside inference mode, so that the vectors can be used in training


def _with_progress_bar(results: Iterable[Embedded], items: Iterable[object], options: Options) -> "tqdm[Embedded]":
    """The results, with the progress bar that the options ask for."""
    from tqdm.auto import tqdm

    disable = None  # unless stderr is a terminal
    delay = 1
    if options.progress is not None:
        disable = not options.progress
        delay = 0
    return tqdm(
        results,
        desc=f"encoding {options.modality or 'items'}",
        total=len(items) if isinstance(items, Sized) else None,
        disable=disable,
        delay=delay,
        unit="item",
    )


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


class Item:
    """An item that is being encoded: the vectors of its samples, which the model computes in any order."""

    def __init__(self, index: int, name: str, dtype: torch.dtype) -> None:
        self.index = index
        self.name = name
        self.dtype = dtype
        self.error: Exception | None = None
        self._modality: str | None = None
        self._is_silent: bool | None = None
        self._vectors: list[Tensor | None] = []
        self._spans: list[tuple[float, float]] = []
        self._rows_of_parts: list[slice] = []
        self._num_missing = 1  # one for the end of the item, which has not been seen yet

    def samples(self, parts: Sequence[Part]) -> Iterator["Sample"]:
        """Yield every sample of the item that is to be computed.

        Pieces may be decoded while they are consumed; an error in one fails the item.
        """
        try:
            for part in parts:
                first_row = len(self._vectors)
                self._modality = self._modality or part.modality
                for start, end, values in part.pieces:
                    self._spans.append((start, end))
                    self._vectors.append(None)
                    self._num_missing += 1
                    if part.modality == "audio" and self._is_silent is not False:  # a waveform, or its spectrogram
                        self._is_silent = bool(values.min() == values.max())
                    yield Sample(part.modality, values, self, len(self._vectors) - 1)
                if len(self._vectors) == first_row:
                    raise UserError("it contains nothing to embed")
                self._rows_of_parts.append(slice(first_row, len(self._vectors)))
        except Exception as error:
            # Drop this frame, which refers to the item: a reference cycle would be freed late.
            self.error = error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)
        self._num_missing -= 1

    def fill(self, row: int, vector: Tensor) -> None:
        """Store the (E,) vector of a row."""
        self._vectors[row] = vector
        self._num_missing -= 1
        if not math.isfinite(vector.sum().item()):  # checking the sum is faster than checking all
            self.error = UserError(f"the model gives NaN for it; {remedy_for_nan(self.dtype)}")

    @property
    def done(self) -> bool:
        return self.error is not None or not self._num_missing

    def result(self, *, windows: bool = False) -> Embedded:
        """The item's result, including the vectors of its windows if `windows`.

        The vector of a sound is the renormalised mean of the unit vectors of its windows; that of an item is the
        renormalised mean of the vectors of its parts. A single vector is returned unchanged.
        """
        if self.error is not None:
            return Embedded(self.index, self.name, error=self.error)
        vectors = [vector for vector in self._vectors if vector is not None]
        cut = Windows(torch.stack(vectors), *map(list, zip(*self._spans, strict=True))) if windows else None
        return Embedded(
            index=self.index,
            name=self.name,
            vector=_unit_mean([_unit_mean(vectors[rows]) for rows in self._rows_of_parts]),
            windows=cut,
            modality=self._modality,
            is_silent=bool(self._is_silent),
        )


def _unit_mean(rows: list[Tensor]) -> Tensor:
    """The renormalised mean of unit vectors; a single one is returned unchanged."""
    if len(rows) == 1:
        return rows[0]
    return F.normalize(torch.stack(rows).sum(dim=0), dim=0)


class Sample(NamedTuple):
    """A decoded picture, sound or text, as the model reads it."""

    modality: str
    values: Tensor
    item: Item
    row: int
    """Row of its vector in the item."""


def batches_of(
    samples: Iterable[Sample], size_of: Callable[[Sample], int], batch_size: int, workers: int = 1
) -> Iterator[list[Sample]]:
    """Yield batches of one modality and similar sizes, to minimise padding; they depend only on the samples.

    The largest samples come first, so that a batch too large for memory fails early.

    Args:
        batch_size: maximum number of samples in a batch.
        workers: number of workers among which the samples of a modality are divided evenly.
    """
    by_modality: dict[str, list[Sample]] = {}
    for sample in samples:
        by_modality.setdefault(sample.modality, []).append(sample)
    for group in by_modality.values():
        group.sort(key=size_of, reverse=True)
        rounds = math.ceil(len(group) / (workers * batch_size))
        even_size = math.ceil(len(group) / (workers * rounds))
        size = max(even_size, min(MIN_BATCH, batch_size))
        for start in range(0, len(group), size):
            yield group[start : start + size]


class _Encoding:
    """Items in order, and their samples, which are sorted by size and computed block by block.

    Args:
        computing: computes the (B, E) vectors of a batch.
        size_of: length of a sample, by which samples are sorted.
        batch_size: samples that all workers together compute at once.
        windows: whether results contain the vectors of windows.
    """

    def __init__(
        self,
        computing: Computing[list[Sample], Tensor],
        size_of: Callable[[Sample], int],
        batch_size: int,
        *,
        windows: bool,
    ) -> None:
        self._computing = computing
        self._size_of = size_of
        self._batch_size = batch_size
        self._windows = windows
        self._block_size = BATCHES_PER_BLOCK * batch_size
        self._block: list[Sample] = []
        self._block_bytes = 0
        self._items: deque[Item] = deque()

    def take(self, item: Item, parts: Sequence[Part] | Exception) -> Iterator[Embedded]:
        """Take an item, or why it could not be decoded, and yield the results that are available."""
        self._items.append(item)
        if isinstance(parts, Exception):
            item.error = parts
            parts = []
        for sample in item.samples(parts):
            self._block.append(sample)
            self._block_bytes += sample.values.nbytes
            # A block is a multiple of the batch size, else batches would be smaller than they can be.
            is_large = len(self._block) == self._block_size or self._block_bytes >= BLOCK_BYTES
            if is_large and len(self._block) % self._batch_size == 0:
                for batch in self._take_block():
                    yield from self._results(self._computing.start(batch))
        if len(self._items) > 2 * self._block_size:  # failures, which fill no block, wait behind an item
            yield from self.finish()
        yield from self._available()

    def finish(self) -> Iterator[Embedded]:
        """Compute all samples, and yield all results."""
        yield from self._results(self._computing.finish(self._take_block()))
        yield from self._available()

    def _take_block(self) -> list[list[Sample]]:
        share = self._computing.share(self._batch_size)
        batches = list(batches_of(self._block, self._size_of, share, self._computing.workers))
        self._block = []
        self._block_bytes = 0
        return batches

    def _results(self, computed: Iterable[tuple[list[Sample], Tensor]]) -> Iterator[Embedded]:
        """Scatter vectors to their items, and yield the results of the first items that are done."""
        for batch, vectors in computed:
            for sample, vector in zip(batch, vectors, strict=True):
                sample.item.fill(sample.row, vector)
            yield from self._available()

    def _available(self) -> Iterator[Embedded]:
        while self._items and self._items[0].done:
            yield self._items.popleft().result(windows=self._windows)
