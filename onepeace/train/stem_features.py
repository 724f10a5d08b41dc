"""Computes what a frozen stem gives of every training item, for several augmented views, so that an epoch costs the
Transformer only. The features are kept on disk under a name that says what they depend on."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from onepeace.data.augment import make_augments
from onepeace.data.features import StemFeatures, by_name, item_name
from onepeace.data.sample import Sample
from onepeace.errors import UserError
from onepeace.files.atomic import write_atomic, write_text_atomic
from onepeace.threads import compute_alone

log = logging.getLogger(__name__)

PART = 128
"""Items of a part: what is lost at most when the run is killed meanwhile, and what is decoded ahead."""
TRIES = 100
"""So many second items at most are tried for a mix."""
BATCH = 64
"""Views computed at once."""

T = TypeVar("T")


def compute_stem_features(
    key: str,
    adapter: Any,
    processor: Any,
    augment: Mapping[str, Any],
    samples: Sequence[Sample],
    views: int,
    folder: Path,
    device: torch.device,
    use_bfloat16: bool,
) -> Path:
    """Makes the features of ``views`` views of each sample, as far as they are not there; returns their folder.

    Args:
        key: the modality.
        adapter: of the model, with a pretrained stem whose network is frozen.
        processor: of the modality.
        augment: the modality's options of data.augment; empty = every view is the item as it is.
        folder: holds a folder for each stem and way to make views.
        device, use_bfloat16: where and how the network is computed.

    Raises:
        UserError: the stem trains, or has no network; or different items have one name.
    """
    network = getattr(getattr(adapter, "stem", None), "network", None)
    if network is None or any(parameter.requires_grad for parameter in network.parameters()):
        raise UserError(
            f"data.stem_views.{key}: features can be kept of a frozen network only; "
            f"add adapters.{key}.stem.network.* to freeze"
        )
    by_name(samples, item_name, lambda sample: sample.inputs[key], "features of a stem")
    vary = make_augments({key: augment}).get(key) if augment else None
    own = folder / f"{key}-{_fingerprint(adapter.stem, processor, augment, views)}"
    own.mkdir(parents=True, exist_ok=True)
    if not _missing(own, samples):
        return own
    with _lock(own):
        if missing := _missing(own, samples):  # another run may have made some meanwhile
            log.warning("%s: computing %d views of %d items (%s), once", own, views, len(missing), key)
            network.to(device)
            maker = _Maker(key, adapter, processor, vary, samples, views, device, use_bfloat16)
            number = 1 + max((int(path.stem.removeprefix("part-")) for path in own.glob("part-*.json")), default=-1)
            decoders = ThreadPoolExecutor(2, initializer=compute_alone)
            with tqdm(total=len(missing), desc=key, unit="item") as progress, decoders as pool:
                for part in _batched(missing, PART):
                    maker.write(part, own, number, pool.map)
                    number += 1
                    progress.update(len(part))
    return own


def _missing(folder: Path, samples: Sequence[Sample]) -> list[Sample]:
    present = StemFeatures(folder, samples).views
    return [sample for sample in samples if item_name(sample) not in present]


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Held by the one run that adds parts to a folder: two would give the same numbers to theirs."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        log.warning("%s: another run is computing these features; waiting ...", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """itertools.batched of Python 3.12."""
    rest = iter(items)
    while part := list(islice(rest, size)):
        yield part


def _fingerprint(stem: nn.Module, processor: Any, augment: Mapping[str, Any], views: int) -> str:
    """Of everything a view depends on, but for the item."""
    about = hashlib.sha256()
    for name, tensor in cast(nn.Module, stem.network).state_dict().items():
        about.update(name.encode())
        about.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    plain = {name: value for name, value in vars(stem).items() if isinstance(value, (int, float, str))}
    settings = {name: str(value) for name, value in vars(processor).items()}
    plain.pop("training")
    about.update(json.dumps([plain, settings, dict(augment), views], sort_keys=True, default=str).encode())
    return about.hexdigest()[:12]


class _Maker:
    """Decodes, varies and computes the items of a part."""

    def __init__(
        self,
        key: str,
        adapter: Any,
        processor: Any,
        vary: Any,
        samples: Sequence[Sample],
        views: int,
        device: torch.device,
        use_bfloat16: bool,
    ):
        self.key, self.adapter, self.processor, self.vary = key, adapter, processor, vary
        self.samples, self.views, self.device, self.use_bfloat16 = samples, views, device, use_bfloat16

    def write(self, part: Sequence[Sample], folder: Path, number: int, map_ahead: Callable[..., Any]) -> None:
        """One part's two files; the .json last: where it is, the part is complete."""
        rows: list[np.ndarray] = []
        places: list[tuple[str, int, list[int], str | None]] = []
        start = 0
        made = (view for views in map_ahead(self._views, part) for view in views)
        for some in _batched(made, BATCH):
            maps = self._compute([media for _, media, _ in some])
            for (name, _, partner), one in zip(some, maps, strict=True):
                places.append((name, start, list(one.shape[:-1]), partner))
                rows.append(one.reshape(-1, one.shape[-1]).cpu().numpy())
                start += len(rows[-1])
        if not rows:
            return
        with write_atomic(folder / f"part-{number}.npy") as temporary, open(temporary, "wb") as file:
            np.save(file, np.concatenate(rows))
        write_text_atomic(folder / f"part-{number}.json", json.dumps(places))

    def _views(self, sample: Sample) -> list[tuple[str, Any, str | None]]:
        """(name, decoded and varied, partner) of an item; none of one that cannot be decoded."""
        name = item_name(sample)
        rng = np.random.default_rng([int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")])
        try:
            if self.vary is None:
                return [(name, self.processor.decode(sample.read(self.key)), None)]
            loaded = self.vary.load(sample.read(self.key), self.processor)
            return [(name, *self._vary(loaded, sample, rng)) for _ in range(self.views)]
        except UserError as error:
            log.warning("%s: %s cannot be decoded and is left out: %s", sample.source, sample.key, error)
            return []

    def _vary(self, loaded: Any, sample: Sample, rng: np.random.Generator) -> tuple[Any, str | None]:
        partners: list[str] = []

        def another() -> tuple[Any, str]:
            for _ in range(TRIES):
                other = self.samples[int(rng.integers(len(self.samples)))]
                try:
                    media = self.vary.load(other.read(self.key), self.processor)
                except UserError:  # said where it is the item itself
                    continue
                partners.append(item_name(other))
                return media, ""
            raise UserError(f"no other item of {self.key} can be decoded, to be mixed in")

        # Whatever caption is drawn later must fit the view.
        media, _ = self.vary.vary(loaded, " ".join(sample.captions), self.processor, rng, another)
        return media, partners[0] if partners else None

    @torch.no_grad()
    def _compute(self, media: list[Any]) -> list[Tensor]:
        """Feature maps (*grid, channels) float16 of decoded items."""
        batch = self.vary.collate(media, self.processor) if self.vary else self.processor.collate(media)
        batch = {name: value.to(self.device) for name, value in batch.items()}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.use_bfloat16):
            features = self.adapter.stem_features(batch).half()
        if "lengths" not in batch:
            return list(features)
        return [one[:length] for one, length in zip(features, self.adapter.token_lengths(batch), strict=True)]
