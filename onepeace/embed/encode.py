"""Encoding of many items: checked, decoded ahead in threads, sorted by size in blocks, computed, put in order again.

`results_of` yields the results one by one, `collect` collects them. Memory is bounded for any number of items.
"""

import logging
import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Sized
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from onepeace.device import memory_remedy, remedy_for_nan
from onepeace.embed.base import LoadedModel
from onepeace.embed.items import CompositeItem, Part, Piece, check_many, name_of, parts_of, reason_of
from onepeace.embed.options import Options
from onepeace.errors import UserError
from onepeace.threads import MIN_BATCH, batch_per_worker, compute_ahead, decode_ahead

log = logging.getLogger(__name__)

BATCHES_PER_BLOCK, BLOCK_BYTES = 16, 1 << 26
"""Limits of a block, the samples that are sorted by size together: of small ones, such as texts, more fit into it."""
LONG_ITEMS_AHEAD = 8
"""Items decoded ahead when long sounds are cut into windows; it bounds memory."""
WINDOWS_AHEAD = 16
"""Windows of a sound decoded ahead."""


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

    def samples(self, parts: Sequence[Part] | Exception) -> Iterator["Sample"]:
        """Yield every sample of the item that is to be computed.

        Pieces may be decoded while they are consumed; an error in one fails the item.
        """
        if isinstance(parts, Exception):  # it could not be decoded
            self.error = parts
            return
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
    from tqdm.auto import tqdm

    encoding = Encoding(embedder, options, stops_at_failure=options.on_error == "raise")
    vectors: list[Tensor] = []
    modalities: list[str] = []
    failures: list[Embedded] = []
    with closing(encoding.results(check_many(items))) as results:
        for result in tqdm(
            results,
            desc=f"encoding {options.modality or 'items'}",
            total=len(items) if isinstance(items, Sized) else None,
            disable=None if options.progress is None else not options.progress,  # None: unless stderr is a terminal
            delay=1 if options.progress is None else 0,
            unit="item",
        ):
            if result.vector is None:
                failures.append(result)
                continue
            if result.is_silent:
                log.warning("%s: digital silence; its vector says nothing about a sound", result.name)
            vectors.append(result.vector)
            modalities.append(str(result.modality))
    rows = torch.stack(vectors) if vectors else torch.empty(0, embedder.embed_dim)
    return Collected(rows, modalities, failures)


def results_of(embedder: LoadedModel, items: Iterable[object], options: Options) -> Generator[Embedded, None, None]:
    """Yield the result of every item in order; see `Embedder.stream`."""
    yield from Encoding(embedder, options).results(check_many(items))


class Encoding:
    """One call: from items to their results.

    Args:
        stops_at_failure: whether the first item that fails is raised, instead of being a result.
    """

    def __init__(self, embedder: LoadedModel, options: Options, *, stops_at_failure: bool = False) -> None:
        if options.modality is not None:
            embedder.processor(options.modality, projected=True)
        self.embedder = embedder
        self.options = options
        self.stops_at_failure = stops_at_failure
        self.is_cut = options.long == "windows"
        self.waiting: deque[Item] = deque()
        """Items in order, of which the first is not done."""

    def results(self, items: Iterable[object]) -> Generator[Embedded, None, None]:
        """Decode, compute, scatter the vectors to their items, and yield the results of the first items when done."""
        ahead = LONG_ITEMS_AHEAD if self.is_cut else 4 * self.options.batch_size
        embedder = self.embedder
        with closing(decode_ahead(items, self._read, ahead=ahead)) as decoded:
            batches = self._batches(decoded)
            computing = compute_ahead(batches, self._vectors, embedder.workers, splits_single=embedder.is_large)
            with closing(computing) as computed:
                for batch, vectors in computed:
                    for sample, vector in zip(batch, vectors, strict=True):
                        sample.item.fill(sample.row, vector)
                    while self.waiting and self.waiting[0].done:
                        item = self.waiting.popleft()
                        self._check(item)
                        yield item.result(windows=self.is_cut)

    def _read(self, item: object) -> list[Part]:
        """The decoded parts of one item."""
        if isinstance(item, CompositeItem):
            return item.parts(self.pieces)
        parts = []
        for modality, value in parts_of(item, self.embedder.processors, self.options.modality):
            # The rest of a long sound is decoded when its turn comes, so that hours of it are never in memory.
            pieces = self.pieces(modality, value)
            first = list(islice(pieces, WINDOWS_AHEAD))
            parts.append(Part(modality, chain(first, pieces)))
        return parts

    def pieces(self, modality: str, value: object) -> Iterator[Piece]:
        """The windows of a sound, or the whole value as one piece."""
        processor = self.embedder.processor(modality, projected=True)
        if self.is_cut:
            yield from processor.windows(value, self.options.window, self.options.hop)
        else:
            yield 0.0, 0.0, processor.decode(value)

    def _batches(self, decoded: Iterable[tuple[int, object, list[Part] | Exception]]) -> Iterator[list[Sample]]:
        """Yield the samples of all items in batches, sorted by size within a block, and `[]` after a failure."""
        batch_size = self.options.batch_size
        block_size = BATCHES_PER_BLOCK * batch_size
        block: list[Sample] = []
        block_bytes = 0
        for index, value, parts in decoded:
            item = Item(index, name_of(index, value), self.embedder.dtype)
            self.waiting.append(item)
            for sample in item.samples(parts):
                block.append(sample)
                block_bytes += sample.values.nbytes
                # A block is a multiple of the batch size, else batches would be smaller than they can be.
                is_large = len(block) == block_size or block_bytes >= BLOCK_BYTES
                if is_large and len(block) % batch_size == 0:
                    yield from self._sorted(block)
                    block = []
                    block_bytes = 0
            if item.error is not None:
                self._check(item)
                if len(self.waiting) > 2 * block_size:  # failures, which fill no block, wait behind an item
                    yield from self._sorted(block)
                    block = []
                    block_bytes = 0
                yield []
        yield from self._sorted(block)

    def _sorted(self, block: list[Sample]) -> Iterator[list[Sample]]:
        """The batches of a block."""
        processors = self.embedder.processors
        share = batch_per_worker(self.options.batch_size, self.embedder.workers)
        return batches_of(
            block, lambda sample: processors[sample.modality].size(sample.values), share, self.embedder.workers
        )

    def _vectors(self, batch: list[Sample]) -> Iterable[Tensor]:
        """The vectors (B, E) of a batch."""
        if not batch:
            return []
        modality = batch[0].modality
        remedy = f"no memory for {len(batch)} {modality} items at once; lower batch_size"
        with memory_remedy(remedy), torch.inference_mode():
            inputs = self.embedder.inputs(modality, [sample.values for sample in batch])
            outputs = self.embedder.module({modality: inputs})[modality]
            vectors = F.normalize(outputs.float().cpu(), dim=1)
        return vectors.clone()  # outside inference mode, so that the vectors can be used in training

    def _check(self, item: Item) -> None:
        """UserError if the item failed and the call stops at failures."""
        if self.stops_at_failure and item.error is not None:
            raise UserError(reason_of(item.name, item.error), where=item.name) from item.error
