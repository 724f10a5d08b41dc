"""From a sample to the values of an item: its caption is chosen, its media are read, decoded and augmented.

All random numbers come from the generator of the item, so that it depends neither on the workers nor on the rest of its
batch.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from onepeace.data.augment import AudioAugment, Augment, join_captions, make_augments
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
            (`onepeace.train.frozen_cache`, with the samples by `item_name`).
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
        is_mixed = False
        for modality in source.modalities:
            if modality == "text":
                continue
            partners = Partners(self, source, modality, item)
            if modality in self.features:
                values[modality], caption = self._draw_features(sample, caption, partners)
            else:
                values[modality], caption = self._vary(sample, caption, partners)
            is_mixed = is_mixed or partners.is_used
        if "text" in source.modalities:
            values["text"] = self._texts(source, sample, caption)
        if is_mixed:  # label, captions and precomputed features of one clip do not fit a mix of two
            key = f"{sample.key}.{MIXED}"
            sample = replace(sample, key=key, inputs={}, targets={})
        return DecodedItem(sample, caption, values)

    def load_any(self, partners: "Partners") -> tuple[Any, str]:
        """A random sample's decoded input and caption; samples that cannot be read are passed over."""
        window = partners.item.window
        rng = partners.item.rng
        for _ in range(max(ALLOWED_BROKEN, len(window))):
            try:
                sample = window.any_sample(rng)
                value = self._load(partners.modality, sample.inputs[partners.modality])
            except CacheFailure:
                raise
            except UserError:  # reported when the sample itself is drawn
                continue
            return value, self._choose_caption(partners.source, sample, rng)
        raise UserError(
            "no sample can be read to be mixed into others; repair the shards", where=partners.source.shards
        )

    def _draw_features(self, sample: Sample, caption: str, partners: "Partners") -> tuple[Any, str]:
        """Features of one of the views of a sample, and its caption."""
        rng = partners.item.rng
        cache = self.features[partners.modality]
        features, partner = cache.draw(item_name(sample), rng)
        if partner is not None:
            partners.is_used = True
            partner_caption = self._choose_caption(partners.source, partner, rng)
            caption = join_captions(caption, partner_caption)
        return features, caption

    def _vary(self, sample: Sample, caption: str, partners: "Partners") -> tuple[Any, str]:
        """The decoded and augmented input of a sample, and its caption."""
        modality = partners.modality
        content = sample.inputs[modality]
        if not isinstance(content, list):
            return self._vary_one(content, caption, partners)
        values: list[Any] = []
        for part in content:  # each is augmented separately
            value, _ = self._vary_one(part, caption, partners)
            values.append(value)
        return values, caption

    def _vary_one(self, content: Any, caption: str, partners: "Partners") -> tuple[Any, str]:
        modality = partners.modality
        return self.augments[modality].vary(
            self._load(modality, content),
            caption,
            self.processors[modality],
            partners.item.rng,
            partners.draw,
        )

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


class Partners:
    """Draws the samples that are mixed into one input of an item."""

    def __init__(self, decoder: Decoder, source: SourceConfig, modality: str, item: Item) -> None:
        self.decoder = decoder
        self.source = source
        self.modality = modality
        self.item = item
        self.is_used = False
        """Whether one was drawn."""

    def draw(self) -> tuple[Any, str]:
        """Decoded input and caption of a random sample."""
        self.is_used = True
        return self.decoder.load_any(self)
