"""From samples to a batch: captions drawn, media decoded and varied, tokens hidden. Next file: steps.py.

All chance in an item comes from a generator of its own, so neither workers nor company change it.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onepeace.data.augment import make_augments
from onepeace.data.masking import draw_masks, draw_token_dropout, word_starts, word_table
from onepeace.data.sample import Sample
from onepeace.data.shards import BROKEN_FREE
from onepeace.errors import UserError

log = logging.getLogger(__name__)

Batch = dict[str, Any]
Lengths = Callable[[dict[str, Tensor]], Tensor]

TRIES = 100
"""So many items at least are tried for one place of a batch."""


class CorruptDataError(UserError):
    """Too many items cannot be decoded."""


class BatchBuilder:
    """Makes batches of samples. A batch holds, for a pair of modalities and B items:

    each modality: the model's input, as its processor's ``collate`` makes it;
    "pair": its name, as "image+text"; "keys", "captions": B strings each, the captions as drawn and changed;
    "names": for each item the captions and the label that tell what it is, see `groups`;
    "replaced": keys of items that could not be decoded and whose place others took;
    "token_dropout": {modality: keep (B, K) int64} for the contrastive pass, where the recipe drops tokens;
    "masks": {modality: {"unimodal" | "joint": (keep (B, K) int64, masked (B, L + 1) bool)}}, where the recipe has
        denoising terms; positions count from CLS = 0 and keep is padded with -1.
    """

    def __init__(self, recipe: Any, processors: Mapping[str, Any], num_tokens: Mapping[str, Lengths] | None = None):
        """
        Args:
            recipe: onepeace.train.recipe.Recipe.
            processors: by modality.
            num_tokens: by modality: input -> (B,) number of tokens without CLS. Needed for masks and drop only.
        """
        self.processors = processors
        self.num_tokens = num_tokens or {}
        self.pairs: dict[str, tuple[str, ...]] = {source.name: source.pair for source in recipe.data.train}
        self.templates = recipe.data.templates
        self.augments = make_augments(recipe.data.augment)
        self.token_dropout = recipe.data.token_dropout
        # "denoising/image", or with a label, "denoising:small/image"; the recipe's own reader is above this layer.
        kinds = {term.partition("/")[0].partition(":")[0] for term in recipe.objective}
        self.mask = recipe.mask if "denoising" in kinds else {}
        self.broken_limit = recipe.data.broken_limit
        self.broken: dict[str, set[str]] = {}
        self._cache: dict[tuple[str, int], Tensor] = {}
        self._room = recipe.data.cache_megabytes * 2**20
        self.word_table: Tensor | None = None
        if any(rates.unit == "word" for rates in self.mask.values()):
            vocabulary = processors["text"].tokenizer.get_vocab()
            self.word_table = word_table(sorted(vocabulary, key=vocabulary.__getitem__))

    def batch(
        self,
        name: str,
        items: Sequence[tuple[Iterator[Sample], np.random.Generator]],
        another: Callable[[np.random.Generator], Sample],
        total: int,
        seed: int,
        keep_loaded: bool = True,
    ) -> Batch:
        """
        Args:
            name: of the pair.
            items: for each place in the batch the candidates, of which the first that can be decoded is taken, and the
                generator of all chance in it.
            another: draws a further sample of the pair, for augmentations that take two.
            total: number of items that ``broken_limit`` is a share of.
            seed: of what is hidden.
            keep_loaded: decoded sounds are kept for the next epoch, as far as there is room.
        """
        replaced: list[str] = []
        self._keep = keep_loaded
        drawn = [self._item(name, candidates, rng, another, total, replaced) for candidates, rng in items]
        captions = [text for _, text, _ in drawn]
        batch: Batch = {
            "pair": name,
            "keys": [item.key for item, _, _ in drawn],
            "captions": captions,
            "names": [names_of(item, text) for item, text, _ in drawn],
            "replaced": replaced,
        }
        for modality in self.pairs[name]:
            samples = [media[modality] for _, _, media in drawn]
            augment, processor = self.augments.get(modality), self.processors[modality]
            batch[modality] = augment.collate(samples, processor) if augment else processor.collate(samples)
        self._hide(batch, self.pairs[name], torch.Generator().manual_seed(seed))
        return batch

    def _item(
        self,
        name: str,
        candidates: Iterator[Sample],
        rng: np.random.Generator,
        another: Callable[[np.random.Generator], Sample],
        total: int,
        replaced: list[str],
    ) -> tuple[Sample, str, dict[str, Any]]:
        """The first candidate that can be decoded, its caption and its media."""
        # As many tries at least as there are items: a small stream that is all broken would be read without end.
        for item in islice(candidates, max(total, TRIES)):
            try:
                return self._decode(name, item, rng, partial(self._another, name, another, total))
            except CorruptDataError:
                raise
            except UserError as error:
                self._note(name, item, error, total)
                replaced.append(item.key)
        raise CorruptDataError(f"{name}: no item is left to take the place of {replaced[-1]}")

    def _decode(
        self, name: str, item: Sample, rng: np.random.Generator, another: Callable[..., tuple[Any, str]]
    ) -> tuple[Sample, str, dict[str, Any]]:
        text = self._caption(name, item, rng)
        media: dict[str, Any] = {}
        others: list[tuple[Any, str]] = []

        def second(modality: str) -> tuple[Any, str]:
            others.append(another(modality, rng))
            return others[-1]

        for modality in self.pairs[name]:
            augment, processor = self.augments.get(modality), self.processors[modality]
            if modality == "text":
                continue
            if augment is None:
                media[modality] = processor.decode(item.inputs[modality])
            else:
                loaded = self._load(modality, item)
                media[modality], text = augment.vary(loaded, text, processor, rng, partial(second, modality))
        if "text" in self.pairs[name]:
            media["text"] = self.processors["text"].decode(text)
        if others:
            # Two clips at once are neither one's class nor its captions.
            item = replace(item, inputs={}, targets={})
        return item, text, media

    def _another(
        self,
        name: str,
        draw: Callable[[np.random.Generator], Sample],
        total: int,
        modality: str,
        rng: np.random.Generator,
    ) -> tuple[Any, str]:
        """A random item of the pair for an augmentation that takes two: what it loads, and a caption."""
        while True:
            item = draw(rng)
            try:
                return self._load(modality, item), self._caption(name, item, rng)
            except UserError as error:
                self._note(name, item, error, total)

    def _load(self, modality: str, item: Sample) -> Any:
        """What the augmentation starts from. Tensors (sounds) are kept while there is room: decoding Vorbis takes a
        third of the time a worker spends; pictures decode faster than that and would need far more room."""
        cached = self._cache.get((modality, id(item)))
        if cached is not None:
            return cached
        loaded = self.augments[modality].load(item.inputs[modality], self.processors[modality])
        if self._keep and isinstance(loaded, Tensor) and loaded.nbytes <= self._room:
            self._room -= loaded.nbytes
            self._cache[modality, id(item)] = loaded
        return loaded

    def _caption(self, name: str, item: Sample, rng: np.random.Generator) -> str:
        choices = list(item.captions)
        if item.label:
            templates = [t for modality in self.pairs[name] for t in self.templates.get(modality, ())]
            choices += [template.format(item.label) for template in templates]
        return choices[int(rng.integers(len(choices)))] if choices else ""

    def _note(self, name: str, item: Sample, error: UserError, total: int) -> None:
        """Name a broken item once; too many stop the run."""
        broken = self.broken.setdefault(name, set())
        where = f"{item.source}: {item.key}"
        if where in broken:
            return
        broken.add(where)
        log.warning("%s cannot be decoded, another item takes its place: %s", where, error)
        if len(broken) > self.broken_limit * total and (len(broken) > BROKEN_FREE or len(broken) == total):
            raise CorruptDataError(
                f"{len(broken)} of {total} items of {name} cannot be decoded, the last {where}: {error}; "
                "mend the shards or raise data.broken_limit"
            )

    def _hide(self, batch: Batch, pair: Sequence[str], generator: torch.Generator) -> None:
        """Add "token_dropout" and "masks" as far as the recipe has them."""
        for modality in pair:
            rates, share = self.mask.get(modality), self.token_dropout.get(modality)
            if rates is None and not share:
                continue
            lengths = self.num_tokens[modality](batch[modality]).cpu()
            if share:
                keep = draw_token_dropout(share, lengths, generator, has_end=modality == "text")
                batch.setdefault("token_dropout", {})[modality] = keep
            if rates is not None:
                starts = None
                if self.word_table is not None and rates.unit == "word":
                    starts = word_starts(batch[modality]["ids"], self.word_table)
                batch.setdefault("masks", {})[modality] = draw_masks(rates, lengths, generator, starts)


def names_of(item: Sample, caption: str) -> list[str]:
    """What an item is called: its caption as drawn, its other captions, its label; letters in one case."""
    captions = [f"caption {text.lower()}" for text in (caption, *item.captions) if text.strip()]
    return sorted({*captions, *([f"label {item.label.lower()}"] if item.label else [])})


def groups(names: Sequence[Sequence[str]]) -> Tensor:
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


def split(batch: Mapping[str, Any], parts: int, take: Mapping[str, Callable[..., dict[str, Tensor]]]) -> list[Batch]:
    """A batch in parts of equal size, as far as that goes.

    Args:
        batch: as `BatchBuilder.batch` gives it.
        parts: how many, at most one per item.
        take: for each modality present: (input, rows) -> the input of these rows.
    """
    count = len(batch["keys"])
    pieces = []
    for rows in torch.arange(count).chunk(parts):
        first, stop = int(rows[0]), int(rows[-1]) + 1
        piece: Batch = {key: take[key](batch[key], rows.to(_device(batch[key]))) for key in take}
        piece |= {name: batch[name][first:stop] for name in ("keys", "captions", "names")}
        if "token_dropout" in batch:
            piece["token_dropout"] = {key: trim(keep[first:stop]) for key, keep in batch["token_dropout"].items()}
        if "masks" in batch:
            piece["masks"] = {
                key: {name: (trim(keep[first:stop]), masked[first:stop]) for name, (keep, masked) in passes.items()}
                for key, passes in batch["masks"].items()
            }
        pieces.append(piece)
    return pieces


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Every tensor of a batch, nested ones too, on the device."""

    def move(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(device, non_blocking=True)
        if isinstance(value, dict):
            return {key: move(item) for key, item in value.items()}
        return tuple(move(item) for item in value) if isinstance(value, tuple) else value

    return move(batch)


def _device(inputs: Mapping[str, Tensor]) -> torch.device:
    return next(iter(inputs.values())).device


def trim(keep: Tensor) -> Tensor:
    """Visible ids (B, K), padded with -1, without the columns that are padding in every row."""
    return keep[:, : int((keep >= 0).sum(1).amax())]
