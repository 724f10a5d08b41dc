"""Features of a frozen stem for several augmented views of every training item, computed once, so that training runs
only the Transformer. They are stored on disk under a fingerprint of everything they depend on."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onepeace.data.augment import Augment, make_augments
from onepeace.data.frozen_cache import FrozenCache, Output, fingerprint
from onepeace.data.reader import Source
from onepeace.data.sample import Sample, by_name, item_name
from onepeace.errors import UserError
from onepeace.model import Trained
from onepeace.processors.processor import Processor
from onepeace.threads import compute_alone
from onepeace.train import parallel
from onepeace.train.recipe import Recipe

log = logging.getLogger(__name__)

PART = 128
"""Items per part of the cache; the items of a part are decoded ahead."""
BATCH = 64
"""Views per forward pass."""


@dataclass
class StemViews:
    """Decoding, augmentation and encoding of items by a frozen stem.

    Raises:
        UserError: the stem is not frozen or has no network; different items have the same name.
    """

    key: str
    """Modality."""
    adapter: Any
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
        key = self.key
        self.network: Any = getattr(getattr(self.adapter, "stem", None), "network", None)
        if self.network is None or any(parameter.requires_grad for parameter in self.network.parameters()):
            raise UserError(
                f"data.stem_views.{key}: features can be kept of a frozen network only; "
                f"add adapters.{key}.stem.network.* to freeze"
            )
        self.items = by_name(self.samples, key, "features of a stem", item_name)
        self.augment = make_augments({key: self.options})[key] if self.options else Augment()

    def keep(self, root: Path) -> Path:
        """Compute missing features; returns their folder in ``root``."""
        plain = {name: value for name, value in vars(self.adapter.stem).items() if isinstance(value, (int, float, str))}
        plain.pop("training", None)
        processor = {name: str(value) for name, value in vars(self.processor).items()}
        own = fingerprint([plain, processor, dict(self.options), self.views], self.network.state_dict())
        cache = FrozenCache(root / f"{self.key}-{own}", self.items)
        if cache.missing:
            self.network.to(self.device)
            with ThreadPoolExecutor(2, initializer=compute_alone) as pool:
                cache.fill(lambda names: self._outputs([self.items[name] for name in names], pool.map), PART)
        return cache.folder

    def _outputs(self, samples: Sequence[Sample], map_ahead: Callable[..., Any]) -> Iterator[Output]:
        made = (view for views in map_ahead(self._views, samples) for view in views)
        while some := list(islice(made, BATCH)):
            maps = self._compute([media for _, media, _ in some])
            for (name, _, partner), one in zip(some, maps, strict=True):
                yield Output(name, one.cpu().numpy(), partner)

    def _views(self, sample: Sample) -> list[tuple[str, Any, str | None]]:
        """(name, augmented media, partner) for each view of an item; empty if it cannot be decoded."""
        name = item_name(sample)
        rng = np.random.default_rng([int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")])
        try:
            loaded = self.augment.load(sample.read(self.key), self.processor)
            return [(name, *self._vary(loaded, sample, rng)) for _ in range(self.views if self.options else 1)]
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
        media, _ = self.augment.vary(loaded, " ".join(sample.captions), self.processor, rng, another)
        return media, partners[0] if partners else None

    @torch.no_grad()
    def _compute(self, media: list[Any]) -> list[Tensor]:
        """Feature maps (*grid, channels) float16 of decoded items."""
        batch = self.augment.collate(media, self.processor)
        batch = {name: value.to(self.device) for name, value in batch.items()}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.use_bfloat16):
            features = self.adapter.stem_features(batch).half()
        if "lengths" not in batch:
            return list(features)
        return [one[:length] for one, length in zip(features, self.adapter.token_lengths(batch), strict=True)]


def make_stem_features(
    recipe: Recipe,
    sources: Sequence[Source],
    processors: Mapping[str, Processor],
    model: Trained,
    device: torch.device,
    use_bfloat16: bool,
) -> dict[str, FrozenCache]:
    """Features of the items from the frozen stems of data.stem_views, computed by the first process."""
    found = {}
    for key, views in recipe.data.stem_views.items():
        samples = [sample for source in sources for sample in source.samples if key in sample.inputs]
        augment, made = recipe.data.augment.get(key, {}), ""
        if parallel.rank() == 0:
            arguments = (key, model.adapters[key], processors[key], augment, samples, views)
            made = str(StemViews(*arguments, device, use_bfloat16).keep(recipe.frozen_folder))
        items = {item_name(sample): sample for sample in reversed(samples)}  # the first of equal ones, as in `by_name`
        found[key] = FrozenCache(Path(parallel.gather_objects(made)[0]), items)
    return found
