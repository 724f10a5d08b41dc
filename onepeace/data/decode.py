"""From a sample to the values of an item: its caption is chosen, its media are read, decoded and augmented.

All random numbers come from the generator of the item, so that it depends neither on the workers nor on the rest of its
batch.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from onepeace.data.augment import Another, AudioAugment, Augment, join_captions, make_augments
from onepeace.data.config import DataConfig, SourceConfig
from onepeace.data.reader import Item
from onepeace.data.sample import Sample, item_name
from onepeace.data.shard import CacheFailure, content_of
from onepeace.data.source import ALLOWED_BROKEN
from onepeace.errors import UserError

MIXED = "mixed"
"""Suffix of the key, after a dot, of an item with another one mixed in; no sample's key has a dot."""


class DecodedItem(NamedTuple):
    """An item on its way into a batch."""

    sample: Sample
    """The sample; without inputs and targets if another one was mixed in."""
    caption: str
    """The caption as drawn and changed by augmentation."""
    values: dict[str, Any]
    """Decoded input by modality; a list where an item has several."""


class Decoder:
    """Decoder of the samples of all sources.

    Args:
        config: the recipe's data section.
        processors: processors by modality.
        features: caches of the features of augmented views by modality, which are read instead of the media
            (`onepeace.train.frozen`, with the samples by `item_name`).
    """

    def __init__(
        self,
        config: DataConfig,
        processors: Mapping[str, Any],
        features: Mapping[str, Any] | None = None,
    ) -> None:
        self.config = config
        self.processors = processors
        self.features = features or {}
        self.augments = dict.fromkeys(processors, Augment())
        self.augments.update(make_augments(config.augment))
        self._sounds: OrderedDict[Any, Tensor] = OrderedDict()
        """Decoded sounds, the one that was used last at the end."""
        self._free_sound_bytes = round(config.sound_megabytes * 1e6)

    def decode(self, source: SourceConfig, sample: Sample, item: Item) -> DecodedItem:
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
        for _ in range(max(ALLOWED_BROKEN, len(item.window))):
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
        """Load an input; sounds come from their cache, if they are in it."""
        augment = self.augments[modality]
        if not (self.config.sound_megabytes and isinstance(augment, AudioAugment)):
            return augment.load(content_of(content), self.processors[modality])
        if content not in self._sounds:
            self._sounds[content] = augment.load(content_of(content), self.processors[modality])
            self._free_sound_bytes -= self._sounds[content].nbytes
        self._sounds.move_to_end(content)
        loaded = self._sounds[content]
        while self._free_sound_bytes < 0:
            _, oldest = self._sounds.popitem(last=False)
            self._free_sound_bytes += oldest.nbytes
        return loaded

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
