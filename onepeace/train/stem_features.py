"""Features of a frozen stem for several augmented views of every training item, computed once, so that training runs
only the Transformer. They are stored on disk under a fingerprint of everything they depend on."""

import copy
import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from onepeace.data.augment import Augment, make_augments
from onepeace.data.reader import Source
from onepeace.data.sample import Sample, by_name, item_name
from onepeace.errors import UserError
from onepeace.model import Adapter, Trained
from onepeace.model.stems import PretrainedStem
from onepeace.processors.processor import Processor
from onepeace.threads import compute_alone
from onepeace.train import parallel
from onepeace.train.frozen_cache import FrozenCache, Output, fingerprint
from onepeace.train.frozen_outputs import compute_missing
from onepeace.train.recipe import Recipe

log = logging.getLogger(__name__)

M = TypeVar("M", bound=nn.Module)

PART = 128
"""Items per part of the cache; the items of a part are decoded ahead."""
BATCH = 64
"""Views per forward pass."""
DECODERS = 2
"""Threads that decode ahead of the network."""


class View(NamedTuple):
    """An augmented item before the network."""

    name: str
    media: Any
    partner: str | None
    """Name of the item that was mixed into it, or None."""


@dataclass
class StemViews:
    """Decoding, augmentation and encoding of items by a frozen stem.

    Raises:
        UserError: the stem is not frozen or has no network; different items have the same name.
    """

    key: str
    """Modality."""
    adapter: Adapter
    """The model's adapter of the modality, with a frozen pretrained stem."""
    processor: Any
    options: Mapping[str, Any]
    """Options of data.augment for the modality; empty = the only view is the item itself."""
    samples: Sequence[Sample]
    """All items."""
    views: int
    """Number of views per item."""
    device: torch.device
    use_bfloat16: bool

    def __post_init__(self) -> None:
        stem = self.adapter.stem
        self.network: Any = stem.network if isinstance(stem, PretrainedStem) else None
        if self.network is None or any(parameter.requires_grad for parameter in self.network.parameters()):
            raise UserError(
                f"data.stem_views.{self.key}: features can be kept of a frozen network only; "
                f"add adapters.{self.key}.stem.network.* to freeze"
            )
        self.items = by_name(self.samples, self.key, "features of a stem", item_name)
        self.augment = Augment()
        if self.options:
            self.augment = make_augments({self.key: self.options})[self.key]

    def keep(self, root: Path) -> FrozenCache:
        """Compute missing features, together with the other processes; they are in a folder in ``root``."""
        cache = FrozenCache(root / f"{self.key}-{self._fingerprint()}", self.items)
        with ThreadPoolExecutor(DECODERS, initializer=compute_alone) as pool:

            def compute(names: list[str]) -> Iterator[Output]:
                self.network.to(self.device)
                return self._outputs([self.items[name] for name in names], pool.map)

            compute_missing(cache, compute, PART)
        return cache

    def _fingerprint(self) -> str:
        stem = {}
        for name, value in vars(self.adapter.stem).items():
            if isinstance(value, int | float | str) and name != "training":
                stem[name] = value
        processor = {name: str(value) for name, value in vars(self.processor).items()}
        settings = [stem, processor, dict(self.options), self.views]
        return fingerprint(settings, self.network.state_dict())

    def _outputs(self, samples: Sequence[Sample], map_ahead: Callable[..., Iterable[list[View]]]) -> Iterator[Output]:
        views = chain.from_iterable(map_ahead(self._views, samples))
        while batch := list(islice(views, BATCH)):
            features = self._compute([view.media for view in batch])
            for view, values in zip(batch, features, strict=True):
                yield Output(view.name, values.cpu().numpy(), view.partner)

    def _views(self, sample: Sample) -> list[View]:
        """The views of an item; empty if it cannot be decoded."""
        name = item_name(sample)
        digest = hashlib.sha256(name.encode()).digest()
        seed = int.from_bytes(digest[:8], "big")
        rng = np.random.default_rng([seed])
        count = self.views if self.options else 1
        try:
            loaded = self.augment.load(sample.read(self.key), self.processor)
            return [View(name, *self._vary(loaded, sample, rng)) for _ in range(count)]
        except UserError as error:
            log.warning("%s: %s cannot be decoded and is left out: %s", sample.source, sample.key, error)
            return []

    def _vary(self, loaded: Any, sample: Sample, rng: np.random.Generator) -> tuple[Any, str | None]:
        partners: list[str] = []

        def another() -> tuple[Any, str]:
            while True:  # ends, as the item itself can be drawn and decoded
                other = self.samples[int(rng.integers(len(self.samples)))]
                try:
                    media = self.augment.load(other.read(self.key), self.processor)
                except UserError:  # logged for its own views
                    continue
                partners.append(item_name(other))
                return media, ""

        # The view must fit any caption that is drawn later.
        captions = " ".join(sample.captions)
        media, _ = self.augment.vary(loaded, captions, self.processor, rng, another)
        return media, partners[0] if partners else None

    @torch.no_grad()
    def _compute(self, media: list[Any]) -> list[Tensor]:
        """Feature maps (*grid, channels) float16 of decoded items."""
        collated = self.augment.collate(media, self.processor)
        batch = {name: value.to(self.device) for name, value in collated.items()}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.use_bfloat16):
            features = self.adapter.stem_features(batch).half()
        if "lengths" not in batch:
            return list(features)
        lengths = self.adapter.token_lengths(batch).tolist()
        return [item[:length] for item, length in zip(features, lengths, strict=True)]


def make_stem_features(
    recipe: Recipe,
    sources: Sequence[Source],
    processors: Mapping[str, Processor],
    model: Trained,
    device: torch.device,
    use_bfloat16: bool,
) -> dict[str, FrozenCache]:
    """Features of the items from the frozen stems of data.stem_views, computed by all processes."""
    features = {}
    for key, views in recipe.data.stem_views.items():
        stem_views = StemViews(
            key=key,
            adapter=with_values(model.adapters[key], device),
            processor=processors[key],
            options=recipe.data.augment.get(key, {}),
            samples=[sample for source in sources for sample in source.samples if key in sample.inputs],
            views=views,
            device=device,
            use_bfloat16=use_bfloat16,
        )
        features[key] = stem_views.keep(recipe.frozen_folder)
    return features


def with_values(module: M, device: torch.device) -> M:
    """The module, or if some process has it without values, a copy on the device with those of the first process."""
    is_empty = any(parameter.is_meta for parameter in module.parameters())
    if not any(parallel.gather_numbers(int(is_empty))):
        return module
    copied = copy.deepcopy(module)
    if is_empty:
        copied.to_empty(device=device)
    else:
        copied.to(device)
    for tensor in chain(copied.parameters(), copied.buffers()):
        parallel.broadcast(tensor.data)
    return copied
