"""Encoding of many items with a model: results one by one (`results_of`), or collected (`collect`)."""

import logging
from collections.abc import Generator, Iterable, Sized
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from onepeace.embed.base import LoadedModel
from onepeace.embed.items import check_many, name_of
from onepeace.embed.options import Options
from onepeace.embed.reading import ItemReader
from onepeace.embed.stream import Assembly, Embedded, Queue, Sample
from onepeace.errors import UserError
from onepeace.threads import decode_ahead

if TYPE_CHECKING:
    from tqdm.auto import tqdm


log = logging.getLogger(__name__)

LONG_ITEMS_AHEAD = 8
"""Items decoded ahead when long sounds are cut into windows; it bounds memory."""


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
    computing = embedder.workers(partial(_vectors, embedder))
    queue = Queue(computing, partial(_size_of, embedder), options.batch_size, windows=is_cut)
    ahead = LONG_ITEMS_AHEAD if is_cut else 4 * options.batch_size
    with closing(decode_ahead(items, ItemReader(embedder, options), ahead=ahead)) as decoded, computing:
        for index, item, parts in decoded:
            assembly = Assembly(index, name_of(index, item), embedder.dtype)
            if isinstance(parts, Exception):
                assembly.error = parts
                parts = []
            yield from queue.add(assembly, parts)
        yield from queue.finish()


def _size_of(embedder: LoadedModel, sample: Sample) -> int:
    return embedder.processors[sample.modality].size(sample.values)


def _vectors(embedder: LoadedModel, batch: list[Sample]) -> Tensor:
    """The vectors (B, E) of a batch."""
    modality = batch[0].modality
    try:
        with torch.inference_mode():
            inputs = embedder.inputs(modality, [sample.values for sample in batch])
            outputs = embedder.module({modality: inputs})[modality]
            vectors = F.normalize(outputs.float().cpu(), dim=1)
    except torch.OutOfMemoryError as error:
        raise UserError(f"no memory for {len(batch)} {modality} items at once; lower batch_size") from error
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
