"""From a sample to the values of an item: its caption is chosen, its media are read, decoded and augmented.

All random numbers come from the generator of the item, so that it depends neither on the workers nor on the rest of its
batch.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from onepeace.data.augment import AudioAugment, Augment, join_captions, make_augments
from onepeace.data.broken import ALLOWED_BROKEN
from onepeace.data.config import DataConfig, SourceConfig
from onepeace.data.frozen_cache import FrozenCache
from onepeace.data.lane import Window
from onepeace.data.sample import Sample, item_name
from onepeace.data.shard import content_of
from onepeace.data.shard_cache import CacheFailure
from onepeace.errors import UserError

SOUND_BYTES = 512 * 2**20
"""Maximum size of each worker's cache of decoded sounds, which is used only with ``data.augment.audio``."""
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
        features: features of augmented views by modality, with the samples by `item_name`, read instead of the media.
    """

    def __init__(
        self,
        config: DataConfig,
        processors: Mapping[str, Any],
        features: Mapping[str, FrozenCache] | None = None,
    ) -> None:
        self.config = config
        self.processors = processors
        self.features = features or {}
        self.augments = {**dict.fromkeys(processors, Augment()), **make_augments(config.augment)}
        self._sounds: dict[Any, Tensor] = {}
        self._free_sound_bytes = SOUND_BYTES

    def decode(self, source: SourceConfig, sample: Sample, window: Window, rng: np.random.Generator) -> DecodedItem:
        """Decode an item.

        Args:
            source: a source of the sample's name.
            window: samples that may be mixed into this one.
            rng: generator of the item.

        Raises:
            UserError: an input cannot be read or decoded.
        """
        caption = self._choose_caption(source, sample, rng)
        values: dict[str, Any] = {}
        is_mixed = False
        for modality in source.pair:
            if modality == "text":
                continue
            if modality in self.features:
                values[modality], partner = self.features[modality].draw(item_name(sample), rng)
                if partner is not None:
                    is_mixed = True
                    caption = join_captions(caption, self._choose_caption(source, partner, rng))
                continue
            partners = Partners(self, source, modality, window, rng)
            values[modality], caption = self._vary(modality, sample, caption, partners)
            is_mixed = is_mixed or partners.is_used
        if "text" in source.pair:
            values["text"] = self._texts(source, sample, caption)
        if is_mixed:  # label, captions and precomputed features of one clip do not fit a mix of two
            sample = replace(sample, key=f"{sample.key}.{MIXED}", inputs={}, targets={})
        return DecodedItem(sample, caption, values)

    def load_any(
        self, source: SourceConfig, modality: str, window: Window, rng: np.random.Generator
    ) -> tuple[Any, str]:
        """A random sample's decoded input and caption; samples that cannot be read are passed over."""
        for _ in range(max(ALLOWED_BROKEN, len(window))):
            try:
                sample = window.any_sample(rng)
                return self._load(modality, sample.inputs[modality]), self._choose_caption(source, sample, rng)
            except CacheFailure:
                raise
            except UserError:  # reported when the sample itself is drawn
                continue
        raise UserError(f"{source.shards}: no sample can be read to be mixed into others; repair the shards")

    def _vary(self, modality: str, sample: Sample, caption: str, partners: "Partners") -> tuple[Any, str]:
        """The decoded and augmented input of a sample, and its caption."""
        vary = self.augments[modality].vary
        processor = self.processors[modality]
        content = sample.inputs[modality]
        if not isinstance(content, list):
            return vary(self._load(modality, content), caption, processor, partners.rng, partners.draw)
        values: list[Any] = []
        for part in content:  # each is augmented separately
            value, _ = vary(self._load(modality, part), caption, processor, partners.rng, partners.draw)
            values.append(value)
        return values, caption

    def _load(self, modality: str, content: Any) -> Any:
        """Load an input, from the cache if possible. Only sounds are cached: decoding Vorbis takes seven times as
        long as augmenting it; pictures decode faster and need far more memory."""
        if content in self._sounds:
            return self._sounds[content]
        augment = self.augments[modality]
        loaded = augment.load(content_of(content), self.processors[modality])
        if isinstance(augment, AudioAugment) and loaded.nbytes <= self._free_sound_bytes:
            self._free_sound_bytes -= loaded.nbytes
            self._sounds[content] = loaded
        return loaded

    def _choose_caption(self, source: SourceConfig, sample: Sample, rng: np.random.Generator) -> str:
        choices = list(sample.captions)
        if sample.label:
            for modality in source.pair:
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
        candidates = sample.targets["candidates"]
        return [decode(source.candidates.format(text=caption, candidate=candidate)) for candidate in candidates]


class Partners:
    """Draws the samples that are mixed into one item."""

    def __init__(
        self, decoder: Decoder, source: SourceConfig, modality: str, window: Window, rng: np.random.Generator
    ) -> None:
        self.decoder = decoder
        self.source = source
        self.modality = modality
        self.window = window
        self.rng = rng
        self.is_used = False
        """Whether one was drawn."""

    def draw(self) -> tuple[Any, str]:
        """Decoded input and caption of a random sample."""
        self.is_used = True
        return self.decoder.load_any(self.source, self.modality, self.window, self.rng)
