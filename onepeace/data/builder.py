"""Assembly of batches: each item's sample is read and decoded, the items are collated, and masks are drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from onepeace.data.augment import Another, Augment, join_captions, make_augments
from onepeace.data.batch import Batch, Inputs, Mask
from onepeace.data.config import DataConfig, SourceConfig
from onepeace.data.masking import MaskRates, draw_masks, word_starts, word_table
from onepeace.data.reader import Item
from onepeace.data.sample import Sample, item_name
from onepeace.data.shard import CacheFailure, content_of
from onepeace.data.source import ALLOWED_BROKEN
from onepeace.errors import UserError

MIXED = "mixed"
"""Suffix of the key, after a dot, of an item with another one mixed in; no sample's key has a dot."""
Masks = dict[str, dict[str, Mask]]
"""Masks by modality and pass."""


class DecodedItem(NamedTuple):
    """An item on its way into a batch."""

    sample: Sample
    """The sample; without inputs and targets if another one was mixed in."""
    caption: str
    """The caption as drawn and changed by augmentation."""
    values: dict[str, Any]
    """Decoded input by modality; a list where an item has several."""


class BatchBuilder:
    """Builder of batches.

    Args:
        config: the recipe's data section.
        processors: processors by modality.
        adapters: the model's adapters by modality, which count tokens and select rows; they may be on the meta device.
        masks: rates of the masked passes by modality.
        features: caches of the features of augmented views by modality, which are read instead of the media
            (`onepeace.train.frozen`, with the samples by `item_name`).
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
        self.features = features or {}
        self.augments = dict.fromkeys(processors, Augment())
        self.augments.update(make_augments(config.augment))
        self.word_table: Any = None
        if "text" in {*self.masks, *config.token_dropout}:
            vocabulary = processors["text"].tokenizer.get_vocab()
            self.word_table = word_table(sorted(vocabulary, key=vocabulary.__getitem__))

    def batch(self, name: str, items: Sequence[Item]) -> Batch:
        """Build a batch from the sources of a name.

        Raises:
            UserError: no sample in a row as long as a window can be read; items have different numbers of inputs.
        """
        source = self.sources[name]
        decoded = [self._first_readable(source, item) for item in items]
        batch = self._assemble(source, decoded)
        batch = replace(batch, masks=self._masks(batch, items))
        return batch.split(self.parts, self.adapters)

    def _assemble(self, source: SourceConfig, items: Sequence[DecodedItem]) -> Batch:
        """The batch of some items, without masks."""
        rows = _rows_per_item(items)
        inputs: dict[str, Inputs] = {}
        for modality in source.modalities:
            inputs[modality] = self._collate(modality, items, rows)
        targets: dict[str, list[Any]] = {}
        for name in source.targets:
            targets[name] = [content_of(item.sample.targets.get(name)) for item in items]
        batch = Batch(
            inputs=inputs,
            source=source.name,
            keys=[item.sample.key for item in items],
            captions=[item.caption for item in items],
            names=[names_of(item.sample, item.caption) for item in items],
            targets=targets,
            rows=rows,
        )
        return batch.measured(self.adapters)

    def _first_readable(self, source: SourceConfig, item: Item) -> DecodedItem:
        """The sample of an item, or the next in its lane that can be read and decoded."""
        limit = max(ALLOWED_BROKEN, item.window.cursor["samples"])
        reason = ""
        for attempt in range(limit + 1):
            candidates, candidate = item.lane.at(item.position + attempt)
            try:
                decoded = self._decode(source, candidates.read(candidate), item)
                candidates.source.drawn += 1
                return decoded
            except CacheFailure:
                raise
            except UserError as error:
                candidates.lose(candidate, error, item.window.cursor["epoch"])
                reason = str(error)
        raise UserError(
            f"no sample of {limit} in a row can be read ({reason}); repair the shards",
            where=source.shards,
        )

    def _decode(self, source: SourceConfig, sample: Sample, item: Item) -> DecodedItem:
        """Decode an item.

        Args:
            source: a source of the sample's name.
            item: place of the sample in the batch.

        Raises:
            UserError: an input cannot be read or decoded.
        """
        caption = self._choose_caption(source, sample, item.rng)
        values: dict[str, Any] = {}
        partners: list[Sample] = []  # samples that are mixed into this one
        for modality in source.modalities:
            if modality in self.features:
                values[modality], partner = self.features[modality].draw(item_name(sample), item.rng)
                if partner is not None:
                    partners.append(partner)
                    caption = join_captions(caption, self._choose_caption(source, partner, item.rng))
            elif modality != "text":
                another = partial(self._draw_partner, source, modality, item, partners)
                values[modality], caption = self._vary(modality, sample, caption, item.rng, another)
        if "text" in source.modalities:
            values["text"] = self._texts(source, sample, caption)
        if partners:  # label, captions and precomputed features of one clip do not fit a mix of two
            key = f"{sample.key}.{MIXED}"
            sample = replace(sample, key=key, inputs={}, targets={})
        return DecodedItem(sample, caption, values)

    def _draw_partner(self, source: SourceConfig, modality: str, item: Item, partners: list[Sample]) -> tuple[Any, str]:
        """A random sample's decoded input and caption, to be mixed in; those that cannot be read are passed over."""
        for _ in range(max(ALLOWED_BROKEN, item.window.cursor["samples"])):
            try:
                sample = item.window.any_sample(item.rng)
                value = self._load(modality, sample.inputs[modality])
            except CacheFailure:
                raise
            except UserError:  # reported when the sample itself is drawn
                continue
            partners.append(sample)
            return value, self._choose_caption(source, sample, item.rng)
        raise UserError("no sample can be read to be mixed into others; repair the shards", where=source.shards)

    def _vary(
        self, modality: str, sample: Sample, caption: str, rng: np.random.Generator, another: Another
    ) -> tuple[Any, str]:
        """The decoded and augmented input of a sample, and its caption; each of several pictures by itself."""
        content = sample.inputs[modality]
        values: list[Any] = []
        varied_caption = caption
        for part in content if isinstance(content, list) else [content]:
            loaded = self._load(modality, part)
            value, varied_caption = self.augments[modality].vary(
                loaded, caption, self.processors[modality], rng, another
            )
            values.append(value)
        if isinstance(content, list):
            return values, caption
        return values[0], varied_caption

    def _load(self, modality: str, content: Any) -> Any:
        """Read and load an input."""
        return self.augments[modality].load(content_of(content), self.processors[modality])

    def _choose_caption(
        self,
        source: SourceConfig,
        sample: Sample,
        rng: np.random.Generator,
    ) -> str:
        """One of the captions and of the templates filled with the label; "" if there is none."""
        choices = list(sample.captions)
        if sample.label:
            for modality in source.modalities:
                for template in self.config.templates.get(modality, ()):
                    choices.append(template.format(sample.label))
        if not choices:
            return ""
        return choices[int(rng.integers(len(choices)))]

    def _texts(self, source: SourceConfig, sample: Sample, caption: str) -> Any:
        """The decoded caption, or with a template one text for each candidate answer."""
        decode = self.processors["text"].decode
        if source.candidates is None:
            return decode(caption)
        texts: list[Any] = []
        for candidate in sample.targets["candidates"]:
            text = source.candidates.format(text=caption, candidate=candidate)
            texts.append(decode(text))
        return texts

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
        if modality in self.features:
            return _collate_features(values)
        augment = self.augments[modality]
        inputs = augment.collate(values, self.processors[modality])
        return self.adapters[modality].numbered(inputs, rows) if has_several else inputs

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
