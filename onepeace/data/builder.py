"""Assembly of batches: each item's sample is read and decoded, the items are collated, and masks are drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onepeace.data.batch import Batch, Inputs, Mask
from onepeace.data.broken import ALLOWED_BROKEN, Broken
from onepeace.data.config import DataConfig, SourceConfig
from onepeace.data.decoder import DecodedItem, Decoder
from onepeace.data.frozen_cache import FrozenCache, collate
from onepeace.data.masking import MaskRates, draw_masks, word_starts, word_table
from onepeace.data.reader import Item
from onepeace.data.sample import Sample
from onepeace.data.shard import content_of
from onepeace.data.shard_cache import CacheFailure
from onepeace.errors import UserError


class BatchBuilder:
    """Builder of batches.

    Args:
        config: the recipe's data section.
        processors: processors by modality.
        adapters: the model's adapters by modality, which count tokens and select rows; they may be on the meta device.
        masks: rates of the masked passes by modality.
        features: features of augmented views by modality, with the samples by `item_name`, read instead of the media.
        parts: number of parts in which a process computes its batch.
    """

    def __init__(
        self,
        config: DataConfig,
        processors: Mapping[str, Any],
        adapters: Mapping[str, Any],
        masks: Mapping[str, MaskRates] | None = None,
        features: Mapping[str, FrozenCache] | None = None,
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

    def batch(self, name: str, items: Sequence[Item]) -> tuple[Batch, list[Broken]]:
        """Build a batch from the sources of a name.

        Returns:
            The batch, and the broken samples that others have replaced.

        Raises:
            UserError: no sample in a row as long as a window can be read; items have different numbers of inputs.
        """
        source = self.sources[name]
        broken: list[Broken] = []
        decoded = [self._first_readable(source, item, broken) for item in items]
        samples = [item.sample for item in decoded]
        rows = _rows_per_item(decoded)
        inputs = {modality: self._collate(modality, decoded, rows) for modality in source.pair}
        targets: dict[str, list[Any]] = {}
        for target in source.targets:
            targets[target] = [content_of(sample.targets.get(target)) for sample in samples]
        batch = Batch(
            inputs=inputs,
            source=name,
            keys=[sample.key for sample in samples],
            captions=[item.caption for item in decoded],
            names=[names_of(item.sample, item.caption) for item in decoded],
            targets=targets,
            rows=rows,
            replaced=[entry.key for entry in broken if not entry.is_shard],
        ).measured(self.adapters)
        batch = replace(batch, masks=self._masks(batch, [item.mask_seed for item in items]))
        return batch.split(self.parts, self.adapters), broken

    def _first_readable(self, source: SourceConfig, item: Item, broken: list[Broken]) -> DecodedItem:
        """The sample of an item, or the next in its lane that can be read and decoded."""
        limit = max(ALLOWED_BROKEN, len(item.window))
        for attempt in range(limit + 1):
            candidates, candidate = item.lane.at(item.position + attempt)
            try:
                sample = candidates.read(candidate)
                return self.decoder.decode(source, sample, item.window, item.rng)
            except CacheFailure:
                raise
            except UserError as error:
                broken.append(candidates.broken(candidate, error))
        raise UserError(
            f"{candidates.source.config.shards}: no sample of {limit} in a row can be read ({broken[-1].reason}); "
            "repair the shards"
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
            return collate(values)
        inputs = self.decoder.augments[modality].collate(values, self.processors[modality])
        if has_several and modality != "text":
            inputs["type_ids"] = torch.arange(rows).repeat(len(items))
        return inputs

    def _masks(self, batch: Batch, seeds: Sequence[Sequence[int]]) -> dict[str, dict[str, Mask]]:
        """Masks of a batch by modality and pass, for the modalities that the recipe lists.

        Args:
            seeds: a seed for each item; consecutive rows of an item draw from one generator, one after the other.
        """
        if not (self.masks or self.config.token_dropout):
            return {}
        generators: list[np.random.Generator] = []
        for seed in seeds:
            generators += [np.random.default_rng(seed)] * batch.rows
        masks: dict[str, dict[str, Mask]] = {}
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


def _rows_per_item(items: Sequence[DecodedItem]) -> int:
    """Number of rows of each item: that of its pictures, sounds or candidates, of which all must have equally many."""
    keys: dict[int, str] = {}
    for item in items:
        for value in item.values.values():
            if isinstance(value, list):
                keys[len(value)] = item.sample.key
    if len(keys) > 1 or 0 in keys:
        counts = " and ".join(f"{count} ({key})" for count, key in sorted(keys.items()))
        raise UserError(f"items of a batch have {counts} pictures, sounds or candidates; all must have equally many")
    return next(iter(keys), 1)


def names_of(sample: Sample, caption: str) -> list[str]:
    """Names of a sample in lower case: its drawn caption, its other captions and its label."""
    names = {f"caption {text.lower()}" for text in (caption, *sample.captions) if text.strip()}
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
    first: dict[Any, int] = {}
    return torch.tensor([first.setdefault(groups[number], number) for number in range(len(names))])
