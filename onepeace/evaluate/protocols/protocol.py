"""Base class of the protocols: a set of items, and a way to measure an embedder on it."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onepeace.config import Config
from onepeace.data.sample import Sample
from onepeace.data.source import read_source
from onepeace.errors import UserError
from onepeace.evaluate.metrics import Figure, as_array
from onepeace.evaluate.ranking import Ranking
from onepeace.files.source import read_bytes

_reading: ContextVar[Any] = ContextVar("the hash that everything read goes into", default=None)


@contextmanager
def hashing() -> Iterator[Any]:
    """Context that yields a hashlib object; at its end, the hash covers all samples that `Items.read` returned inside.

    Keys, captions, targets and contents of files count, in their order; the locations of files do not.
    """
    token = _reading.set(hashlib.sha256())
    try:
        yield _reading.get()
    finally:
        _reading.reset(token)


Compute = Callable[[Sequence[Any]], Any]
"""A function from items to their results in the same order: a tensor with a row for each, or a list."""
_sharing: ContextVar[Callable[[Compute, Sequence[Any]], Any] | None] = ContextVar(
    "function that shares items among processes", default=None
)


@contextmanager
def sharing(share_out: Callable[[Compute, Sequence[Any]], Any]) -> Iterator[None]:
    """Context in which results of items are computed by ``share_out(compute, items)``, as by several processes."""
    token = _sharing.set(share_out)
    try:
        yield
    finally:
        _sharing.reset(token)


def results_of(compute: Compute, items: Sequence[Any]) -> Any:
    """Results of items, shared among processes inside the context of `sharing`."""
    share_out = _sharing.get()
    if share_out is None:
        return compute(items)
    return share_out(compute, items)


class Labelled(NamedTuple):
    """Items with a class each: vectors (n, E) and class names (n,)."""

    vectors: NDArray
    labels: NDArray


@dataclass(frozen=True)
class Items:
    """The items of one modality in a set."""

    modality: str
    shards: str = ""
    """Pattern of shard files, below the root."""
    keys: str = "*"
    """Pattern of the keys of the samples to use."""

    def of(self, modality: str) -> "Items":
        """The items of another modality in the same samples."""
        return Items(modality, self.shards, self.keys)

    def read(self, root: Path, *companions: str) -> list[Sample]:
        """The samples that have this modality and the companions; incomplete ones are left out with a warning."""
        modalities = (self.modality, *companions)
        samples = read_source(self.shards, modalities, root, keys=self.keys, broken_limit=1.0)
        digest = _reading.get()
        if digest is not None:
            for sample in samples:
                _add(digest, sample, modalities)
        return samples

    def read_labelled(self, root: Path) -> list[Sample]:
        """The samples; UserError when one of them has no label."""
        samples = self.read(root)
        for sample in samples:
            if sample.label is None:
                raise UserError(f"{sample.key} has no label, and this protocol needs one", where=sample.source)
        return samples

    def encode(self, embedder: Any, samples: Sequence[Sample]) -> NDArray:
        """The vectors (n, E) of the samples' items."""
        return encode(embedder, self.modality, [sample.inputs[self.modality] for sample in samples])

    def encode_labelled(self, embedder: Any, root: Path) -> Labelled:
        """The vectors and labels of all samples; UserError when one of them has no label."""
        samples = self.read_labelled(root)
        labels = [sample.label for sample in samples]
        return Labelled(vectors=self.encode(embedder, samples), labels=np.array(labels))


@dataclass(frozen=True, kw_only=True)
class EvaluationProtocol(Items, ABC):
    """A set of items and how it is measured; a subclass adds options, their checks in ``__post_init__``, and `run`."""

    needs_writer: ClassVar[bool] = False
    """Whether it measures generated text, if the model can generate (`onepeace.load_generator`)."""

    @staticmethod
    def writer(config: Config, module: Any, processors: Mapping[str, Any], tasks: Path) -> Any:
        """What is measured of a module in training that can write, for a protocol that ``needs_writer``.

        Args:
            tasks: the run's tasks.yaml, which may not exist.
        """
        raise NotImplementedError

    @property
    def sides(self) -> tuple[Items, ...]:
        """The items of each modality, besides text, that the model must support."""
        return (self,)

    @property
    def prompts(self) -> tuple[str, ...]:
        """The sentences that class names are put into, for the results; empty without class names."""
        return ()

    @abstractmethod
    def run(self, embedder: Any, root: Path) -> "Sequence[Ranking | Figure]":
        """Measure an embedder on the shards below ``root``: rankings, whose figures are shares of hits, or figures.

        Args:
            embedder: has encode_text and encode_<modality>, each of which maps a list (of texts; of encoded file
                bytes) to (n, E) unit vectors in the same order; or encode, for lists of {modality: item}.

        Raises:
            UserError: no shards, a sample that lacks something, a file that cannot be decoded.
        """


def encode(embedder: Any, modality: str, items: Sequence[Any]) -> NDArray:
    """The embedder's vectors (n, E) of one modality in float32; an output of another shape is a ValueError."""

    def encode_any(items: Sequence[Any]) -> Any:
        return embedder.encode([{modality: item} for item in items])

    vectors = results_of(getattr(embedder, f"encode_{modality}", encode_any), list(items))
    vectors = as_array(vectors).astype(np.float32, copy=False)
    if vectors.ndim != 2 or len(vectors) != len(items):
        raise ValueError(
            f"encode of {modality} returned {vectors.shape} for {len(items)} items; expected (items, width)"
        )
    return vectors


def _add(digest: Any, sample: Sample, modalities: Sequence[str]) -> None:
    """Add a sample to a hash, each part after its length."""
    fields = [sample.key, sample.targets, sample.captions]
    description = json.dumps(fields, sort_keys=True, default=bytes.hex)
    _add_part(digest, description.encode())
    for modality in modalities:
        if modality != "text":
            media = sample.inputs[modality]
            for file in media if isinstance(media, list) else [media]:
                _add_part(digest, read_bytes(file))


def _add_part(digest: Any, part: bytes) -> None:
    digest.update(len(part).to_bytes(8, "big"))
    digest.update(part)
