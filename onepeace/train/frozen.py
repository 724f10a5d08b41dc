"""Outputs of frozen networks for all training items, computed once before the first step by all processes together.

`FrozenCache` is the folder: parts, ``part-N``, which are derived files (`onepeace.files.derived`) with the concatenated
rows of many outputs (float16), and the place of each output. Several runs may share it. `compute_missing` fills it, for
teachers (teachers.py) and for the frozen stems of `make_stem_features`, which keep several augmented views of every
item, so that training runs only the Transformer.
"""

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from onepeace.data.augment import Augment, make_augments
from onepeace.data.config import DataConfig
from onepeace.data.sample import Sample, item_name
from onepeace.data.source import Source
from onepeace.errors import UserError
from onepeace.files.atomic import remove_unfinished
from onepeace.files.derived import Derived, read_derived, write_derived
from onepeace.model import Adapter, Trained
from onepeace.model.stems import PretrainedStem
from onepeace.processors.processor import Processor
from onepeace.progress import Progress
from onepeace.threads import compute_alone
from onepeace.train import parallel

if TYPE_CHECKING:
    from filelock import BaseFileLock

log = logging.getLogger(__name__)


def source_states(items: Mapping[str, Sample]) -> dict[str, str]:
    """Size and modification time of the file that each sample is from, by name; "" for an address."""
    state_by_source: dict[str, str] = {}
    for source in {sample.source for sample in items.values()}:
        with suppress(OSError):
            status = os.stat(source)
            state_by_source[source] = f"{status.st_size}-{status.st_mtime_ns}"
    return {name: state_by_source.get(sample.source, "") for name, sample in items.items()}


def key_of(sample: Sample) -> str:
    """Name of an item that all sources of a sample have in common."""
    return sample.key


def by_name(
    samples: Iterable[Sample],
    modality: str,
    what: str,
    name: Callable[[Sample], str] = key_of,
) -> dict[str, Sample]:
    """Samples by name; a sample may occur in several sources.

    Args:
        what: description of the data stored by name, for the message.

    Raises:
        UserError: two samples with the same name have different inputs of the modality.
    """
    samples_by_name: dict[str, Sample] = {}
    for sample in samples:
        first = samples_by_name.setdefault(name(sample), sample)
        if first.inputs[modality] == sample.inputs[modality]:
            continue
        if first.read(modality) != sample.read(modality):
            raise UserError(
                f"{first.source} and {sample.source} have different items of one name, {name(sample)}, and {what} are "
                "kept by that name; write the shards of one again with another prefix"
            )
    return samples_by_name


class Place(NamedTuple):
    """Place of an output in the parts."""

    part: int
    start: int
    """First row in the part."""
    grid: tuple[int, ...]
    """Shape of the output without channels."""
    partner: str | None
    """Name of a second item that was mixed into the item, or None."""


class Output(NamedTuple):
    """Output of a network for an item."""

    name: str
    values: np.ndarray
    """(*grid, channels) float16."""
    partner: str | None = None


class FrozenCache:
    """Outputs for items in a folder; outputs with an unknown item mixed in are ignored.

    Args:
        folder: folder for the parts only.
        items: all items by name; outputs for a `Sample` are ignored once its shard has changed.
    """

    def __init__(self, folder: Path, items: Mapping[str, Any]):
        self.folder = folder
        self.items = items
        self._stored_names: dict[str, str] = {}
        """Name in the parts, where it differs from that of the item."""
        samples = {name: item for name, item in items.items() if isinstance(item, Sample)}
        for name, state in source_states(samples).items():
            if state:
                self._stored_names[name] = f"{name}@{state}"
        self._arrays: dict[int, np.ndarray] = {}
        """Memory-mapped parts."""
        self.refresh()

    def refresh(self) -> None:
        """Look for parts in the folder."""
        self.parts: list[int] = []
        for path in self.folder.glob("part-*"):
            if path.name.removeprefix("part-").isdecimal():
                self.parts.append(int(path.name.removeprefix("part-")))
        self.parts.sort()
        self.places: dict[str, list[Place]] = {}
        item_names = {self._stored_name(name): name for name in self.items}
        for part in self.parts:
            content = self._open(part)
            for stored_name, start, grid, stored_partner in content.about if content else []:
                partner = item_names.get(stored_partner)
                lacks_partner = stored_partner is not None and partner is None
                if stored_name not in item_names or lacks_partner:
                    continue
                place = Place(part, start, tuple(grid), partner)
                name = item_names[stored_name]
                self.places.setdefault(name, []).append(place)

    def remove_damaged(self, parts: Iterable[int]) -> None:
        """Read all of some parts, and remove those that are not as they were written."""
        for part in parts:
            if read_derived(self._path(part), self.folder.name) is None:
                log.warning("%s: damaged; its outputs are computed again", self._path(part))
                self._path(part).unlink(missing_ok=True)

    def _path(self, part: int) -> Path:
        return self.folder / f"part-{part}"

    def _open(self, part: int) -> Derived | None:
        return read_derived(self._path(part), self.folder.name, most_checked=0)

    def _stored_name(self, name: str) -> str:
        return self._stored_names.get(name, name)

    @property
    def missing(self) -> list[str]:
        """Names of the items without an output."""
        return [name for name in self.items if name not in self.places]

    def read(self, place: Place) -> np.ndarray:
        """An output (*grid, channels) float16, memory-mapped."""
        if place.part not in self._arrays:  # per object: the folder may be deleted and filled again
            content = self._open(place.part)
            if content is None:
                raise UserError("was removed or replaced while it was read", where=self._path(place.part))
            self._arrays[place.part] = content.arrays["rows"]
        end = place.start + math.prod(place.grid)
        rows = self._arrays[place.part][place.start : end]
        return rows.reshape(*place.grid, rows.shape[-1])

    def draw(self, name: str, rng: np.random.Generator) -> tuple[np.ndarray, Any]:
        """A random output of an item (*grid, channels), and the item that was mixed into it, or None."""
        places = self.places.get(name)
        if not places:
            raise UserError("has no features of it, as it could not be decoded", where=self.folder)
        place = places[int(rng.integers(len(places)))]
        partner = None
        if place.partner is not None:
            partner = self.items[place.partner]
        return self.read(place), partner

    def lock(self) -> "BaseFileLock":
        """Lock of the folder, held while parts are added."""
        from filelock import FileLock

        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / ".lock")

    def write(self, part: int, outputs: Sequence[Output]) -> None:
        """Write a part.

        Args:
            part: number of the part, which does not exist yet.
            outputs: one output or more, any number for an item.
        """
        rows: list[np.ndarray] = []
        entries: list[tuple[Any, ...]] = []
        start = 0
        for output in outputs:
            *grid, channels = output.values.shape
            partner = None
            if output.partner is not None:
                partner = self._stored_name(output.partner)
            name = self._stored_name(output.name)
            entries.append((name, start, grid, partner))
            rows.append(output.values.reshape(-1, channels))
            start += len(rows[-1])
        remove_unfinished(self._path(part))
        write_derived(self._path(part), self.folder.name, {"rows": np.concatenate(rows)}, entries)


def fingerprint(settings: Any, weights: Mapping[str, Tensor] | None = None) -> str:
    """Digest (12 hexadecimal digits) of weights and settings; the latter are encoded by JSON or str."""
    digest = hashlib.sha256()
    for name, tensor in (weights or {}).items():
        digest.update(name.encode())
        values = tensor.detach().cpu().float().contiguous()
        digest.update(values.numpy().tobytes())
    text = json.dumps(settings, sort_keys=True, default=str)
    digest.update(text.encode())
    return digest.hexdigest()[:12]


LOCK_SECONDS = 60
"""Seconds after which the processes ask each other again whether the folder is free; below the timeout of a message."""


def compute_missing(cache: FrozenCache, compute: Callable[[list[str]], Iterable[Output]], part_size: int) -> None:
    """Compute the outputs that a cache lacks, a part in each process at a time; all processes must call it.

    The processes first read all that is there, each a share of the parts; what is damaged is missing. A part has the
    same items for any number of processes, and so the same values. Other runs wait until then.

    Args:
        cache: cache in a folder that all processes share.
        compute: returns the outputs of the named items, any number for each; none for one that cannot be decoded.
        part_size: items per part: what is lost if the run is killed, and what a process computes while others wait.

    Raises:
        UserError: the processes see different outputs in the folder.
    """
    cache.remove_damaged(cache.parts[parallel.rank() :: parallel.world_size()])
    parallel.barrier()
    cache.refresh()
    if not any(parallel.gather_numbers(len(cache.missing))):
        return
    with _locked(cache):
        cache.refresh()  # another run may have computed some
        missing = cache.missing
        _check_shared(cache, len(missing))
        starts = range(0, len(missing), part_size)
        parts = [missing[start : start + part_size] for start in starts]
        first_number = max(cache.parts, default=-1) + 1
        is_first = parallel.rank() == 0
        if is_first and missing:
            log.warning("%s: computing %d items, once", cache.folder, len(missing))
        with Progress(len(missing), "item", shown=None if is_first else False) as progress:
            world_size = parallel.world_size()
            for begin in range(0, len(parts), world_size):
                index = begin + parallel.rank()
                outputs = list(compute(parts[index])) if index < len(parts) else []
                if outputs:
                    cache.write(first_number + index, outputs)
                parallel.barrier()
                computed_now = parts[begin : begin + world_size]
                progress.update(sum(map(len, computed_now)))
        cache.refresh()


@contextmanager
def _locked(cache: FrozenCache) -> Iterator[None]:
    """Context in which the first process holds the cache's lock, for all."""
    lock = cache.lock()
    try:
        while not parallel.first_decides(parallel.rank() > 0 or _acquired(lock)):
            pass
        yield
    finally:
        lock.release()


def _acquired(lock: "BaseFileLock") -> bool:
    from filelock import Timeout

    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout:
        return False
    return True


def _check_shared(cache: FrozenCache, num_missing: int) -> None:
    counts = parallel.gather_numbers(num_missing)
    if len(set(counts)) > 1:
        raise UserError(
            f"processes miss {min(counts)} to {max(counts)} outputs in it; set data.frozen_folder to a "
            "folder that all machines share",
            where=cache.folder,
        )


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
    config: DataConfig,
    folder: Path,
    sources: Sequence[Source],
    processors: Mapping[str, Processor],
    model: Trained,
    device: torch.device,
    use_bfloat16: bool,
) -> dict[str, FrozenCache]:
    """Features of the items from the frozen stems of data.stem_views, computed by all processes.

    Args:
        config: the recipe's data section.
        folder: folder of the caches.
        sources, processors, model: those of the run.
        device: device of this process.
        use_bfloat16: whether the stems compute under autocast to bfloat16.
    """
    features = {}
    for key, views in config.stem_views.items():
        stem_views = StemViews(
            key=key,
            adapter=model.adapters[key],
            processor=processors[key],
            options=config.augment.get(key, {}),
            samples=[sample for source in sources for sample in source.samples if key in sample.inputs],
            views=views,
            device=device,
            use_bfloat16=use_bfloat16,
        )
        features[key] = stem_views.keep(folder)
    return features
