"""Assembly of batches: each item's sample is read and decoded, the items are collated, and masks are drawn."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from onepeace.data.batch import Batch, Inputs, Mask
from onepeace.data.config import DataConfig, SourceConfig
from onepeace.data.decode import DecodedItem, Decoder
from onepeace.data.masking import MaskRates, draw_masks, word_starts, word_table
from onepeace.data.reader import Item, Unreadable
from onepeace.data.sample import BrokenSample, Sample
from onepeace.data.shard import CacheFailure, UnreadableShard, content_of
from onepeace.data.source import ALLOWED_BROKEN, Candidates
from onepeace.errors import UserError

Masks = dict[str, dict[str, Mask]]
"""Masks by modality and pass."""


class Broken(NamedTuple):
    """A sample that cannot be read or decoded, which another has replaced."""

    source: int
    """Number of its source in data.train."""
    key: str
    reason: str
    """A line that names it."""


@dataclass(frozen=True, eq=False)
class Drawn:
    """Fate of the samples that were drawn for a batch."""

    counts: Counter[int] = field(default_factory=Counter)
    """Number of samples by the number of their source, with broken ones."""
    broken: list[Broken] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)
    """Shards that could be opened, and not be read any more."""

    def add_lost(self, candidates: Candidates, candidate: int, item: Item, error: UserError) -> None:
        """Add a sample that another one replaces, as it is broken or its shard cannot be read."""
        source = candidates.source.number
        if isinstance(error, UnreadableShard):
            epoch = item.window.cursor["epoch"]
            self.unreadable.append(Unreadable(source, candidates.number, epoch, str(error)))
            return
        key = candidates.key(candidate)
        reason = str(error)
        if not isinstance(error, BrokenSample):
            reason = f"{candidates.shard.name}: {key} cannot be decoded ({error})"
        self.counts[source] += 1
        self.broken.append(Broken(source, key, reason))


class BatchBuilder:
    """Builder of batches.

    Args:
        config: the recipe's data section.
        processors: processors by modality.
        adapters: the model's adapters by modality, which count tokens and select rows; they may be on the meta device.
        masks: rates of the masked passes by modality.
        features: see `Decoder`.
        parts: number of parts in which a process computes its batch.
    """

    def __init__(
        self,
        config: DataConfig,
        processors: Mapping[str, Any],
        adapters: Mapping[str, Any],
        masks: Mapping[str, MaskRates] | None = None,
        features: Mapping[str, Any] | None = None,
        parts: int = 1,
    ):
        self.config = config
        self.processors = processors
        self.adapters = adapters
        self.masks = masks or {}
        self.parts = parts
        self.sources = {source.name: source for source in config.train}
        """One source for each name; all sources of a name have the same pair, targets and candidates."""
        self.decoder = Decoder(config, processors, features)
        self.word_table: Any = None
        if "text" in {*self.masks, *config.token_dropout}:
            vocabulary = processors["text"].tokenizer.get_vocab()
            self.word_table = word_table(sorted(vocabulary, key=vocabulary.__getitem__))

    def batch(self, name: str, items: Sequence[Item]) -> tuple[Batch, Drawn]:
        """Build a batch from the sources of a name.

        Raises:
            UserError: no sample in a row as long as a window can be read; items have different numbers of inputs.
        """
        source = self.sources[name]
        drawn = Drawn()
        decoded: list[DecodedItem] = []
        for item in items:
            decoded.append(self._first_readable(source, item, drawn))
        batch = self._assemble(source, decoded)
        replaced = [broken.key for broken in drawn.broken]
        masks = self._masks(batch, items)
        batch = replace(batch, replaced=replaced, masks=masks)
        return batch.split(self.parts, self.adapters), drawn

    def _assemble(self, source: SourceConfig, items: Sequence[DecodedItem]) -> Batch:
        """The batch of some items, without masks."""
        rows = _rows_per_item(items)
        inputs: dict[str, Inputs] = {}
        for modality in source.modalities:
            inputs[modality] = self._collate(modality, items, rows)
        targets: dict[str, list[Any]] = {name: [] for name in source.targets}
        keys: list[str] = []
        captions: list[str] = []
        names: list[list[str]] = []
        for sample, caption, _ in items:
            keys.append(sample.key)
            captions.append(caption)
            names.append(names_of(sample, caption))
            for name, values in targets.items():
                values.append(content_of(sample.targets.get(name)))
        batch = Batch(
            inputs=inputs,
            source=source.name,
            keys=keys,
            captions=captions,
            names=names,
            targets=targets,
            rows=rows,
        )
        return batch.measured(self.adapters)

    def _first_readable(self, source: SourceConfig, item: Item, drawn: Drawn) -> DecodedItem:
        """The sample of an item, or the next in its lane that can be read and decoded."""
        limit = max(ALLOWED_BROKEN, len(item.window))
        reason = ""
        for attempt in range(limit + 1):
            candidates, candidate = item.lane.at(item.position + attempt)
            try:
                decoded = self.decoder.decode(source, candidates.read(candidate), item)
                drawn.counts[candidates.source.number] += 1
                return decoded
            except CacheFailure:
                raise
            except UserError as error:
                drawn.add_lost(candidates, candidate, item, error)
                reason = str(error)
        raise UserError(
            f"no sample of {limit} in a row can be read ({reason}); repair the shards",
            where=candidates.source.config.shards,
        )

    def _collate(self, modality: str, items: Sequence[DecodedItem], rows: int) -> Inputs:
        """The model's input of one modality; an input that an item has once is repeated in all of its rows."""
        values: list[Any] = []
        has_several = False
        for item in items:
            value = item.values[modality]
            if isinstance(value, list):
                has_several = True
                values += value
            else:
                values += [value] * rows
        if modality in self.decoder.features:
            return _collate_features(values)
        augment = self.decoder.augments[modality]
        inputs = augment.collate(values, self.processors[modality])
        if has_several and modality != "text":
            inputs["type_ids"] = torch.arange(rows).repeat(len(items))
        return inputs

    def _masks(self, batch: Batch, items: Sequence[Item]) -> Masks:
        """Masks of a batch, for the modalities that the recipe lists.

        Each item has a generator; its consecutive rows draw from it one after the other.
        """
        if not (self.masks or self.config.token_dropout):
            return {}
        generators: list[np.random.Generator] = []
        for item in items:
            rng = np.random.default_rng(item.mask_seed)
            generators += [rng] * batch.rows
        masks: Masks = {}
        for modality, inputs in batch.inputs.items():
            rates = self.masks.get(modality)
            dropout = self.config.token_dropout.get(modality, 0.0)
            if rates is not None or dropout:
                starts = None
                if modality == "text":
                    starts = word_starts(inputs["ids"], self.word_table)
                lengths = batch.lengths[modality] - 1
                masks[modality] = draw_masks(rates, dropout, lengths, generators, starts)
        return masks


def _collate_features(maps: Sequence[np.ndarray]) -> Inputs:
    """{"features": (B, *grid, channels)}, and "lengths" (B,) in tokens where sequences differ."""
    tensors = [torch.from_numpy(np.array(features)) for features in maps]
    padded = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)
    batch = {"features": padded}
    if len({tensor.shape for tensor in tensors}) > 1:
        lengths = [len(tensor) for tensor in tensors]
        batch["lengths"] = torch.tensor(lengths)
    return batch


def _rows_per_item(items: Sequence[DecodedItem]) -> int:
    """Number of rows of each item: that of its pictures, sounds or candidates, of which all must have equally many."""
    keys: dict[int, str] = {}
    for item in items:
        for value in item.values.values():
            if isinstance(value, list):
                keys[len(value)] = item.sample.key
    if len(keys) > 1 or 0 in keys:
        counts = [f"{count} ({key})" for count, key in sorted(keys.items())]
        raise UserError(
            f"items of a batch have {' and '.join(counts)} pictures, sounds or candidates; all must have equally many"
        )
    return next(iter(keys), 1)


def names_of(sample: Sample, caption: str) -> list[str]:
    """Names of a sample in lower case: its drawn caption, its other captions and its label."""
    names: set[str] = set()
    for text in (caption, *sample.captions):
        if text.strip():
            names.add(f"caption {text.lower()}")
    if sample.label:
        names.add(f"label {sample.label.lower()}")
    return sorted(names)


def multi_positive_ids(names: Sequence[Sequence[str]]) -> Tensor:
    """Group numbers (B,) int64: items of one group must not be each other's negatives.

    Two items are in one group if they share a name (`names_of`), or if each shares a group with a third item.
    """
    from networkx.utils import UnionFind

    groups = UnionFind()
    for number, names_of_item in enumerate(names):
        groups.union(number, *names_of_item)
    first_of_group: dict[Any, int] = {}
    ids: list[int] = []
    for number in range(len(names)):
        ids.append(first_of_group.setdefault(groups[number], number))
    return torch.tensor(ids)
