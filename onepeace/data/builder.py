"""From samples to a batch: captions are drawn, items decoded and augmented, tokens masked.

Each item has a random generator of its own, so neither the workers nor its batch mates change it.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onepeace.data.augment import AudioAugment, Augment, join_captions, make_augments
from onepeace.data.batch import Batch, Mask
from onepeace.data.config import DataConfig
from onepeace.data.frozen_cache import StemFeatures, collate
from onepeace.data.masking import MaskRates, draw_masks, draw_token_dropout, word_starts, word_table
from onepeace.data.reader import Window
from onepeace.data.sample import Sample, content_of
from onepeace.data.shards import BROKEN_FREE
from onepeace.errors import UserError

log = logging.getLogger(__name__)

Lengths = Callable[[dict[str, Tensor]], Tensor]
"""A modality's input -> (B,) number of tokens without CLS."""

SOUND_BYTES = 512 * 2**20
"""Memory of each worker for decoded sounds."""

MIXED = "mixed"
"""Ends the key of an item that has another one mixed in; no sample's key has a dot."""


class BatchBuilder:
    """Makes batches of samples.

    Args:
        config: the recipe's data section.
        processors: by modality.
        num_tokens: by modality; needed for masks and token dropout only.
        masks: by modality: rates of the masked passes.
        features: by modality: what the model reads in place of the items, computed before.
    """

    def __init__(
        self,
        config: DataConfig,
        processors: Mapping[str, Any],
        num_tokens: Mapping[str, Lengths] | None = None,
        masks: Mapping[str, MaskRates] | None = None,
        features: Mapping[str, StemFeatures] | None = None,
    ):
        self.config, self.processors = config, processors
        self.num_tokens, self.masks, self.features = num_tokens or {}, masks or {}, features or {}
        self.pairs = config.modalities
        self.targets = {source.name: source.targets for source in config.train}
        self.candidates = {source.name: source.candidates for source in config.train}
        self.augments = {**dict.fromkeys(processors, Augment()), **make_augments(config.augment)}
        self.broken: dict[str, set[str]] = {}
        self._cache: dict[Any, Tensor] = {}
        self._room = SOUND_BYTES
        self.word_table: Tensor | None = None
        if any(rates.unit == "word" for rates in self.masks.values()):
            vocabulary = processors["text"].tokenizer.get_vocab()
            self.word_table = word_table(sorted(vocabulary, key=vocabulary.__getitem__))

    def batch(self, window: Window, items: Sequence[tuple[Iterator[Sample], np.random.Generator]], seed: int) -> Batch:
        """A batch of a pair.

        Args:
            window: the samples around it.
            items: for each place in the batch the candidates, of which the first that can be decoded is taken, and the
                random generator of the item.
            seed: of the masks.
        """
        name = window.name
        replaced: list[str] = []
        drawn = [self._item(window, candidates, rng, replaced) for candidates, rng in items]
        inputs = {}
        rows = _rows_of_an_item(drawn)
        for modality in self.pairs[name]:
            per_item = [media[modality] for _, _, media in drawn]
            several = any(isinstance(value, list) for value in per_item)
            decoded = [one for value in per_item for one in (value if isinstance(value, list) else [value] * rows)]
            if modality in self.features:
                inputs[modality] = collate(decoded)
                continue
            inputs[modality] = self.augments[modality].collate(decoded, self.processors[modality])
            if several and modality != "text":
                inputs[modality]["type_ids"] = torch.arange(rows).repeat(len(drawn))
        token_dropout, masks = self._masks(inputs, torch.Generator().manual_seed(seed))
        return Batch(
            inputs=inputs,
            source=name,
            keys=[sample.key for sample, _, _ in drawn],
            captions=[text for _, text, _ in drawn],
            names=[names_of(sample, text) for sample, text, _ in drawn],
            targets={target: [content_of(s.targets.get(target)) for s, _, _ in drawn] for target in self.targets[name]},
            rows=rows,
            token_dropout=token_dropout,
            masks=masks,
            replaced=replaced,
        )

    def _item(
        self, window: Window, candidates: Iterator[Sample], rng: np.random.Generator, replaced: list[str]
    ) -> tuple[Sample, str, dict[str, Any]]:
        """The first candidate that can be decoded, its caption and its decoded inputs."""
        while True:
            sample = next(candidates)
            try:
                return self._decode(window, sample, rng)
            except UserError as error:
                broken = error
            self._note(window, sample, broken)
            replaced.append(sample.key)

    def _decode(self, window: Window, sample: Sample, rng: np.random.Generator) -> tuple[Sample, str, dict[str, Any]]:
        name = window.name
        text = self._caption(name, sample, rng)
        decoded: dict[str, Any] = {}
        others: list[Sample] = []
        for modality in self.pairs[name]:
            if modality == "text":
                continue
            if modality in self.features:
                decoded[modality], partner = self.features[modality].draw(sample, rng)
                if partner is not None:
                    others.append(partner)
                    text = join_captions(text, self._caption(name, partner, rng))
                continue
            augment, processor = self.augments[modality], self.processors[modality]
            another = partial(self._another, window, modality, rng, others)
            if isinstance(sample.inputs[modality], list):  # each is changed on its own
                loaded = (augment.load(item, processor) for item in sample.read(modality))
                decoded[modality] = [augment.vary(item, text, processor, rng, another)[0] for item in loaded]
            else:
                decoded[modality], text = augment.vary(self._load(modality, sample), text, processor, rng, another)
        if "text" in self.pairs[name]:
            template, read = self.candidates[name], self.processors["text"].decode
            decoded["text"] = read(text)
            if template is not None:
                candidates = sample.targets["candidates"]
                decoded["text"] = [read(template.format(text=text, candidate=one)) for one in candidates]
        if others:
            # Two clips at once are neither one's class nor its captions, nor what a table holds under its key.
            sample = replace(sample, key=f"{sample.key}.{MIXED}", inputs={}, targets={})
        return sample, text, decoded

    def _another(
        self, window: Window, modality: str, rng: np.random.Generator, others: list[Sample]
    ) -> tuple[Any, str]:
        """A random sample for an augmentation that takes two: what it loads, and a caption."""
        while True:
            sample = window.another(rng)
            try:
                found = self._load(modality, sample), self._caption(window.name, sample, rng)
            except UserError:  # told when it is the item itself
                continue
            others.append(sample)
            return found

    def _load(self, modality: str, sample: Sample) -> Any:
        """An item as its augmentation loads it. Sounds are kept for the next epoch while there is room: decoding Vorbis
        takes seven times as long as varying it; pictures decode faster and would need far more room."""
        augment, place = self.augments[modality], sample.inputs[modality]
        if place in self._cache:
            return self._cache[place]
        loaded = augment.load(content_of(place), self.processors[modality])
        if isinstance(augment, AudioAugment) and loaded.nbytes <= self._room:
            self._room -= loaded.nbytes
            self._cache[place] = loaded
        return loaded

    def _caption(self, name: str, sample: Sample, rng: np.random.Generator) -> str:
        choices = list(sample.captions)
        if sample.label:
            templates = [t for modality in self.pairs[name] for t in self.config.templates.get(modality, ())]
            choices += [template.format(sample.label) for template in templates]
        return choices[int(rng.integers(len(choices)))] if choices else ""

    def _note(self, window: Window, sample: Sample, error: UserError) -> None:
        """Name a broken item once; too many stop the run."""
        broken = self.broken.setdefault(window.name, set())
        where = f"{sample.source}: {sample.key}"
        if where in broken:
            return
        broken.add(where)
        log.warning("%s cannot be decoded, another item takes its place: %s", where, error)
        count, total = len(broken), window.known
        if count == total or count > max(BROKEN_FREE, self.config.broken_limit * total):
            raise UserError(
                f"{count} of {total} items of {window.name} cannot be decoded, the last {where}: {error}; "
                "mend the shards or raise data.broken_limit"
            )

    def _masks(
        self, inputs: Mapping[str, dict[str, Tensor]], generator: torch.Generator
    ) -> tuple[dict[str, Tensor], dict[str, dict[str, Mask]]]:
        """Token dropout and masks of a batch, as far as the recipe has them."""
        token_dropout, masks = {}, {}
        for modality, own in inputs.items():
            rates, share = self.masks.get(modality), self.config.token_dropout.get(modality)
            if rates is None and not share:
                continue
            lengths = self.num_tokens[modality](own).cpu()
            if share:
                token_dropout[modality] = draw_token_dropout(share, lengths, generator, has_end=modality == "text")
            if rates is not None:
                starts = None
                if self.word_table is not None and rates.unit == "word":
                    starts = word_starts(own["ids"], self.word_table)
                masks[modality] = draw_masks(rates, lengths, generator, starts)
        return token_dropout, masks


def _rows_of_an_item(drawn: Sequence[tuple[Sample, str, Mapping[str, Any]]]) -> int:
    """Rows that each item of a batch takes: the length of its lists, the same for all; 1 without lists."""
    counts: dict[int, str] = {}
    for sample, _, decoded in drawn:
        for value in decoded.values():
            if isinstance(value, list):
                counts.setdefault(len(value), sample.key)
    if len(counts) > 1 or 0 in counts:
        found = " and ".join(f"{count} ({key})" for count, key in sorted(counts.items()))
        raise UserError(f"items of one batch have {found} pictures, sounds or candidates; all must have as many")
    return next(iter(counts), 1)


def names_of(sample: Sample, caption: str) -> list[str]:
    """Names of a sample: its caption as drawn, its other captions, its label; in lower case."""
    captions = [f"caption {text.lower()}" for text in (caption, *sample.captions) if text.strip()]
    return sorted({*captions, *([f"label {sample.label.lower()}"] if sample.label else [])})


def multi_positive_ids(names: Sequence[Sequence[str]]) -> Tensor:
    """(B,) int64: equal numbers for items that describe each other and must not be each other's negatives.

    Two items belong together when they share a name (`names_of`), or when both belong with a third. So equal texts
    always carry equal numbers.
    """
    parent = list(range(len(names)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[str, int] = {}
    for i, own in enumerate(names):
        for name in own:
            parent[root(i)] = root(first.setdefault(name, i))
    return torch.tensor([root(i) for i in range(len(names))])
