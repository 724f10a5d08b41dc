"""Assembly of batches from samples: caption choice, decoding, augmentation and token masks.

Each item has its own random generator, so that it depends neither on the workers nor on the rest of its batch.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onepeace.data.augment import AudioAugment, Augment, join_captions, make_augments
from onepeace.data.batch import Batch, Mask
from onepeace.data.config import DataConfig, SourceConfig
from onepeace.data.frozen_cache import FrozenCache, collate
from onepeace.data.masking import MaskRates, draw_masks, word_starts, word_table
from onepeace.data.reader import Window
from onepeace.data.sample import Sample, item_name
from onepeace.data.shard_cache import content_of
from onepeace.data.shards import ALLOWED_BROKEN
from onepeace.errors import UserError

log = logging.getLogger(__name__)

SOUND_BYTES = 512 * 2**20
"""Maximum size of each worker's cache of decoded sounds, which is used only with ``data.augment.audio``."""
MIXED = "mixed"
"""Suffix of the key, after a dot, of an item with another one mixed in; no sample's key has a dot."""


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
        self.config, self.processors = config, processors
        self.adapters = adapters
        self.masks = masks or {}
        self.features = features or {}
        self.parts = parts
        self.sources = {source.name: source for source in config.train}
        """One source for each name; all sources of a name have the same pair, targets and candidates."""
        self.augments = {**dict.fromkeys(processors, Augment()), **make_augments(config.augment)}
        self.broken: dict[str, set[str]] = {}
        self._sounds: dict[Any, Tensor] = {}
        self._room = SOUND_BYTES
        self.word_table: Any = None
        if "text" in {*self.masks, *config.token_dropout}:
            vocabulary = processors["text"].tokenizer.get_vocab()
            self.word_table = word_table(sorted(vocabulary, key=vocabulary.__getitem__))

    def batch(
        self,
        name: str,
        window: Window,
        items: Sequence[tuple[Iterator[Sample], np.random.Generator, np.random.Generator]],
    ) -> Batch:
        """Build a batch from the sources of a name.

        Args:
            name: name of the sources.
            window: the reader's window, from which items to mix in are drawn.
            items: candidates for each place in the batch, of which the first decodable one is taken, and the random
                generators of the item and of its masks.
        """
        source = self.sources[name]
        drawn: list[tuple[Sample, str, dict[str, Any]]] = []
        replaced: list[str] = []
        for candidates, rng, _ in items:
            for sample in candidates:
                try:
                    drawn.append(self._decode(source, window, sample, rng))
                    break
                except UserError as error:
                    self._note(name, sample, window.known, error)
                    replaced.append(sample.key)
        counts = {len(v): item.key for item, _, decoded in drawn for v in decoded.values() if isinstance(v, list)}
        if len(counts) > 1 or 0 in counts:
            found = " and ".join(f"{count} ({key})" for count, key in sorted(counts.items()))
            raise UserError(f"items of a batch have {found} pictures, sounds or candidates; all must have equally many")
        inputs, rows = {}, next(iter(counts), 1)
        for modality in source.pair:
            values = [decoded[modality] for _, _, decoded in drawn]
            several = any(isinstance(value, list) for value in values)
            flat = [one for value in values for one in (value if isinstance(value, list) else [value] * rows)]
            if modality in self.features:
                inputs[modality] = collate(flat)
                continue
            inputs[modality] = self.augments[modality].collate(flat, self.processors[modality])
            if several and modality != "text":
                inputs[modality]["type_ids"] = torch.arange(rows).repeat(len(drawn))
        batch = Batch(
            inputs=inputs,
            source=name,
            keys=[sample.key for sample, _, _ in drawn],
            captions=[text for _, text, _ in drawn],
            names=[names_of(sample, text) for sample, text, _ in drawn],
            targets={target: [content_of(s.targets.get(target)) for s, _, _ in drawn] for target in source.targets},
            rows=rows,
            replaced=replaced,
        ).measured(self.adapters)
        batch = replace(batch, masks=self._masks(batch, [generator for _, _, generator in items]))
        return batch.split(self.parts, self.adapters)

    def _decode(
        self, source: SourceConfig, window: Window, sample: Sample, rng: np.random.Generator
    ) -> tuple[Sample, str, dict[str, Any]]:
        """The sample, its caption and its decoded inputs."""
        text = self._caption(source, sample, rng)
        decoded: dict[str, Any] = {}
        partners: list[Sample] = []

        def another() -> tuple[Any, str]:
            while True:
                partner = window.samples[int(rng.integers(len(window.samples)))]
                with suppress(UserError):  # logged when the partner itself is drawn
                    found = self._load(modality, partner.inputs[modality]), self._caption(source, partner, rng)
                    partners.append(partner)
                    return found

        for modality in source.pair:
            if modality == "text":
                continue
            if modality in self.features:
                decoded[modality], partner = self.features[modality].draw(item_name(sample), rng)
                if partner is not None:
                    partners.append(partner)
                    text = join_captions(text, self._caption(source, partner, rng))
                continue
            vary, processor, own = self.augments[modality].vary, self.processors[modality], sample.inputs[modality]
            if isinstance(own, list):  # each is augmented separately
                decoded[modality] = [vary(self._load(modality, one), text, processor, rng, another)[0] for one in own]
            else:
                decoded[modality], text = vary(self._load(modality, own), text, processor, rng, another)
        if "text" in source.pair:
            read, template = self.processors["text"].decode, source.candidates
            decoded["text"] = read(text)
            if template is not None:
                candidates = sample.targets["candidates"]
                decoded["text"] = [read(template.format(text=text, candidate=one)) for one in candidates]
        if partners:  # label, captions and precomputed features of one clip do not fit a mix of two
            sample = replace(sample, key=f"{sample.key}.{MIXED}", inputs={}, targets={})
        return sample, text, decoded

    def _load(self, modality: str, place: Any) -> Any:
        """Load an item, from the cache if possible. Only sounds are cached: decoding Vorbis takes seven times as
        long as augmenting it; pictures decode faster and need far more memory."""
        if place in self._sounds:
            return self._sounds[place]
        augment = self.augments[modality]
        loaded = augment.load(content_of(place), self.processors[modality])
        if isinstance(augment, AudioAugment) and loaded.nbytes <= self._room:
            self._room -= loaded.nbytes
            self._sounds[place] = loaded
        return loaded

    def _caption(self, source: SourceConfig, sample: Sample, rng: np.random.Generator) -> str:
        choices = list(sample.captions)
        if sample.label:
            templates = [t for modality in source.pair for t in self.config.templates.get(modality, ())]
            choices += [template.format(sample.label) for template in templates]
        return choices[int(rng.integers(len(choices)))] if choices else ""

    def _note(self, name: str, sample: Sample, total: int, error: UserError) -> None:
        """Log an undecodable item once; `UserError` if there are too many."""
        broken, where = self.broken.setdefault(name, set()), f"{sample.source}: {sample.key}"
        if where not in broken:
            broken.add(where)
            log.warning("%s cannot be decoded, another item takes its place: %s", where, error)
        if len(broken) == total or len(broken) > max(ALLOWED_BROKEN, self.config.broken_limit * total):
            raise UserError(
                f"{len(broken)} of {total} items of {name} cannot be decoded, the last {where}: {error}; "
                "repair the shards or raise data.broken_limit"
            )

    def _masks(self, batch: Batch, generators: Sequence[np.random.Generator]) -> dict[str, dict[str, Mask]]:
        """Masks of a batch by modality and pass, for the modalities that the recipe lists.

        Args:
            generators: a generator for each item; consecutive rows of an item draw from it one after the other.
        """
        row_generators = [generator for generator in generators for _ in range(batch.rows)]
        masks: dict[str, dict[str, Mask]] = {}
        for modality, inputs in batch.inputs.items():
            rates = self.masks.get(modality)
            dropout = self.config.token_dropout.get(modality, 0.0)
            if rates is not None or dropout:
                starts = word_starts(inputs["ids"], self.word_table) if modality == "text" else None
                lengths = batch.lengths[modality] - 1
                masks[modality] = draw_masks(rates, dropout, lengths, row_generators, starts)
        return masks


def names_of(sample: Sample, caption: str) -> list[str]:
    """Names of a sample in lower case: its drawn caption, its other captions and its label."""
    captions = [f"caption {text.lower()}" for text in (caption, *sample.captions) if text.strip()]
    return sorted({*captions, *([f"label {sample.label.lower()}"] if sample.label else [])})


def multi_positive_ids(names: Sequence[Sequence[str]]) -> Tensor:
    """Group numbers (B,) int64: items of one group must not be each other's negatives.

    Two items are in one group if they share a name (`names_of`), or if each shares a group with a third item.
    """
    from networkx.utils import UnionFind

    sets = UnionFind()
    for i, own in enumerate(names):
        sets.union(i, *own)
    first: dict[Any, int] = {}
    return torch.tensor([first.setdefault(sets[i], i) for i in range(len(names))])
