"""The batches of every step, each a pure function of (seed, step): to resume is to go on counting.

A pair's items come in epochs, one seeded permutation each; step s takes the items s * B to (s + 1) * B of that endless
row. All chance in an item comes from its place in the row, so the number of workers changes nothing.
"""

import logging
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from onepeace.data.augment import make_augments
from onepeace.data.masking import draw_drop, draw_masks, word_starts, word_table
from onepeace.data.shards import Sample, Source
from onepeace.errors import UserError

log = logging.getLogger(__name__)

Batch = dict[str, Any]
Lengths = Callable[[dict[str, Tensor]], Tensor]

ORDER, VARY, HIDE = range(3)
"""Streams of random numbers that must not be the same."""
BROKEN_FREE = 10
"""So many broken items never stop a run, unless nothing else is there."""


class RottenDataError(UserError):
    """Too many items cannot be decoded."""


class Order:
    """The endless row of one pair's items: position -> item, the same on every machine.

    An item of a source with weight w comes floor(w) or ceil(w) times in an epoch; which ones come once more is drawn
    anew each epoch. With ``run`` above 1, so many items in a row are of one source, as far as that goes: a batch whose
    negatives are all of one kind is the harder task. What then does not fill the last run of an epoch is left out.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: Sequence[int], run: int = 1):
        self.seed = list(seed)
        self.run = run
        self.parts = []  # (first item, items, whole times, how many once more)
        first = 0
        for size, weight in zip(sizes, weights, strict=True):
            self.parts.append((first, size, int(weight), round((weight - int(weight)) * size)))
            first += size
        self.epoch_length = sum(size * whole + extra for _, size, whole, extra in self.parts)
        self.epoch_length -= self.epoch_length % run
        if self.epoch_length == 0:
            raise UserError(f"weights {list(weights)} over {list(sizes)} items leave none; raise a weight")
        self._cache: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def __getitem__(self, position: int) -> int:
        epoch, place = divmod(position, self.epoch_length)
        if self._cache[0] != epoch:
            self._cache = (epoch, self._draw(epoch))
        return int(self._cache[1][place])

    def _draw(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([*self.seed, epoch])
        parts = []
        for first, size, whole, extra in self.parts:
            part = [np.tile(np.arange(first, first + size), whole), first + rng.permutation(size)[:extra]]
            parts.append(rng.permutation(np.concatenate(part)))
        if self.run == 1:
            return rng.permutation(np.concatenate(parts))
        # Full runs of each source, then the rests of all of them, in runs too; the order of the runs is drawn.
        cut = [len(part) - len(part) % self.run for part in parts]
        rest = rng.permutation(np.concatenate([part[end:] for part, end in zip(parts, cut, strict=True)]))
        parts = [part[:end] for part, end in zip(parts, cut, strict=True)]
        runs = np.concatenate([*parts, rest[: len(rest) - len(rest) % self.run]]).reshape(-1, self.run)
        return rng.permutation(runs).reshape(-1)


class OrderBySource:
    """Like `Order`, but each run of ``batch`` positions is of one source, so a batch's negatives are of one kind.

    An epoch has round(size * weight / batch) batches of a source, at least one, in seeded order; each source goes
    through its own endless row.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: Sequence[int], batch: int):
        self.batch = batch
        counts = [max(1, round(size * weight / batch)) for size, weight in zip(sizes, weights, strict=True)]
        self.turns = Order(counts, [1.0] * len(counts), seed)
        self.sources = []  # (first turn, turns, first item, row)
        turn = item = 0
        for k, (count, size) in enumerate(zip(counts, sizes, strict=True)):
            self.sources.append((turn, count, item, Order([size], [1.0], [*seed, k])))
            turn, item = turn + count, item + size

    def __getitem__(self, position: int) -> int:
        step, place = divmod(position, self.batch)
        turn = self.turns[step]
        first, count, item, row = next(source for source in reversed(self.sources) if source[0] <= turn)
        number = step // self.turns.epoch_length * count + turn - first
        return item + row[number * self.batch + place]


class Steps(Dataset[list[Batch]]):
    """``steps[s]`` is the list of batches of step s, one for each pair of the recipe.

    A batch holds, for a pair of modalities and B items:
        each modality: the model's input, as its decoder's ``collate`` makes it;
        "pair": its name, as "image+text"; "keys", "captions": B strings each, the captions as drawn and changed;
        "group": (B,) int64, equal for items that are each other's positives (see `groups`);
        "drop": {modality: keep (B, K) int64} for the contrastive pass, where the recipe drops tokens;
        "masks": {modality: {"alone" | "together": (keep (B, K) int64, masked (B, L + 1) bool)}}, where the recipe
            has denoising terms; positions count from CLS = 0 and keep is padded with -1.
    """

    def __init__(
        self,
        recipe: Any,
        sources: Sequence[Source],
        decoders: Mapping[str, Any],
        num_tokens: Mapping[str, Lengths] | None = None,
    ):
        """
        Args:
            recipe: onepeace.train.recipe.Recipe.
            sources: what ``recipe.data.train`` names, in its order, as `read_source` gives it.
            decoders: by modality.
            num_tokens: by modality: input -> (B,) number of tokens without CLS. Needed for masks and drop only.
        """
        if len(sources) != len(recipe.data.train):
            raise ValueError(f"{len(sources)} sources for {len(recipe.data.train)} of the recipe")
        self.seed = recipe.seed
        self.decoders = decoders
        self.num_tokens = num_tokens or {}
        self.templates = recipe.data.templates
        self.augments = make_augments(recipe.data.augment)
        self.drop = recipe.data.drop
        self.mask = recipe.mask if any(term.startswith("denoising/") for term in recipe.objective) else {}
        self.broken_limit = recipe.data.broken_limit
        self.broken: dict[str, set[str]] = {}
        self._cache: dict[tuple[str, int], Tensor] = {}
        self._room = recipe.data.cache_megabytes * 2**20
        self.word_table: Tensor | None = None
        if any(rates.unit == "word" for rates in self.mask.values()):
            vocabulary = decoders["text"].tokenizer.get_vocab()
            self.word_table = word_table(sorted(vocabulary, key=vocabulary.__getitem__))
        self.pairs: dict[str, tuple[str, ...]] = {}
        self.items: dict[str, list[Sample]] = {}
        self.order: dict[str, Order | OrderBySource] = {}
        self.batch_size: dict[str, int] = {}
        weighted: dict[str, list[tuple[Source, float]]] = {}
        for source, config in zip(sources, recipe.data.train, strict=True):
            self.pairs[config.name] = config.pair
            weighted.setdefault(config.name, []).append((source, config.weight))
        for name, members in weighted.items():
            self.items[name] = [sample for source, _ in members for sample in source.samples]
            sizes = [len(source.samples) for source, _ in members]
            self.batch_size[name] = recipe.batch_size(name)
            run = self.batch_size[name] if recipe.data.batches == "by_source" else 1
            weights = [weight for _, weight in members]
            self.order[name] = Order(sizes, weights, [self.seed, _number(name), ORDER], run)

    def __getitem__(self, step: int) -> list[Batch]:
        return [self._batch(name, step) for name in self.pairs]

    def _batch(self, name: str, step: int) -> Batch:
        size = self.batch_size[name]
        replaced: list[str] = []
        drawn = [self._item(name, position, replaced) for position in range(step * size, (step + 1) * size)]
        captions = [text for _, text, _ in drawn]
        batch: Batch = {
            "pair": name,
            "keys": [item["key"] for item, _, _ in drawn],
            "captions": captions,
            "group": groups([item for item, _, _ in drawn], captions),
            "replaced": replaced,
        }
        for modality in self.pairs[name]:
            samples = [media[modality] for _, _, media in drawn]
            augment, decoder = self.augments.get(modality), self.decoders[modality]
            batch[modality] = augment.collate(samples, decoder) if augment else decoder.collate(samples)
        self._hide(batch, self.pairs[name], torch.Generator().manual_seed(_seed(self.seed, _number(name), HIDE, step)))
        return batch

    def _item(self, name: str, position: int, replaced: list[str]) -> tuple[Sample, str, dict[str, Any]]:
        """The sample at a position, its caption and its decoded media; a broken one is replaced by the next."""
        rng = np.random.default_rng([self.seed, _number(name), VARY, position])
        while True:
            item = self.items[name][self.order[name][position]]
            try:
                return self._decode(name, item, rng)
            except RottenDataError:
                raise
            except UserError as error:
                self._note(name, item, error)
                replaced.append(item["key"])
            position += 1

    def _decode(self, name: str, item: Sample, rng: np.random.Generator) -> tuple[Sample, str, dict[str, Any]]:
        caption = text = self._caption(name, item, rng)
        media: dict[str, Any] = {}
        for modality in self.pairs[name]:
            augment, decoder = self.augments.get(modality), self.decoders[modality]
            if modality == "text":
                continue
            if augment is None:
                media[modality] = decoder.decode(item[modality])
            else:
                another = partial(self._another, name, modality, rng)
                loaded = self._load(modality, item)
                media[modality], text = augment.vary(loaded, text, decoder, rng, another)
        if "text" in self.pairs[name]:
            media["text"] = self.decoders["text"].decode(text)
        if text != caption:
            # Two clips at once are neither one's class nor its captions.
            item = {**item, "label": None, "captions": []}
        return item, text, media

    def _another(self, name: str, modality: str, rng: np.random.Generator) -> tuple[Any, str]:
        """A random item of the pair for an augmentation that takes two: what it loads, and a caption."""
        items = self.items[name]
        while True:
            item = items[int(rng.integers(len(items)))]
            try:
                return self._load(modality, item), self._caption(name, item, rng)
            except UserError as error:
                self._note(name, item, error)

    def _load(self, modality: str, item: Sample) -> Any:
        """What the augmentation starts from. Tensors (sounds) are kept while there is room: decoding Vorbis takes a
        third of the time a worker spends; pictures decode faster than that and would need far more room."""
        cached = self._cache.get((modality, id(item)))
        if cached is not None:
            return cached
        loaded = self.augments[modality].load(item[modality], self.decoders[modality])
        if isinstance(loaded, Tensor) and loaded.nbytes <= self._room:
            self._room -= loaded.nbytes
            self._cache[modality, id(item)] = loaded
        return loaded

    def _caption(self, name: str, item: Sample, rng: np.random.Generator) -> str:
        choices = item["captions"]
        if item["label"]:
            templates = [t for modality in self.pairs[name] for t in self.templates.get(modality, ())]
            choices = [*choices, *(template.format(item["label"]) for template in templates)]
        return choices[int(rng.integers(len(choices)))] if choices else ""

    def _note(self, name: str, item: Sample, error: UserError) -> None:
        """Name a broken item once; too many stop the run."""
        broken, total = self.broken.setdefault(name, set()), len(self.items[name])
        where = f"{item['source']}: {item['key']}"
        if where in broken:
            return
        broken.add(where)
        log.warning("%s cannot be decoded, another item takes its place: %s", where, error)
        if len(broken) > self.broken_limit * total and (len(broken) > BROKEN_FREE or len(broken) == total):
            raise RottenDataError(
                f"{len(broken)} of {total} items of {name} cannot be decoded, the last {where}: {error}; "
                "mend the shards or raise data.broken_limit"
            )

    def _hide(self, batch: Batch, pair: Sequence[str], generator: torch.Generator) -> None:
        """Add "drop" and "masks" as far as the recipe has them."""
        for modality in pair:
            rates, share = self.mask.get(modality), self.drop.get(modality)
            if rates is None and not share:
                continue
            lengths = self.num_tokens[modality](batch[modality]).cpu()
            if share:
                keep = draw_drop(share, lengths, generator, has_end=modality == "text")
                batch.setdefault("drop", {})[modality] = keep
            if rates is not None:
                starts = None
                if self.word_table is not None and rates.unit == "word":
                    starts = word_starts(batch[modality]["ids"], self.word_table)
                batch.setdefault("masks", {})[modality] = draw_masks(rates, lengths, generator, starts)


def groups(items: Sequence[Sample], captions: Sequence[str]) -> Tensor:
    """(B,) int64: equal numbers for items that describe each other and must not be each other's negatives.

    Two items belong together when they share a label or a caption, drawn or not, in any case of letters, or when both
    belong with a third. So equal texts always carry equal numbers.
    """
    parent = list(range(len(items)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[tuple[str, str], int] = {}
    for i, (item, caption) in enumerate(zip(items, captions, strict=True)):
        names = {("caption", text.lower()) for text in (caption, *item["captions"]) if text}
        if item["label"]:
            names.add(("label", item["label"].lower()))
        for name in names:
            parent[root(i)] = root(first.setdefault(name, i))
    return torch.tensor([root(i) for i in range(len(items))])


def loader(steps: Steps, start: int, stop: int, workers: int = 1) -> Iterator[list[Batch]]:
    """The batches of the steps ``start`` to ``stop`` - 1, made ahead in ``workers`` processes (0 = on demand)."""
    batches = DataLoader(
        steps,
        batch_size=None,
        sampler=range(start, stop),
        num_workers=workers,
        # Its own generator: the loader draws a seed for its workers, and would move the run's generator.
        generator=torch.Generator(),
        pin_memory=torch.cuda.is_available(),
    )
    try:
        yield from batches
    except UserError as error:
        # torch puts a worker's traceback in front of the message, which is its last line.
        raise UserError(re.sub(r"^[\w.]+Error: ", "", str(error).strip().splitlines()[-1])) from error


def whole(source: Source, decoders: Mapping[str, Any], batch_size: int) -> Iterator[Batch]:
    """Every sample of a source once, in order and as it is, for validation.

    Yields: {modality: the model's input, for all but text; "keys"; "captions": a list per item; "labels"}. An item
    that cannot be decoded is left out with a warning.
    """
    for start in range(0, len(source.samples), batch_size):
        items, media = [], []
        for item in source.samples[start : start + batch_size]:
            try:
                media.append({m: decoders[m].decode(item[m]) for m in decoders if m in item})
                items.append(item)
            except UserError as error:
                log.warning("%s: %s cannot be decoded and is left out: %s", item["source"], item["key"], error)
        if items:
            yield {
                **{m: decoders[m].collate([sample[m] for sample in media]) for m in media[0]},
                "keys": [item["key"] for item in items],
                "captions": [item["captions"] for item in items],
                "labels": [item["label"] for item in items],
            }


def _number(name: str) -> int:
    return zlib.crc32(name.encode())


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
