"""Encoding of many items: decoded ahead in threads, sorted by size in blocks, computed, put in order again.

Memory is bounded for any number of items.
"""

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from onepeace.device import memory_remedy, remedy_for_nan
from onepeace.embed.base import LoadedModel
from onepeace.embed.items import CompositeItem, Part, Piece, name_of, parts_of, reason_of
from onepeace.errors import UserError
from onepeace.threads import MIN_BATCH, batch_per_worker, compute_ahead, decode_ahead

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


@dataclass(eq=False)
class Sample:
    """A decoded picture, sound or text of an item."""

    item: "Item"
    modality: str
    start: float
    end: float
    tensor: Tensor
    """Input of the model, replaced by its (E,) vector once that is there."""


@dataclass(eq=False)
class Item:
    """An item that is being encoded; the vectors of its samples are computed in any order."""

    index: int
    name: str
    error: Exception | None = None
    parts: list[list[Sample]] = field(default_factory=list)
    num_missing: int = 1
    """Vectors that are missing, and one for the end of the item, which has not been seen yet."""
    silences: list[bool] = field(default_factory=list)
    """Whether each of its sounds, or windows of them, is digital silence."""

    def samples(self, parts: Sequence[Part] | Exception) -> Iterator[Sample]:
        """Yield every sample of the item that is to be computed.

        Pieces may be decoded while they are consumed; an error in one fails the item.
        """
        if isinstance(parts, Exception):  # it could not be decoded
            self.error = parts
            return
        try:
            for part in parts:
                samples: list[Sample] = []
                self.parts.append(samples)
                for start, end, values in part.pieces:
                    if part.modality == "audio":  # a waveform, or its spectrogram
                        self.silences.append(bool(values.min() == values.max()))
                    samples.append(Sample(self, part.modality, start, end, values))
                    self.num_missing += 1
                    yield samples[-1]
                if not samples:
                    raise UserError("it contains nothing to embed")
        except Exception as error:
            # Drop this frame, which refers to the item: a reference cycle would be freed late.
            self.error = error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)
        self.num_missing -= 1

    def result(self, *, windows: bool = False) -> Embedded:
        """The item's result, including the vectors of its windows if `windows`.

        The vector of a sound is the renormalised mean of the unit vectors of its windows; that of an item is the
        renormalised mean of the vectors of its parts. A single vector is returned unchanged.
        """
        if self.error is not None:
            return Embedded(self.index, self.name, error=self.error)
        samples = [*chain.from_iterable(self.parts)]
        cut = None
        if windows:
            vectors = torch.stack([sample.tensor for sample in samples])
            cut = Windows(vectors, [sample.start for sample in samples], [sample.end for sample in samples])
        return Embedded(
            index=self.index,
            name=self.name,
            vector=_unit_mean(_unit_mean(sample.tensor for sample in part) for part in self.parts),
            windows=cut,
            modality=samples[0].modality,
            is_silent=bool(self.silences) and all(self.silences),
        )


def _unit_mean(vectors: Iterable[Tensor]) -> Tensor:
    """The renormalised mean of unit vectors; a single one is returned unchanged."""
    rows = list(vectors)
    return rows[0] if len(rows) == 1 else F.normalize(torch.stack(rows).sum(dim=0), dim=0)


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


class Encoding:
    """One call: from items to their results.

    Args:
        modality: that of all items; None = detected per item.
        long, window, hop, batch_size: see `onepeace.embed.embedder.Options`.
        stops: whether an item that cannot be decoded is raised at once, instead of being a result in its turn.

    Raises:
        UserError: an option has a value that is not allowed.
    """

    def __init__(
        self,
        embedder: LoadedModel,
        modality: str | None,
        *,
        long: Literal["truncate", "windows"] = "truncate",
        window: float | None = None,
        hop: float | None = None,
        batch_size: int = 32,
        stops: bool = False,
    ) -> None:
        if modality is not None:
            embedder.processor(modality, projected=True)
        if long not in ("truncate", "windows"):
            raise UserError(f"long is {long!r}; known: 'truncate', 'windows'")
        if long == "truncate" and (window, hop) != (None, None):
            raise UserError("window and hop need long='windows'; long is 'truncate'")
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; it should be 1 or more")
        self.embedder = embedder
        self.modality = modality
        self.is_cut = long == "windows"
        self.window = window
        self.hop = hop
        self.batch_size = batch_size
        self.stops = stops
        self.workers = embedder.workers
        self._sorted = partial(
            batches_of,
            size_of=lambda sample: embedder.processors[sample.modality].size(sample.tensor),
            batch_size=batch_per_worker(batch_size, self.workers),
            workers=self.workers,
        )
        self.waiting: deque[Item] = deque()
        """Items in order, of which the first is not done."""

    def results(self, items: Iterable[object]) -> Generator[Embedded, None, None]:
        """Decode, compute, scatter the vectors to their items, and yield the results of the first items when done."""
        ahead = LONG_ITEMS_AHEAD if self.is_cut else 4 * self.batch_size
        with closing(decode_ahead(items, self.read, ahead=ahead)) as decoded:
            batches = self._batches(decoded)
            computing = compute_ahead(batches, self.compute, self.workers, splits_single=self.embedder.is_large)
            with closing(computing) as computed:
                for batch, vectors in computed:
                    self.scatter(batch, vectors)
                    while self.waiting and (self.waiting[0].error is not None or not self.waiting[0].num_missing):
                        item = self.waiting.popleft()
                        result = item.result(windows=self.is_cut)
                        item.parts.clear()  # they refer to it: a reference cycle would be freed late
                        yield result

    def read(self, item: object) -> list[Part]:
        """The decoded parts of one item."""
        if isinstance(item, CompositeItem):
            return item.parts(self.pieces)
        parts = []
        for modality, value in parts_of(item, self.embedder.processors, self.modality):
            # The rest of a long sound is decoded when its turn comes, so that hours of it are never in memory.
            pieces = self.pieces(modality, value)
            first = list(islice(pieces, WINDOWS_AHEAD))
            parts.append(Part(modality, chain(first, pieces)))
        return parts

    def pieces(self, modality: str, value: object) -> Iterator[Piece]:
        """The windows of a sound, or the whole value as one piece."""
        processor = self.embedder.processor(modality, projected=True)
        if self.is_cut:
            yield from processor.windows(value, self.window, self.hop)
        else:
            yield 0.0, 0.0, processor.decode(value)

    def _batches(self, decoded: Iterable[tuple[int, object, list[Part] | Exception]]) -> Iterator[list[Sample]]:
        """Yield the samples of all items in batches, sorted by size within a block; `[]` after a failure, and last."""
        block_size = BATCHES_PER_BLOCK * self.batch_size
        block: list[Sample] = []
        block_bytes = 0
        for index, value, parts in decoded:
            item = Item(index, name_of(index, value))
            self.waiting.append(item)
            for sample in item.samples(parts):
                block.append(sample)
                block_bytes += sample.tensor.nbytes
                # A block is a multiple of the batch size, else batches would be smaller than they can be.
                is_large = len(block) == block_size or block_bytes >= BLOCK_BYTES
                if is_large and len(block) % self.batch_size == 0:
                    yield from self._sorted(block)
                    block = []
                    block_bytes = 0
            if item.error is not None:
                if self.stops:
                    raise UserError(reason_of(item.name, item.error), where=item.name) from item.error
                if len(self.waiting) > 2 * block_size:  # failures, which fill no block, wait behind an item
                    yield from self._sorted(block)
                    block = []
                    block_bytes = 0
                yield []
        yield from self._sorted(block)
        yield []  # the last item is done only now if its sample filled a block

    def compute(self, batch: list[Sample]) -> Iterable[Tensor]:
        """The vectors (B, E) of a batch of one modality."""
        if not batch:
            return []
        modality = batch[0].modality
        remedy = f"no memory for {len(batch)} {modality} items at once; lower batch_size"
        with memory_remedy(remedy), torch.inference_mode():
            inputs = self.embedder.inputs(modality, [sample.tensor for sample in batch])
            outputs = self.embedder.module({modality: inputs})[modality]
            vectors = F.normalize(outputs.float().cpu(), dim=1)
        return vectors.clone()  # outside inference mode, so that the vectors can be used in training

    def scatter(self, batch: list[Sample], vectors: Iterable[Tensor]) -> None:
        """Give the vectors of a batch to its samples."""
        for sample, vector in zip(batch, vectors, strict=True):
            sample.tensor = vector
            sample.item.num_missing -= 1
            if not math.isfinite(vector.sum().item()):  # checking the sum is faster than checking all
                sample.item.error = UserError(f"the model gives NaN for it; {remedy_for_nan(self.embedder.dtype)}")
